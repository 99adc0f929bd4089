import io
import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from worker.jobs.spec import Constant, Cosine, MultiStep, OneCycle, Plateau, StepDecay
from worker.jobs.spec import Schedule as Spec
from worker.training.schedules import Schedule

EPOCHS, STEPS, LR = 8, 3, 0.3
LOSSES = [3.0, 2.0, 2.5, 2.1, None, 1.9, 1.9, 2.0]
COSINE, MULTISTEP = Cosine(name="cosine", min_lr=0.01), MultiStep(name="multistep", milestones=[2, 3, 6], gamma=0.3)
STEP, ONE_CYCLE = StepDecay(name="step", every=3, gamma=0.5), OneCycle(name="one_cycle")
PLATEAU = Plateau(name="plateau", patience=1, gamma=0.5)
ALL: list[Spec] = [Constant(), STEP, MULTISTEP, COSINE, PLATEAU, ONE_CYCLE]
BY_EPOCH = ALL[:-1]

each = pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.name)
each_by_epoch = pytest.mark.parametrize("spec", BY_EPOCH, ids=lambda spec: spec.name)


def optimizer(lr: float = LR) -> SGD:
    return SGD([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)]}], lr)


def schedule(spec: Spec, *, lr: float = LR, epochs: int = EPOCHS, steps: int = STEPS) -> Schedule:
    return Schedule(spec, optimizer(lr), epochs=epochs, steps_per_epoch=steps)


def rates(of: Schedule, epochs: Iterable[int] = range(EPOCHS), steps: int = STEPS) -> list[float]:
    """The rate of every step. The optimizer steps unseen, as one does inside backward."""
    seen = []
    for epoch in epochs:
        for _ in range(steps):
            seen.append(of.lr)
            of.step_done()
        of.epoch_done({"train_loss": 1.0, "test_loss": LOSSES[epoch % len(LOSSES)]})
    return seen


def torchs(make: Callable[[Optimizer], LRScheduler], *, by_step: bool = False) -> list[float]:
    """The rate of every step, with nothing but torch's scheduler."""
    plain = SGD([torch.zeros(1)], LR)
    scheduler = make(plain)
    seen = []
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            seen.append(plain.param_groups[0]["lr"])
            plain.step()
            if by_step:
                scheduler.step()
        if not by_step:
            scheduler.step()
    return seen


def fallen(spec: Plateau, values: list[float | None], lr: float = LR) -> list[float]:
    """The rate after each epoch with these values of the metric."""
    made = schedule(spec, lr=lr)
    seen = []
    for value in values:
        made.step_done()
        made.epoch_done({"train_loss": 0.0, spec.metric: value})
        seen.append(made.lr)
    return seen


def with_warm_up(spec: Spec, epochs: int) -> Spec:
    return spec.model_copy(update={"warmup_epochs": epochs})


def test_a_constant_rate_stays() -> None:
    assert rates(schedule(Constant())) == [LR] * (EPOCHS * STEPS)


@pytest.mark.parametrize(
    ("spec", "make"),
    [
        (STEP, lambda plain: StepLR(plain, 3, 0.5)),
        (MULTISTEP, lambda plain: MultiStepLR(plain, [2, 3, 6], 0.3)),
        (COSINE, lambda plain: CosineAnnealingLR(plain, EPOCHS, 0.01)),
    ],
    ids=["step", "multistep", "cosine"],
)
def test_rates_by_epoch_are_those_of_torchs_scheduler_to_the_bit(
    spec: Spec, make: Callable[[Optimizer], LRScheduler]
) -> None:
    assert rates(schedule(spec)) == torchs(make)


@pytest.mark.parametrize(("warm_up", "share"), [(None, 0.3), (2, 0.25), (0, 0.0)])
def test_one_cycle_is_torchs_step_by_step(warm_up: int | None, share: float) -> None:
    spec = OneCycle(name="one_cycle", warmup_epochs=warm_up)
    total = EPOCHS * STEPS

    def make(plain: Optimizer) -> LRScheduler:
        return OneCycleLR(plain, LR, total_steps=total, pct_start=share, cycle_momentum=False)

    assert rates(schedule(spec)) == torchs(make, by_step=True)


