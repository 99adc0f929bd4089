import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worker.training.making import CPU, accumulation, batches
from worker.jobs.errors import OutOfMemory
from worker.jobs.spec import Spec
from worker.networks.mlp import mlp

SIZES = (8, 8, 8, 5)  # the last is short, and no multiple of a part


class Full(RuntimeError):
    def __init__(self) -> None:
        super().__init__("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")


class Narrow(nn.Module):
    """A network that fails to allocate for more than so many pictures: in forward, or in backward."""

    def __init__(self, room: int, *, in_backward: bool = False, seen: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = mlp(16, [8], 3, 0.0)
        self.room, self.in_backward, self.seen = room, in_backward, seen

    def forward(self, X: Tensor) -> Tensor:
        pred: Tensor = self.network(X)
        self.seen += 1
        if len(X) > self.room:
            if not self.in_backward:
                raise Full
            pred.register_hook(_fail)  # type: ignore[no-untyped-call]
        return pred


def _fail(_gradient: Tensor) -> Tensor:
    raise Full


def train(micro_batch: int, room: int = 1000, epochs: int = 3, **more: Any) -> tuple[list[float], dict[str, Tensor]]:
    model = Narrow(room, in_backward=more.pop("fails_in_backward", False))
    trained = accumulation(model, micro_batch, **more)
    losses = [trained.train(iter(batches(*SIZES)), model, CPU) for _ in range(epochs)]
    return losses, model.network.state_dict()


SPECS = {
    "sgd": {"optimizer": {"lr": 0.1}},
    "momentum": {"optimizer": {"lr": 0.1, "momentum": 0.9}},
    "adam": {"optimizer": {"name": "adam"}},
    "smoothing": {"loss": {"label_smoothing": 0.1}, "optimizer": {"lr": 0.1}},
    "class weights": {"loss": {"class_weights": [0.5, 1.0, 7.0]}, "optimizer": {"lr": 0.1}},
    "one-hot": {"loss": {"name": "mse"}, "optimizer": {"lr": 0.1}},
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("micro_batch", [1, 3, 4, 7])
def test_parts_take_the_steps_of_the_whole_batch(name: str, micro_batch: int) -> None:
    spec = Spec.model_validate(SPECS[name])
    whole, parts = train(8, spec=spec), train(micro_batch, spec=spec)
    assert parts[0] == pytest.approx(whole[0], abs=1e-5)
    for key, weights in whole[1].items():
        assert torch.allclose(weights, parts[1][key], atol=1e-5)


@pytest.mark.parametrize("fails_in_backward", [False, True])
def test_a_batch_that_does_not_fit_goes_on_in_halves_as_if_it_had_begun_so(fails_in_backward: bool) -> None:
    told: list[tuple[int, int]] = []
    healed = train(8, room=2, fails_in_backward=fails_in_backward, on_smaller=lambda *sizes: told.append(sizes))
    asked_for = train(2)
    assert told == [(8, 4), (4, 2)]
    assert healed[0] == asked_for[0]
    assert all(torch.equal(weights, asked_for[1][name]) for name, weights in healed[1].items())


def test_healing_in_the_middle_of_an_epoch_keeps_the_loss_curve() -> None:
    class Later(Narrow):
        def forward(self, X: Tensor) -> Tensor:
            self.room = 1000 if self.seen < 6 else 4  # from the second epoch's third batch on
            return super().forward(X)

    model = Later(1000)
    trained = accumulation(model, 8)
    losses = [trained.train(iter(batches(*SIZES)), model, CPU) for _ in range(3)]
    assert trained.micro_batch == 4
    assert losses == pytest.approx(train(8)[0], abs=1e-6)


class Restless(nn.Module):
    """Batch norm and dropout, which a failed pass has already moved when it fails."""

    def __init__(self, room: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        self.room = room

    def forward(self, X: Tensor) -> Tensor:
        pred: Tensor = self.network(X)
        if len(X) > self.room:
            raise Full
        return pred


def test_a_failed_pass_leaves_no_trace_in_running_averages_and_random_numbers() -> None:
    states = []
    for micro_batch, room in ((8, 4), (4, 1000)):
        model = Restless(room)
        torch.manual_seed(1)
        accumulation(model, micro_batch).train(iter(batches(8, 8, 5)), model, CPU)
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert states[0]["network.2.num_batches_tracked"] == 6


def test_no_part_is_smaller_than_the_network_takes() -> None:
    seen: list[int] = []

    class Watching(Narrow):
        def forward(self, X: Tensor) -> Tensor:
            seen.append(len(X))
            return super().forward(X)

    model = Watching(1000)
    accumulation(model, 2, least=2).train(iter(batches(8, 3)), model, CPU)
    assert seen == [2, 2, 2, 2, 3]


def test_the_parts_of_a_batch_are_even() -> None:
    seen: list[int] = []

    class Watching(Narrow):
        def forward(self, X: Tensor) -> Tensor:
            seen.append(len(X))
            return super().forward(X)

    model = Watching(1000)
    accumulation(model, 4).train(iter(batches(8, 5)), model, CPU)
    assert seen == [4, 4, 3, 2]


def test_a_network_that_cannot_take_one_picture_says_so() -> None:
    with pytest.raises(OutOfMemory):
        train(8, room=0)


def test_pictures_that_do_not_fit_say_so_and_end_no_epoch_early() -> None:
    def failing() -> Iterator[Any]:
        yield from batches(8)
        raise Full

    model = Narrow(1000)
    with pytest.raises(OutOfMemory, match="pictures of one batch"):
        accumulation(model, 8).train(failing(), model, CPU)


def test_a_step_that_was_taken_half_is_never_taken_again() -> None:
    model = Narrow(1000)
    trained = accumulation(model, 8, plain_sgd=True, in_backward=True)
    first = next(model.network.parameters())
    calls = 0

    def fail_later(_gradient: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:  # by then the last layer has taken its step
            raise Full

    first.register_hook(fail_later)  # type: ignore[no-untyped-call]
    with pytest.raises(OutOfMemory):
        trained.train(iter(batches(8, 8)), model, CPU)


def test_other_errors_pass_through() -> None:
    model = Narrow(1000)
    with pytest.raises(RuntimeError, match="shapes"):
        accumulation(model, 8).train(iter([(torch.rand(2, 1, 3, 3), torch.zeros(2, dtype=torch.int64))]), model, CPU)


def test_the_average_counts_every_sample_once_however_often_a_batch_began_anew() -> None:
    (loss,), _ = train(8, room=2, epochs=1)
    model = Narrow(1000)
    expected, samples = 0.0, 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for X, y in batches(*SIZES):
        batch_loss = nn.functional.cross_entropy(model(X), y)
        expected, samples = expected + batch_loss.item() * len(X), samples + len(X)
        optimizer.zero_grad()
        batch_loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss == pytest.approx(expected / samples, abs=1e-6)
    assert math.isfinite(loss)
