"""A training that was stopped anywhere and gone on with ends with the bits of one that was not."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import prepare_tiny
from tests.worker.training import making
from tests.worker.training.making import CPU, Silent, StopsAt, engine, trained
from tests.worker.training.test_engine import MATRIX, PARTS
from worker.datasets.opening import Prepared
from worker.jobs.processes import Stopped
from worker.jobs.records import EpochResult
from worker.jobs.spec import Spec
from worker.training import order, provenance
from worker.training.checkpoints import digest
from worker.training.engine import Engine

EPOCHS, BATCHES = 3, 6  # of 16, the last one short

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.002}},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "step": {"schedule": {"name": "step", "every": 1, "gamma": 0.5, "warmup_epochs": 1}},
    "cosine": {"schedule": {"name": "cosine"}},
    "one_cycle": {"schedule": {"name": "one_cycle"}},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp with dropout": {"model": {"hidden": [16], "dropout": 0.25}},
    "cnn with batch norm": {"model": {"name": "cnn", "channels": [4, 8], "hidden": 8, "dropout": 0.2}},
    "augmented": {
        "model": {"hidden": [16]},
        "augmentation": {"flip": "horizontal", "shift": 2, "rotate": 10.0, "cutout": 4, "mixup": 0.2},
    },
}
GRID = {
    f"{optimizer}, {schedule}, {network}": OPTIMIZERS[optimizer] | SCHEDULES[schedule] | NETWORKS[network]
    for optimizer in OPTIMIZERS
    for schedule in SCHEDULES
    for network in NETWORKS
}
ANYWHERE = [(1, 1), (1, 4), (2, BATCHES), (3, 2), (3, 3)]  # twice in one epoch, and behind the last batch, in the test


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_tiny(tmp_path_factory.mktemp("small"), 88, 40)


def in_pieces(
    prepared: Prepared, stops: Sequence[tuple[int, int]], scratch: Path, **fields: Any
) -> tuple[Engine, list[EpochResult]]:
    """Stopped behind each of these (epoch, batch); batch 0 is the end of the epoch before.

    An engine of its own goes on each time, with what the one before left in files.
    """
    scratch.mkdir(exist_ok=True)
    inside, whole = scratch / "inside.pt", scratch / "whole.pt"
    results: list[EpochResult] = []
    for epoch_to_stop, batch in (*stops, (0, 0)):
        made = engine(prepared, epochs=EPOCHS, batch_size=16, **fields)
        if inside.exists():
            made.load_inside(torch.load(inside, weights_only=True))
        elif whole.exists():
            made.load_state_dict(*torch.load(whole, weights_only=True))
        reporter = StopsAt(epoch_to_stop, batch)
        with suppress(Stopped):
            for epoch in range(len(results) + 1, EPOCHS + 1):
                if (epoch, 0) == (epoch_to_stop, batch):
                    break
                results.append(made.run_epoch(epoch, reporter, lambda state: torch.save(state, inside)).result)
                torch.save([made.served.state_dict(), made.state_dict()], whole)
                inside.unlink(missing_ok=True)
    return made, results


def curve(results: Sequence[EpochResult]) -> list[tuple[float, ...]]:
    return [
        (each.epoch, each.train_loss, each.test_loss, each.learning_rate, each.gradient_norm or 0.0) for each in results
    ]


def assert_same_bits(prepared: Prepared, stops: Sequence[tuple[int, int]], scratch: Path, **fields: Any) -> None:
    once, uninterrupted = trained(prepared, EPOCHS, batch_size=16, **fields)
    again, resumed = in_pieces(prepared, stops, scratch, **fields)
    assert curve(resumed) == curve(uninterrupted)
    assert digest(again.served.state_dict()) == digest(once.served.state_dict())


@pytest.mark.parametrize("name", GRID)
def test_stopped_after_every_epoch(name: str, small: Prepared, tmp_path: Path) -> None:
    assert_same_bits(small, [(2, 0), (3, 0)], tmp_path, **GRID[name])


@pytest.mark.parametrize("name", GRID)
def test_stopped_inside_epochs_twice_in_a_row(name: str, small: Prepared, tmp_path: Path) -> None:
    assert_same_bits(small, ANYWHERE, tmp_path, **GRID[name])


@pytest.mark.parametrize("name", PARTS)
def test_whatever_the_spec_says(name: str, small: Prepared, tmp_path: Path) -> None:
    assert_same_bits(small, [(1, 2), (2, 0), (3, 5)], tmp_path, **MATRIX[name])


def test_randomness_that_is_not_derived_is_found_out(
    small: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: seeds that depend on what ran before in the process."""
    drawn = 0

    def counted(seed: int, epoch: int, purpose: str) -> int:
        nonlocal drawn
        drawn += 1
        return drawn

    def new_process(*arguments: Any, **fields: Any) -> Engine:
        nonlocal drawn
        drawn = 0
        return making.engine(*arguments, **fields)

    for module in ("engine", "order", "augmentation"):
        monkeypatch.setattr(f"worker.training.{module}.derived_seed", counted)
    monkeypatch.setitem(in_pieces.__globals__, "engine", new_process)
    first, second, resumed = (
        in_pieces(small, stops, tmp_path / str(number), **NETWORKS["mlp with dropout"])[0]
        for number, stops in enumerate([[], [], [(3, 0)]])
    )
    digests = [digest(each.served.state_dict()) for each in (first, second, resumed)]
    assert digests[0] == digests[1]  # uninterrupted it repeats itself,
    assert digests[2] != digests[1]  # interrupted it does not


def test_five_epochs_and_five_more_are_ten(small: Prepared, tmp_path: Path) -> None:
    for schedule in ({"name": "constant", "warmup_epochs": 1}, {"name": "step", "every": 3}, {"name": "plateau"}):
        fields = {"batch_size": 16, "schedule": schedule, **OPTIMIZERS["sgd"], **NETWORKS["mlp with dropout"]}
        ten, curve_of_ten = trained(small, 10, **fields)
        five, _ = trained(small, 5, **fields)
        torch.save([five.served.state_dict(), five.state_dict()], tmp_path / "five.pt")
        extended = engine(small, epochs=10, **fields)
        extended.load_state_dict(*torch.load(tmp_path / "five.pt", weights_only=True))
        more = [extended.run_epoch(epoch, Silent()).result for epoch in range(6, 11)]
        assert curve(more) == curve(curve_of_ten[5:])
        assert digest(extended.served.state_dict()) == digest(ten.served.state_dict())


def test_what_computes_otherwise_is_named() -> None:
    network = torch.nn.Linear(1, 1)
    now = provenance.of(
        Spec(), dataset_sha256="0" * 64, network=network, device=CPU, arithmetic="highest", channels_last=False
    )
    assert provenance.differences(now, now) == []
    versions = {**now["versions"], "torch": "1.0", "python": "2.7"}
    before = now | {"threads": 64, "device": "cuda:0", "versions": versions}
    assert provenance.differences(before, now) == [
        "device was cuda:0 and is cpu",
        f"threads was 64 and is {torch.get_num_threads()}",
        f"torch was 1.0 and is {torch.__version__}",
    ]
    assert provenance.differences({}, now) == []  # of an epochd that did not note it


def test_seeds_are_of_the_epoch_and_of_nothing_else() -> None:
    assert order.derived_seed(0, 1, "step") == order.derived_seed(0, 1, "step")
    assert len({order.derived_seed(0, epoch, purpose) for epoch in (1, 2) for purpose in ("step", "order")}) == 4
