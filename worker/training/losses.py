"""Losses: from the spec's to torch's, and one that keeps the average of an epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.functional import one_hot

from worker.jobs.errors import Diverged
from worker.jobs.spec import MSE, NLL, CrossEntropy, Loss

from .loops import LossFn

_CHECK_STEPS: Final = 100  # a GPU is asked so seldom whether the loss is still finite: it has to wait for the answer


class SquaredError(nn.MSELoss):
    """Mean squared error; class indices are taken as one-hot targets."""

    def forward(self, pred: Tensor, y: Tensor) -> Tensor:
        if not y.is_floating_point():
            y = one_hot(y, pred.shape[1]).to(pred.dtype)
        return super().forward(pred, y)


def loss_function(loss: Loss, train_counts: Sequence[int], device: torch.device) -> nn.Module:
    """`train_counts`: training pictures of each class, for balanced weights."""
    if isinstance(loss, MSE):
        return SquaredError()
    weights = class_weights(loss, train_counts)
    weight = torch.tensor(weights, device=device) if weights else None
    if isinstance(loss, NLL):
        return nn.NLLLoss(weight)
    return nn.CrossEntropyLoss(weight, label_smoothing=loss.label_smoothing)


def class_weights(loss: CrossEntropy | NLL, train_counts: Sequence[int]) -> list[float] | None:
    """`balanced` gives pictures / (classes * pictures of the class), and 0 to a class without pictures."""
    if loss.class_weights != "balanced":
        return loss.class_weights
    total, classes = sum(train_counts), sum(count > 0 for count in train_counts)
    return [total / (classes * count) if count else 0.0 for count in train_counts]


class AverageLoss:
    """A loss that remembers its average over the samples of an epoch, and refuses to go on when it is not finite.

    Samples count with the weights of their classes, as in the mean that torch's losses take: so the average does not
    depend on how the samples are divided. A part of a batch counts only when the whole batch is done (`commit`).
    """

    def __init__(self, loss_fn: LossFn, device: torch.device, scaler: GradScaler | None = None) -> None:
        self._loss_fn, self._scaler, self._device = loss_fn, scaler, device
        self._weight: Tensor | None = getattr(loss_fn, "weight", None)
        self.share = 1.0  # of its batch, that the next part has in the gradient
        self.begin()

    def begin(self) -> None:
        """Forgets what it saw."""
        self._sum: float | Tensor = 0.0
        self._batch_sum: float | Tensor = 0.0
        self._mass = self._batch_mass = 0.0
        self._batches = 0

    def __call__(self, pred: Tensor, y: Tensor, /) -> Tensor:
        """Raises Diverged: on the CPU at once, on a GPU within 100 batches."""
        mass = self.mass(y)
        if mass == 0:  # all of them are of classes that do not count
            return pred.sum() * 0
        loss = self._loss_fn(pred, y)
        if self._device.type == "cpu":
            self._batch_sum += finite(loss.item()) * mass
        else:
            self._batch_sum = self._batch_sum + loss.detach().double() * mass
        self._batch_mass += mass
        if self.share != 1 or self._scaler is not None:
            loss.register_hook(self._weigh)  # type: ignore[no-untyped-call]  # the value stays what it is
        return loss

    def mass(self, y: Tensor) -> float:
        """What the mean loss of these samples is divided by."""
        if self._weight is None or y.is_floating_point():
            return len(y)
        return float(self._weight[y].sum())

    def commit(self) -> None:
        """The batch is done."""
        self._sum = self._sum + self._batch_sum
        self._mass += self._batch_mass
        self._batches += 1
        self.discard()
        if self._batches % _CHECK_STEPS == 0:
            finite(float(self._sum))

    def discard(self) -> None:
        """The batch begins anew."""
        self._batch_sum, self._batch_mass = 0.0, 0.0

    def state_dict(self) -> dict[str, float]:
        """Between two batches."""
        return {"sum": float(self._sum), "mass": self._mass, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._sum, self._mass, self._batches = state["sum"], state["mass"], int(state["batches"])

    def average(self) -> float:
        """Over samples. Raises Diverged."""
        mass = self._mass + self._batch_mass
        return finite(float(self._sum + self._batch_sum)) / mass if mass else 0.0

    def _weigh(self, gradient: Tensor) -> Tensor:
        share = gradient * self.share
        return share if self._scaler is None else self._scaler.scale(share)


def finite(loss: float) -> float:
    """Raises Diverged."""
    if not math.isfinite(loss):
        raise Diverged(f"The loss became {loss}.")
    return loss