def test_rates_fall_when_the_spec_says() -> None:
    """Which torch's own could only repeat."""
    by_epoch = slice(None, None, STEPS)
    assert rates(schedule(STEP))[by_epoch] == pytest.approx([LR] * 3 + [LR / 2] * 3 + [LR / 4] * 2)
    falls = [1, 1, 0.3, 0.09, 0.09, 0.09, 0.027, 0.027]
    assert rates(schedule(MULTISTEP))[by_epoch] == pytest.approx([LR * fall for fall in falls])
    cosine = [0.01 + (LR - 0.01) * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2 for epoch in range(EPOCHS)]
    assert rates(schedule(COSINE))[by_epoch] == pytest.approx(cosine)


def test_cosine_has_reached_its_least_rate_after_the_last_epoch() -> None:
    made = schedule(COSINE)
    rates(made)
    assert made.lr == pytest.approx(0.01)


@pytest.mark.parametrize(("warm_up", "peak"), [(1, 2), (4, 11)])
def test_one_cycle_rises_to_the_optimizers_rate_and_falls_to_nearly_nothing(warm_up: int, peak: int) -> None:
    seen = rates(schedule(OneCycle(name="one_cycle", warmup_epochs=warm_up)))
    assert seen[peak] == max(seen) == pytest.approx(LR)
    assert seen[: peak + 1] == sorted(seen[: peak + 1])
    assert seen[peak:] == sorted(seen[peak:], reverse=True)
    assert seen[0] == pytest.approx(LR / 25)
    assert seen[-1] == pytest.approx(LR / 25 / 1e4)


@pytest.mark.parametrize("warm_up", [None, 0, 1, 2])
def test_one_cycle_of_a_single_step_an_epoch_takes_any_warm_up(warm_up: int | None) -> None:
    for epochs in range(1 + (warm_up or 0), 60):
        made = schedule(OneCycle(name="one_cycle", warmup_epochs=warm_up), epochs=epochs, steps=1)
        seen = rates(made, range(epochs), steps=1)
        assert all(0 < rate <= LR for rate in seen)
        if warm_up == 1:
            assert seen[0] == pytest.approx(LR)


def test_more_steps_than_foreseen_leave_one_cycle_at_its_end() -> None:
    made = finished(ONE_CYCLE)
    made.step_done()
    assert made.lr == rates(schedule(ONE_CYCLE))[-1]


@each_by_epoch
@pytest.mark.parametrize("epochs", [1, 2, EPOCHS])
def test_in_the_warm_up_the_rate_grows_linearly_to_the_schedules(spec: Spec, epochs: int) -> None:
    plain, warm = rates(schedule(spec)), rates(schedule(with_warm_up(spec, epochs)))
    n = epochs * STEPS
    assert warm == [rate * ((k + 1) / n) if k < n else rate for k, rate in enumerate(plain)]
    assert warm[n - 1 :] == plain[n - 1 :]
    assert warm[0] == LR / n


def test_all_groups_of_the_optimizer_have_the_rate_and_nothing_else_of_it_changes() -> None:
    made, untouched = optimizer(), optimizer()
    of = Schedule(with_warm_up(COSINE, 1), made, epochs=EPOCHS, steps_per_epoch=STEPS)
    assert [group["lr"] for group in made.param_groups] == [LR / STEPS] * 2
    rates(of)
    for group, other in zip(made.param_groups, untouched.param_groups, strict=True):
        assert group == other | {"lr": of.lr, "params": group["params"]}


