"""From a spec's optimizer to torch's, and what happens at each step beside the step itself."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn, optim
from torch.amp import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from worker.jobs.spec import EMA, SGD, Adam, Optimizer

from .schedules import Schedule

_MEASURE_STEPS: Final = 50  # every so many the gradient's norm is measured: at each it would cost 8 % of the MLP


def optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Fused where torch has it."""
    if isinstance(spec, SGD):
        return optim.SGD(
            parameters,
            spec.lr,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    if isinstance(spec, Adam):
        kind = optim.Adam if spec.name == "adam" else optim.AdamW
        return kind(parameters, spec.lr, spec.betas, spec.eps, spec.weight_decay, fused=True)
    return optim.RMSprop(
        parameters, spec.lr, alpha=spec.alpha, eps=spec.eps, weight_decay=spec.weight_decay, momentum=spec.momentum
    )


def is_plain_sgd(spec: Optimizer) -> bool:
    """Whether a step is `weight -= lr * gradient` and nothing else."""
    return isinstance(spec, SGD) and not spec.momentum and not spec.weight_decay


def average_of(model: nn.Module, ema: EMA) -> AveragedModel:
    """Whose `module` holds the averages, buffers included."""
    average = get_ema_multi_avg_fn(ema.decay)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class Stepper:
    """What `train_loop` uses as its optimizer: one step a batch, with all that belongs to it.

    A plain SGD takes each weight's step as soon as backward has its gradient, while that is in the processor's cache:
    8 % less time for the MLP than torch's fused SGD. Others gain nothing by it (a fused Adam loses 15 %).
    """

    def __init__(
        self,
        optimizer: optim.Optimizer,
        model: nn.Module,
        schedule: Schedule,
        *,
        plain_sgd: bool,
        in_backward: bool = False,
        clip: float | None = None,
        average: AveragedModel | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        self._optimizer, self._model, self._schedule = optimizer, model, schedule
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._clip, self._average, self._scaler = clip, average, scaler
        self._plain_sgd, self.in_backward = plain_sgd, in_backward
        self.is_last = True  # of its batch's micro-batches
        self.half_done = False  # it cannot begin anew: some weights may have taken it
        self.begin()
        if in_backward:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """An epoch begins."""
        self._steps, self._norms = 0, list[Tensor]()
        self._steps_early = False  # the first step shows that memory suffices before one is taken in pieces

    def step(self) -> None:
        if not self.is_last:
            return
        self.half_done = True  # the gradients are about to be changed, and the weights
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        self._look_at_gradient()
        self._take_step()
        self._schedule.step_done()
        if self._average is not None:
            self._average.update_parameters(self._model)
        self.half_done = False
        self._steps += 1
        self._steps_early = self._is_early()

    def zero_grad(self) -> None:
        if self.is_last:
            self._forget_gradients()

    def discard(self) -> None:
        """The batch begins anew, and goes through in parts from now on."""
        self._forget_gradients()
        self.in_backward = self._steps_early = False

    def state_dict(self) -> dict[str, Any]:
        """What the epoch has had so far, between two batches."""
        return {"steps": self._steps, "norms": [float(norm) for norm in self._norms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """After `begin`."""
        self._steps, self._norms = state["steps"], [torch.tensor(norm) for norm in state["norms"]]
        self._steps_early = self._is_early()

    def gradient_norm(self) -> float | None:
        """L2 norm over all weights before clipping, averaged over every 50th step of the epoch.

        None if it never was finite.
        """
        finite = [norm for norm in map(float, self._norms) if math.isfinite(norm)]
        return sum(finite) / len(finite) if finite else None

    def _is_early(self) -> bool:
        return self.in_backward and self._steps % _MEASURE_STEPS != 0

    def _look_at_gradient(self) -> None:
        measures = self._steps % _MEASURE_STEPS == 0
        if not measures and self._clip is None:
            return
        norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if measures:
            self._norms.append(norm)
        if self._clip is not None:
            clip_grads_with_norm_(self._parameters, self._clip, norm)

    def _take_step(self) -> None:
        if self._scaler is not None:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        elif self._plain_sgd:
            for parameter in self._parameters:
                if parameter.grad is not None:
                    self._descend(parameter, parameter.grad)
        else:
            self._optimizer.step()

    def _on_gradient(self, parameter: Tensor) -> None:
        if self._steps_early and (gradient := parameter.grad) is not None:
            self.half_done = True
            self._descend(parameter, gradient)
            parameter.grad = None

    def _descend(self, parameter: Tensor, gradient: Tensor) -> None:
        parameter.data.add_(gradient, alpha=-self._optimizer.param_groups[0]["lr"])

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
