"""Exported programs give what the network gives, for any number of pictures."""

import importlib.util
import json
from pathlib import Path

import onnxruntime
import pytest
import torch

from tests.worker.inference.making import checkpoint, place, tiny
from worker.inference.exporting import export
from worker.jobs.errors import NotExportable
from worker.jobs.wire import ExportRequest

SPECS: list[dict[str, object]] = [
    {"model": {"name": "mlp", "hidden": [16], "dropout": 0.5}, "loss": {"name": "nll"}},
    {"model": {"name": "cnn", "channels": [4, 8]}, "normalization": "dataset"},
    {"model": {"name": "resnet18", "image_size": 40}, "normalization": "dataset"},
]


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec["model"]["name"]))
def test_the_outputs_are_the_checkpoints(tmp_path: Path, spec: dict[str, object], kind: str) -> None:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **spec)
    here = place(tmp_path)
    request = ExportRequest.model_validate({"path": saved.path, "sha256": saved.sha256, "format": kind, "to": "x/made"})
    assert list(export(here, request)) == []
    ready = here.models.get(saved.path, saved.sha256)
    for count in (1, 3, 17):
        pictures = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8)
        expected = ready.logits(pictures)
        if kind == "onnx":
            session = onnxruntime.InferenceSession(tmp_path / "x/made", providers=["CPUExecutionProvider"])
            found = torch.from_numpy(session.run(["logits"], {"pictures": pictures.numpy()})[0])
            about = session.get_modelmeta().custom_metadata_map["epochd"]
        else:
            extra = {"epochd.json": ""}
            found = torch.export.load(tmp_path / "x/made", extra_files=extra).module()(pictures)
            about = extra["epochd.json"]
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert json.loads(about)["classes"] == card.classes


def test_a_file_that_computes_something_else_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **SPECS[0])
    load = torch.export.load

    def loaded(*arguments: object) -> object:
        program = load(*arguments)  # type: ignore[arg-type]
        for tensor in program.state_dict.values():
            tensor.data = tensor.data + 1
        return program

    monkeypatch.setattr(torch.export, "load", loaded)
    request = ExportRequest(path=saved.path, sha256=saved.sha256, format="pt2", to="x.pt2")
    with pytest.raises(NotExportable, match="something else"):
        export(place(tmp_path), request)


def test_without_the_extra_the_answer_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **SPECS[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    request = ExportRequest(path=saved.path, sha256=saved.sha256, format="onnx", to="x.onnx")
    with pytest.raises(NotExportable, match=r"epochd\[onnx\]"):
        export(place(tmp_path), request)