@pytest.mark.parametrize("metric", ["test_loss", "train_loss", "test_mae"])
def test_plateau_is_torchs_where_lower_is_better(metric: Any) -> None:
    values = [3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 0.9, 1.0, 1.0, 1.0]
    plain = SGD([torch.zeros(1)], LR)
    theirs = ReduceLROnPlateau(plain, "min", 0.5, 1)
    expected = []
    for value in values:
        theirs.step(value)
        expected.append(plain.param_groups[0]["lr"])
    spec = Plateau(name="plateau", metric=metric, patience=1, gamma=0.5)
    assert fallen(spec, [*values]) == expected
    assert len(set(expected)) == 3


def test_plateau_takes_an_accuracy_for_better_when_it_is_higher() -> None:
    spec = Plateau(name="plateau", metric="test_accuracy", patience=1, gamma=0.5)
    assert fallen(spec, [0.5, 0.6, 0.7, 0.8]) == [LR] * 4
    assert fallen(spec, [0.8, 0.7, 0.6, 0.5, 0.4]) == [LR, LR, LR / 2, LR / 2, LR / 4]


@pytest.mark.parametrize("metric", ["test_loss", "test_accuracy"])
@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_metric_that_is_missing_is_no_improvement(metric: Any, missing: float | None) -> None:
    spec = Plateau(name="plateau", metric=metric, patience=1, gamma=0.5)
    assert fallen(spec, [1.0, missing, 1.0]) == [LR, LR, LR / 2]
    assert fallen(spec, [missing, missing]) == [LR, LR / 2]
    made = schedule(spec)
    made.epoch_done({})
    made.epoch_done({})
    assert made.lr == LR / 2


def test_a_falling_r2_below_0_is_no_improvement_and_a_small_rise_is_one() -> None:
    spec = Plateau(name="plateau", metric="test_r2", patience=0, gamma=0.5)
    assert fallen(spec, [-10.0, -10.0001, -9.9999]) == [LR, LR / 2, LR / 2]
    assert fallen(spec, [-math.inf, -10.0]) == [LR / 2, LR / 2]


def test_plateau_ends_at_its_least_rate_however_small_the_rates() -> None:
    spec = Plateau(name="plateau", patience=0, gamma=0.1, min_lr=3e-11)
    assert fallen(spec, [1.0] * 5, lr=1e-8) == pytest.approx([1e-8, 1e-9, 1e-10, 3e-11, 3e-11], rel=1e-9)


@each
@pytest.mark.parametrize("warm_up", [0, 2])
def test_a_resumed_schedule_goes_on_with_the_same_rates_to_the_bit(spec: Spec, warm_up: int) -> None:
    spec = with_warm_up(spec, warm_up)
    whole = rates(schedule(spec))
    for done in range(EPOCHS + 1):
        first = schedule(spec)
        before = rates(first, range(done))
        resumed = schedule(spec)
        resumed.load_state_dict(stored(first.state_dict()))
        assert resumed.lr == first.lr
        assert before + rates(resumed, range(done, EPOCHS)) == whole
        assert resumed.state_dict() == finished(spec).state_dict()


def finished(spec: Spec) -> Schedule:
    made = schedule(spec)
    rates(made)
    return made


def stored(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@each
def test_the_state_is_of_plain_types(spec: Spec) -> None:
    def check(value: object) -> None:
        assert type(value) in {dict, list, str, int, float, bool, type(None)}
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(part)

    state = finished(spec).state_dict()
    check(state)
    assert stored(state) == state


@pytest.mark.parametrize("optimizer_first", [True, False])
def test_the_optimizers_own_state_may_be_loaded_before_or_after(optimizer_first: bool) -> None:
    """It has a rate too, which is the same one."""
    spec = with_warm_up(COSINE, 2)
    old, new = optimizer(), optimizer()
    first, resumed = (Schedule(spec, each, epochs=EPOCHS, steps_per_epoch=STEPS) for each in (old, new))
    rates(first, range(1))
    loads = [(new, old), (resumed, first)]
    for to, of in loads if optimizer_first else reversed(loads):
        to.load_state_dict(of.state_dict())  # type: ignore[attr-defined]
    assert rates(resumed, range(1, EPOCHS)) == rates(first, range(1, EPOCHS))
