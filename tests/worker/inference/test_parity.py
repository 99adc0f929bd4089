"""The certificate: both ways agree for every kind of network, and a difference does not go unseen."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import worker.inference.parity
from tests.tiny import TEST
from tests.worker.inference.making import checkpoint, place, tiny
from tests.worker.inference.test_batch import of_numbers
from tests.worker.training.making import trained
from worker.datasets.opening import open_prepared
from worker.inference.models import Ready
from worker.inference.parity import parity
from worker.jobs.errors import CheckpointCorrupt, DatasetChanged, DatasetMissing
from worker.jobs.parity import Parity
from worker.jobs.wire import ParityRequest
from worker.networks import whole
from worker.training import checkpoints
from worker.training.checkpoints import Metadata

MLP: dict[str, object] = {"model": {"name": "mlp", "hidden": [16]}}
SPECS: list[dict[str, object]] = [
    MLP,
    {"model": {"name": "cnn", "channels": [4, 8]}, "normalization": "dataset"},
    {"model": {"name": "resnet18", "image_size": 33}},
    {"model": {"name": "cnn", "channels": [4]}, "precision": "bf16"},
    MLP | {"loss": {"name": "nll"}},
    MLP | {"loss": {"name": "mse"}},  # of one-hots
    MLP | {"ema": {"decay": 0.9}, "batch_size": 33},
]


class Trained(NamedTuple):
    """One epoch, with the numbers that the engine's test loop found."""

    request: ParityRequest
    accuracy: float | None
    mae: float | None


def train(data_dir: Path, spec: dict[str, object], *, recorded: dict[str, float | None] | None = None) -> Trained:
    """`recorded`: what the checkpoint says instead."""
    card, dataset = of_numbers(data_dir) if spec.get("of") == "numbers" else tiny(data_dir)
    spec = {name: value for name, value in spec.items() if name != "of"}
    engine, (result,) = trained(open_prepared(data_dir / dataset.folder, card.sha256), epochs=1, **spec)
    checked = engine._spec
    found = {"test_accuracy": result.test_accuracy, "test_mae": result.test_mae}
    metadata = Metadata(
        job="1" * 24,
        epoch=1,
        spec=checked,
        classes=card.classes,
        targets=card.targets,
        preprocessing=whole.preprocessing(checked, card),
        dataset_sha256=card.sha256,
        metrics=found if recorded is None else recorded,
    )
    there = checkpoints.Place(data_dir, metadata.job, 1, 0)
    saved = checkpoints.save(there, metadata, engine.served.state_dict(), {})
    return Trained(ParityRequest(path=saved.path, sha256=saved.sha256, dataset=dataset), *found.values())


def certificate(data_dir: Path, request: ParityRequest) -> Parity:
    (made,) = parity(place(data_dir), request)
    return Parity.model_validate_json(made)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_answers_agree_with_the_test_loop_and_with_what_it_recorded(tmp_path: Path, spec: dict[str, object]) -> None:
    made = train(tmp_path, spec)
    found = certificate(tmp_path, made.request)
    assert found.passed
    assert (found.pictures, found.epoch, found.sha256, found.device) == (TEST, 1, made.request.sha256, "cpu")
    assert found.agree is not None
    assert found.agree >= 0.98
    assert found.loop_accuracy == pytest.approx(made.accuracy)
    assert found.recorded_accuracy == made.accuracy
    assert found.accuracy == pytest.approx(made.accuracy, abs=0.02)
    assert found.largest_difference is not None
    assert found.largest_difference <= found.tolerance < found.largest_output
    assert (found.mae, found.loop_mae, found.recorded_mae) == (None, None, None)


def test_numbers_are_certified_by_their_error(tmp_path: Path) -> None:
    made = train(tmp_path, MLP | {"loss": {"name": "mse"}, "of": "numbers"})
    found = certificate(tmp_path, made.request)
    assert found.passed
    assert (found.agree, found.accuracy, found.recorded_accuracy) == (None, None, None)
    assert found.recorded_mae == made.mae
    assert found.loop_mae == pytest.approx(made.mae)
    assert found.mae == pytest.approx(made.mae, rel=1e-4)


def test_pictures_that_are_changed_on_the_way_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = worker.inference.parity.png
    monkeypatch.setattr(worker.inference.parity, "png", lambda image: encode(torch.flip(image, (2,))))
    found = certificate(tmp_path, train(tmp_path, MLP).request)
    assert not found.passed
    assert found.largest_difference is not None
    assert found.largest_difference > found.tolerance


@pytest.mark.parametrize(
    ("spec", "recorded"),
    [(MLP, {"test_accuracy": 0.01}), (MLP | {"loss": {"name": "mse"}, "of": "numbers"}, {"test_mae": 0.5})],
    ids=["classes", "numbers"],
)
def test_what_the_training_recorded_has_to_be_met(
    tmp_path: Path, spec: dict[str, object], recorded: dict[str, float | None]
) -> None:
    found = certificate(tmp_path, train(tmp_path, spec, recorded=recorded).request)
    assert not found.passed
    assert found.largest_difference is not None
    assert found.largest_difference <= found.tolerance


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_answer_that_is_no_number_does_not_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    logits = Ready.logits

    def spoiled(self: Ready, images: Tensor) -> Tensor:
        found = logits(self, images).clone()
        found[0, 0] = value
        return found

    made = train(tmp_path, MLP | {"loss": {"name": "mse"}, "of": "numbers"})
    monkeypatch.setattr(Ready, "logits", spoiled)
    found = certificate(tmp_path, made.request)
    assert not found.passed
    assert (found.largest_difference, found.mae) == (None, None)
    assert math.isfinite(found.largest_output)


def test_a_large_set_is_certified_by_pictures_all_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.inference.parity, "_MOST_PICTURES", 34)
    request = train(tmp_path, MLP, recorded={"test_accuracy": 0.01}).request
    found = certificate(tmp_path, request)
    assert found.passed  # what was recorded is of other pictures
    assert found.pictures == 34
    data = open_prepared(tmp_path / request.dataset.folder, request.dataset.sha256)
    chosen = worker.inference.parity._chosen(data.test).tolist()
    assert chosen == list(range(0, TEST, 3))


def test_what_is_gone_or_changed_is_said(tmp_path: Path) -> None:
    card, dataset = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, **MLP)
    request = ParityRequest(path=saved.path, sha256=saved.sha256, dataset=dataset)
    with pytest.raises(CheckpointCorrupt):
        certificate(tmp_path, request.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(DatasetChanged):
        certificate(tmp_path, request.model_copy(update={"dataset": dataset.model_copy(update={"sha256": "0" * 64})}))
    with pytest.raises(DatasetMissing):
        certificate(tmp_path, request.model_copy(update={"dataset": dataset.model_copy(update={"folder": "none"})}))
