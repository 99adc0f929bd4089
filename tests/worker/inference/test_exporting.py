"""Exported programs give what the network gives, for any number of pictures."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from tests.worker.inference.making import checkpoint, place, tiny
from worker.inference.exporting import export
from worker.jobs.card import Card
from worker.jobs.errors import NotExportable
from worker.jobs.wire import ExportRequest

SPECS: list[dict[str, object]] = [
    {"model": {"name": "mlp", "hidden": [16], "dropout": 0.5}, "loss": {"name": "nll"}},
    {"model": {"name": "cnn", "channels": [4, 8]}, "normalization": "dataset"},
    {"model": {"name": "resnet18", "image_size": 40}, "normalization": "dataset"},
]
REGRESSION: dict[str, object] = {"model": {"name": "cnn", "channels": [4]}, "loss": {"name": "mse"}}


def of_numbers(card: Card) -> Card:
    return card.model_copy(update={"task": "regression", "classes": [], "targets": ["height", "width"]})


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
@pytest.mark.parametrize("spec", [*SPECS, REGRESSION], ids=["mlp", "cnn", "resnet18", "regression"])
def test_the_outputs_are_the_checkpoints(tmp_path: Path, spec: dict[str, object], kind: str) -> None:
    card, _ = tiny(tmp_path)
    card = of_numbers(card) if spec is REGRESSION else card
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
        told = json.loads(about)
        assert (told["classes"], told["targets"]) == (card.classes, card.targets)
        assert told["preprocessing"] == ready.preprocessing.model_dump()
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["made"]


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
    assert not list(tmp_path.glob("*x.pt2"))


def test_without_the_extra_the_answer_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **SPECS[0])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    request = ExportRequest(path=saved.path, sha256=saved.sha256, format="onnx", to="x.onnx")
    with pytest.raises(NotExportable, match=r"epochd\[onnx\]"):
        export(place(tmp_path), request)


def test_without_onnxruntime_the_file_is_compared_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **SPECS[0])
    find = importlib.util.find_spec
    run: Any = ReferenceEvaluator.run
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    request = ExportRequest(path=saved.path, sha256=saved.sha256, format="onnx", to="x.onnx")
    export(place(tmp_path), request)
    monkeypatch.setattr(ReferenceEvaluator, "run", lambda *given: [run(*given)[0] + 1])
    with pytest.raises(NotExportable, match="something else"):
        export(place(tmp_path), request)


@pytest.mark.parametrize("fails", ["export", "save", "load"])
def test_whatever_an_exporter_raises_becomes_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **SPECS[0])

    def fail(*_: object, **__: object) -> None:
        raise NotImplementedError("aten::unheard_of")

    monkeypatch.setattr(torch.export, fails, fail)
    request = ExportRequest(path=saved.path, sha256=saved.sha256, format="pt2", to="x.pt2")
    with pytest.raises(NotExportable, match="cannot be exported"):
        export(place(tmp_path), request)
    assert not list(tmp_path.glob("*x.pt2"))
