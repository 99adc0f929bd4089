"""The learning rate over a training: torch's schedulers, and a linear warm-up on top of them.

A scheduler works out a rate from the one before, so it must not see what the warm-up makes of it. It gets an optimizer
of its own, which trains nothing and only holds the schedule's rate; the real one gets that rate times the warm-up's
share.
"""

import math
from collections.abc import Mapping
from typing import Any

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

from worker.jobs.spec import LOWER_IS_BETTER, Cosine, MultiStep, OneCycle, Plateau, StepDecay
from worker.jobs.spec import Schedule as Spec


class Schedule:
    """The learning rate over a training: torch's schedulers, stepped at the right moments.

    In the warm-up's step k of n, counted from 0, the rate is the schedule's times (k + 1) / n. The schedule counts
    its epochs from the start of the training, not from the end of the warm-up.
    """

    def __init__(self, spec: Spec, optimizer: Optimizer, *, epochs: int, steps_per_epoch: int) -> None:
        """`optimizer`: with the rate that the schedule starts from, or has as its peak."""
        self._spec, self._optimizer = spec, optimizer
        self._holder = SGD([torch.zeros(1)], self.lr)
        self._scheduler = _scheduler(spec, self._holder, epochs, steps_per_epoch)
        self._holder.step()  # a scheduler warns when there was none before its own
        self._steps = 0
        one_cycle = isinstance(spec, OneCycle)
        self._warm_up = 0 if one_cycle else (spec.warmup_epochs or 0) * steps_per_epoch
        self._changing = epochs * steps_per_epoch if one_cycle else self._warm_up  # steps that have rates of their own
        self._set_rate()

    @property
    def lr(self) -> float:
        """The rate of the next step."""
        rate: float = self._optimizer.param_groups[0]["lr"]
        return rate

    def step_done(self) -> None:
        """After every step of the optimizer."""
        self._steps += 1
        if self._steps < self._changing:
            if isinstance(self._scheduler, OneCycleLR):
                self._scheduler.step()
            self._set_rate()

    def epoch_done(self, metrics: Mapping[str, float | None]) -> None:
        """After every epoch. `metrics`: by their names; one that is missing, None or NaN has not got better."""
        if isinstance(self._scheduler, ReduceLROnPlateau) and isinstance(self._spec, Plateau):
            value = metrics.get(self._spec.metric)
            self._scheduler.step(math.nan if value is None else value)
        elif self._scheduler is not None and not isinstance(self._scheduler, OneCycleLR):
            self._scheduler.step()
        self._set_rate()

    def state_dict(self) -> dict[str, Any]:
        """Plain types only."""
        scheduler = self._scheduler.state_dict() if self._scheduler else {}
        scheduler.pop("milestones", None)  # a Counter, and known from the spec
        return {"steps": self._steps, "rate": self._holder.param_groups[0]["lr"], "scheduler": scheduler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, and sets the optimizer's rate."""
        self._steps = state["steps"]
        self._holder.param_groups[0]["lr"] = state["rate"]
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        self._set_rate()

    def _set_rate(self) -> None:
        rate = self._holder.param_groups[0]["lr"]
        if self._steps < self._warm_up:
            rate *= (self._steps + 1) / self._warm_up
        for group in self._optimizer.param_groups:
            group["lr"] = rate


def _scheduler(spec: Spec, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> LRScheduler | None:
    match spec:
        case StepDecay():
            return StepLR(optimizer, spec.every, spec.gamma)
        case MultiStep():
            return MultiStepLR(optimizer, spec.milestones, spec.gamma)
        case Cosine():
            return CosineAnnealingLR(optimizer, epochs, spec.min_lr)
        case Plateau():
            return _plateau(spec, optimizer)
        case OneCycle():
            return _one_cycle(spec, optimizer, epochs, steps_per_epoch)
    return None


def _plateau(spec: Plateau, optimizer: Optimizer) -> ReduceLROnPlateau:
    """Whatever is better counts as an improvement, as in early stopping: torch's relative threshold would take a
    falling R2 below 0 for one.
    """
    return ReduceLROnPlateau(
        optimizer,
        "min" if spec.metric in LOWER_IS_BETTER else "max",
        factor=spec.gamma,
        patience=spec.patience,
        threshold=0.0,
        min_lr=spec.min_lr,
        eps=0.0,  # rates below torch's 1e-8 fall too
    )


def _one_cycle(spec: OneCycle, optimizer: Optimizer, epochs: int, steps_per_epoch: int) -> OneCycleLR:
    share = 0.3 if spec.warmup_epochs is None else spec.warmup_epochs / epochs
    steps = epochs * steps_per_epoch
    if share * steps == 1:
        share = math.nextafter(share, 0)  # torch would divide by 0; so the training begins at the peak
    return OneCycleLR(
        optimizer,
        max_lr=optimizer.param_groups[0]["lr"],
        total_steps=steps,
        pct_start=share,
        cycle_momentum=False,
    )
