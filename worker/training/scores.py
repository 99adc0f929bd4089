"""What the test loop measures beside the loss: right answers for classes, distances for numbers."""

from typing import Protocol

import torch
from torch import Tensor


class Scores(Protocol):
    def update(self, pred: Tensor, y: Tensor) -> None:
        """Adds a batch. Sums stay on the device: a GPU need not wait."""

    def compute(self) -> dict[str, float]:
        """The metrics by their names in a row."""


class Accuracy:
    """The share of pictures whose largest logit is their class's: 0 to 1."""

    def __init__(self) -> None:
        self._correct, self._samples = torch.zeros((), dtype=torch.int64), 0

    def update(self, pred: Tensor, y: Tensor) -> None:
        self._correct = self._correct + (pred.argmax(1) == y).sum()
        self._samples += len(y)

    def compute(self) -> dict[str, float]:
        return {"test_accuracy": int(self._correct) / self._samples}


class Distances:
    """Mean absolute error, and the coefficient of determination R2: 1 is perfect, 0 is what always saying the mean
    of the test pictures gives. Both are averages over the targets.
    """

    def __init__(self) -> None:
        self._samples = 0
        self._first: Tensor | None = None  # sums are taken about it, so that a large mean costs no digits
        self._absolute = self._squared = self._sum = self._sum_of_squares = torch.zeros((), dtype=torch.float64)

    def update(self, pred: Tensor, y: Tensor) -> None:
        pred, y = pred.double(), y.double()
        self._absolute = self._absolute + (pred - y).abs().sum(0)
        self._squared = self._squared + (pred - y).square().sum(0)
        self._first = y[0] if self._first is None else self._first
        self._sum = self._sum + (y - self._first).sum(0)
        self._sum_of_squares = self._sum_of_squares + (y - self._first).square().sum(0)
        self._samples += len(y)

    def compute(self) -> dict[str, float]:
        about_the_mean = self._sum_of_squares - self._sum.square() / self._samples
        r2 = 1 - self._squared / about_the_mean  # not finite where all test pictures have the same number
        return {"test_mae": float((self._absolute / self._samples).mean()), "test_r2": float(r2.mean())}
