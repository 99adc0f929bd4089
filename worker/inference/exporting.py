"""Checkpoints as files that other programs run: `torch.export` (.pt2) and ONNX, preprocessing included."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from worker.datasets.pictures import Preprocessing
from worker.jobs.errors import NotExportable
from worker.jobs.wire import ExportRequest
from worker.training.checkpoints import Metadata

from .bundles import bundle
from .errands import Place
from .models import load_plain

INPUT, OUTPUT, ABOUT = "pictures", "logits", "epochd.json"
_OPSET: Final = 20
_TOLERANCE: Final = 1e-3  # of the largest output: other kernels round in other places
_REFERENCE_PARAMETERS: Final = 5_000_000  # onnx's own evaluator is written to be read, not to be fast
_BATCHES: Final = (1, 3)  # what is compared: one traced with two pictures must not have learned the two


class Exported(nn.Module):
    """uint8 N x channels x height x width to what the network gives: nothing is left to do but to decode."""

    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(self, network: nn.Module, shape: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self._is_scaled = shape.image_size is not None
        self._is_plain = not any(shape.mean) and all(value == 1 for value in shape.std)
        self.register_buffer("mean", torch.tensor(shape.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(shape.std).view(1, -1, 1, 1))
        size = shape.image_size or 1
        self.register_buffer("rows", _scaling(shape.height, size))
        self.register_buffer("columns", _scaling(shape.width, size).T.contiguous())

    def forward(self, pictures: Tensor) -> Tensor:
        X = pictures.float() / 255
        if not self._is_plain:
            X = (X - self.mean) / self.std
        if self._is_scaled:
            X = self.rows @ X @ self.columns
        pred: Tensor = self.network(X)
        return pred


def _scaling(length: int, size: int) -> Tensor:
    """size x length: what scaling does to one side of a picture, as a matrix. The operation itself is not in ONNX as
    torch computes it.
    """
    lines = torch.eye(length)[None, None]
    scaled: Tensor = interpolate(lines, (size, length), mode="bilinear", antialias=True, align_corners=False)
    return scaled[0, 0]


def export(place: Place, request: ExportRequest) -> Iterator[bytes]:
    """Writes the file; the answer is empty. Raises CheckpointCorrupt, NotExportable, and what `bundle` raises."""
    path = place.data_dir / request.to
    path.parent.mkdir(parents=True, exist_ok=True)
    if request.format == "bundle":
        bundle(place, request, path)
    else:
        network, metadata = load_plain(place.data_dir, request.path, request.sha256)
        model = Exported(network, metadata.preprocessing).eval()
        with _quiet():
            (_write_onnx if request.format == "onnx" else _write_pt2)(model, metadata, path)
    return iter(())


def _write_pt2(model: Exported, metadata: Metadata, path: Path) -> None:
    try:
        program = torch.export.export(model, (_pictures(metadata, 2),), dynamic_shapes=_dynamic())
    except Exception as error:  # the tracer raises what it likes
        raise NotExportable from error
    torch.export.save(program, path, extra_files={ABOUT: _about(metadata)})
    loaded = torch.export.load(path).module()
    _compare(model, metadata, loaded)


def _write_onnx(model: Exported, metadata: Metadata, path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise NotExportable("ONNX needs the extra `onnx`: pip install 'epochd[onnx]'.")
    import onnx  # an extra
    from onnx.reference import ReferenceEvaluator

    try:
        program = torch.onnx.export(
            model,
            (_pictures(metadata, 2),),
            dynamo=True,
            dynamic_shapes=_dynamic(),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props["epochd"] = _about(metadata)
        program.save(str(path))
    except Exception as error:
        raise NotExportable from error
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # where somebody has it

        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        _compare(model, metadata, lambda pictures: torch.from_numpy(session.run(None, {INPUT: pictures.numpy()})[0]))
        return
    onnx.checker.check_model(str(path))
    if sum(parameter.numel() for parameter in model.parameters()) < _REFERENCE_PARAMETERS:
        reference: Any = ReferenceEvaluator(str(path))
        _compare(model, metadata, lambda pictures: torch.tensor(reference.run(None, {INPUT: pictures.numpy()})[0]))


def _compare(model: Exported, metadata: Metadata, run: Any) -> None:
    """Raises NotExportable when the written file computes something else."""
    with torch.inference_mode():
        for count in _BATCHES:
            pictures = _pictures(metadata, count)
            expected, found = model(pictures), run(pictures)
            if not (found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-6):
                raise NotExportable("The exported file computes something else; the checkpoint itself is not to blame.")


def _dynamic() -> tuple[dict[int, Any], ...]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _pictures(metadata: Metadata, count: int) -> Tensor:
    shape = metadata.preprocessing
    generator = torch.Generator().manual_seed(count)
    size = (count, shape.channels, shape.height, shape.width)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator)


def _about(metadata: Metadata) -> str:
    return json.dumps(metadata.model_dump(mode="json"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
