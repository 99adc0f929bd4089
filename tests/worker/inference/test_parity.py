"""The certificate: both ways agree for every kind of network, and a difference does not go unseen."""

from pathlib import Path

import pytest
import torch

import worker.inference.parity
from tests.tiny import TEST
from tests.worker.inference.making import checkpoint, place, tiny
from worker.inference.parity import parity
from worker.jobs.parity import Parity
from worker.jobs.wire import ParityRequest

SPECS: list[dict[str, object]] = [
    {"model": {"name": "mlp", "hidden": [16]}},
    {"model": {"name": "cnn", "channels": [4, 8]}, "normalization": "dataset"},
    {"model": {"name": "resnet18", "image_size": 33}},
    {"model": {"name": "cnn", "channels": [4]}, "precision": "bf16"},
    {"model": {"name": "mlp", "hidden": [16]}, "loss": {"name": "nll"}},
]


def certificate(data_dir: Path, spec: dict[str, object]) -> Parity:
    card, dataset = tiny(data_dir)
    saved = checkpoint(data_dir, card, **spec)
    request = ParityRequest(path=saved.path, sha256=saved.sha256, dataset=dataset)
    (made,) = parity(place(data_dir), request)
    return Parity.model_validate_json(made)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_answers_agree_with_the_test_loop(tmp_path: Path, spec: dict[str, object]) -> None:
    found = certificate(tmp_path, spec)
    assert found.passed
    assert (found.pictures, found.epoch, found.recorded_accuracy) == (TEST, 3, 0.5)
    assert found.agree is not None
    assert found.agree >= 0.99
    assert found.accuracy == pytest.approx(found.loop_accuracy, abs=0.01)
    assert found.largest_difference <= found.tolerance
    assert found.largest_output > 0


def test_pictures_that_are_changed_on_the_way_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = worker.inference.parity.png
    monkeypatch.setattr(worker.inference.parity, "png", lambda image: encode(torch.flip(image, (2,))))
    found = certificate(tmp_path, SPECS[0])
    assert not found.passed
    assert found.largest_difference > found.tolerance
