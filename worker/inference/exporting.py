"""Checkpoints as files that other programs run: `torch.export` (.pt2) and ONNX, preprocessing included."""

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from worker.datasets.pictures import Preprocessing
from worker.jobs.errors import EpochdError, NotExportable
from worker.jobs.files import require_space, told_when_full
from worker.jobs.wire import ExportRequest
from worker.training.checkpoints import Metadata

from .bundles import NOT_FINITE, bundle
from .errands import Place
from .models import load_plain

INPUT, OUTPUT, ABOUT = "pictures", "logits", "epochd.json"
_OPSET: Final = 20
_TOLERANCE: Final = 1e-3  # of the largest output: other kernels round in other places
_REFERENCE_PARAMETERS: Final = 5_000_000  # it takes minutes for some networks of more
_BATCHES: Final = (1, 3)  # what is compared: one traced with two pictures must not have learned the two
_log = structlog.get_logger()


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
    """Writes the file, which appears whole; the answer is empty.

    Raises CheckpointCorrupt, NotExportable, DiskFull, and what `bundle` raises.
    """
    path = place.data_dir / request.to
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"writing-{path.name}")  # one that only begins with a dot is refused by torch
    try:
        with told_when_full():
            if request.format == "bundle":
                bundle(place, request, scratch)
            else:
                _write(place, request, scratch)
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)
    return iter(())


def _write(place: Place, request: ExportRequest, path: Path) -> None:
    network, metadata = load_plain(place.data_dir, request.path, request.sha256)
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    require_space(path.parent, place.settings.min_free_bytes, size)
    model = Exported(network, metadata.preprocessing).eval()
    try:
        with _quiet():
            (_write_onnx if request.format == "onnx" else _write_pt2)(model, metadata, path)
    except (EpochdError, OSError):
        raise
    except Exception as error:  # exporters, and what runs their files, raise what they like
        _log.warning("not_exportable", job=metadata.job, epoch=metadata.epoch, format=request.format, exc_info=error)
        raise NotExportable from error


def _write_pt2(model: Exported, metadata: Metadata, path: Path) -> None:
    program = torch.export.export(model, (_pictures(metadata, 2),), dynamic_shapes=_dynamic())
    torch.export.save(program, path, extra_files={ABOUT: _about(metadata)})
    _compare(model, metadata, torch.export.load(path).module())


def _write_onnx(model: Exported, metadata: Metadata, path: Path) -> None:
    if importlib.util.find_spec("onnxscript") is None:
        raise NotExportable("ONNX needs the extra `onnx`: pip install 'epochd[onnx]'.")
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
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime  # where somebody has it

        session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        _compare(model, metadata, lambda pictures: torch.from_numpy(session.run(None, {INPUT: pictures.numpy()})[0]))
    else:
        _compare_with_reference(model, metadata, path)


def _compare_with_reference(model: Exported, metadata: Metadata, path: Path) -> None:
    """As far as onnx's own evaluator goes: it is written to be read, not to be fast, and has no padding of `ceil_mode`.

    Raises what `_compare` does, and what the checker of the file's form does.
    """
    import onnx  # an extra
    from onnx.reference import ReferenceEvaluator

    onnx.checker.check_model(str(path))
    if sum(parameter.numel() for parameter in model.parameters()) > _REFERENCE_PARAMETERS:
        return
    try:
        reference: Any = ReferenceEvaluator(str(path))
        _compare(model, metadata, lambda pictures: torch.tensor(reference.run(None, {INPUT: pictures.numpy()})[0]))
    except EpochdError:
        raise
    except Exception as error:
        _log.warning("not_compared", job=metadata.job, epoch=metadata.epoch, exc_info=error)


def _compare(model: Exported, metadata: Metadata, run: Any) -> None:
    """Raises NotExportable when the written file computes something else."""
    with torch.inference_mode():
        for count in _BATCHES:
            pictures = _pictures(metadata, count)
            expected, found = model(pictures), run(pictures)
            if not expected.isfinite().all():
                raise NotExportable(NOT_FINITE)
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
    """Exporters log warnings of their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
