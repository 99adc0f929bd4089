import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.worker.training.making import CPU, accumulation, batches, stepper
from worker.jobs.spec import EMA, SGD, Spec
from worker.networks.mlp import mlp
from worker.training import optim

OPTIMIZERS: dict[str, tuple[dict[str, Any], Any]] = {
    "sgd": ({"lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True),
    ),
    "adam": (
        {"name": "adam", "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, lr=1e-3, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.01, fused=True),
    ),
    "adamw": (
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    ),
    "rmsprop": (
        {"name": "rmsprop", "alpha": 0.9, "momentum": 0.5, "weight_decay": 0.01},
        lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9, momentum=0.5, weight_decay=0.01),
    ),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(16, [8], 3, 0.0)


def hand_written(model: nn.Module, optimizer: Any, *, clip: float | None = None, epochs: int = 3) -> None:
    for _ in range(epochs):
        for X, y in batches(8, 8, 5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()


def train(model: nn.Module, spec: Spec, epochs: int = 3, **more: Any) -> None:
    trained = accumulation(model, 8, spec, **more)
    for _ in range(epochs):
        trained.train(iter(batches(8, 8, 5)), model, CPU)


def equal(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.1])
def test_each_optimizer_gives_the_weights_of_a_hand_written_loop_to_the_bit(name: str, clip: float | None) -> None:
    fields, theirs = OPTIMIZERS[name]
    spec = Spec.model_validate({"optimizer": fields})
    ours, other = network(), network()
    train(ours, spec, clip=clip)
    hand_written(other, theirs(other.parameters()), clip=clip)
    assert equal(ours, other)
    assert not equal(ours, network())


def test_steps_in_backward_give_the_same_bits_as_steps_after_it() -> None:
    spec = Spec.model_validate({"optimizer": {"lr": 0.1}})
    early, late = network(), network()
    train(early, spec, in_backward=True)
    train(late, spec)
    assert equal(early, late)


def test_a_step_in_backward_leaves_no_gradient_to_step_with_again() -> None:
    model = network()
    steps = stepper(model, Spec(), in_backward=True)
    (X, y), *_ = batches(8)
    for is_first in (True, False):
        before = copy.deepcopy(model)
        nn.functional.cross_entropy(model(X), y).backward()  # type: ignore[no-untyped-call]
        assert all((p.grad is not None) == is_first for p in model.parameters())
        assert equal(model, before) == is_first
        steps.step()
        steps.zero_grad()
        assert not equal(model, before)


@pytest.mark.parametrize(("fields", "plain"), [({}, True), ({"momentum": 0.9}, False), ({"weight_decay": 0.1}, False)])
def test_only_a_step_along_the_gradient_is_plain(fields: dict[str, float], plain: bool) -> None:
    assert optim.is_plain_sgd(SGD(**fields)) == plain  # type: ignore[arg-type]


def test_the_average_of_the_weights_is_exponential() -> None:
    model = network()
    average = optim.average_of(model, EMA(decay=0.9))
    expected = None
    spec = Spec.model_validate({"optimizer": {"lr": 0.1}})
    steps = stepper(model, spec, average=average)
    for X, y in batches(8, 8, 8):
        nn.functional.cross_entropy(model(X), y).backward()  # type: ignore[no-untyped-call]
        steps.step()
        steps.zero_grad()
        now = next(model.parameters()).detach().clone()
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    assert expected is not None
    averaged = next(average.module.parameters())
    assert torch.allclose(averaged, expected, atol=1e-7)
    assert not torch.equal(averaged, next(model.parameters()))


def test_the_gradients_norm_is_that_before_clipping_and_none_before_the_first_step() -> None:
    model = network()
    (X, y), *_ = batches(8)
    steps = stepper(model, Spec(), clip=1e-3)
    assert steps.gradient_norm() is None
    nn.functional.cross_entropy(model(X), y).backward()  # type: ignore[no-untyped-call]
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    steps.step()
    assert steps.gradient_norm() == pytest.approx(float(expected), rel=1e-5)
    steps.begin()
    assert steps.gradient_norm() is None


def test_a_scaled_loss_gives_the_steps_of_one_that_is_not() -> None:
    spec = Spec.model_validate({"optimizer": {"lr": 0.1, "momentum": 0.9}})
    scaled, plain = network(), network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(scaled, spec, scaler=scaler)
    train(plain, spec)
    for a, b in zip(scaled.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert scaler.get_scale() == 2.0**10
