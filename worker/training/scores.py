"""What the test loop measures beside the loss: right answers for classes, distances for numbers."""

from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch import Tensor

from worker.jobs.answers import STEPS, PictureAnswers
from worker.jobs.report import Pairs, accuracy, macro_f1
from worker.jobs.spec import MSE, Loss

_TOP: Final = 5


class Scores(Protocol):
    def update(self, pred: Tensor, y: Tensor) -> None:
        """Adds a batch. Sums stay on the device: a GPU need not wait."""

    def compute(self) -> dict[str, float]:
        """The metrics by their names in a row."""


class Answers:
    """Which class was taken for which, from logits."""

    def __init__(self, classes: int, probabilities: Callable[[Tensor], Tensor] | None = None) -> None:
        """`probabilities` makes them of logits; without it, how sure an answer is will not be known."""
        self._classes, self._probabilities = classes, probabilities
        self._pairs: list[Tensor] = []  # a number per picture: a matrix of 10,000 classes would take 800 MB
        self._confidences: list[Tensor] = []
        self._in_top5 = torch.zeros((), dtype=torch.int64)

    def update(self, pred: Tensor, y: Tensor) -> None:
        """`pred`: logits, N x classes; `y`: int64 N."""
        predicted = pred.argmax(1)
        self._pairs.append(y * self._classes + predicted)
        if self._probabilities is not None:
            self._confidences.append(self._probabilities(pred.float()).gather(1, predicted[:, None])[:, 0])
        if self._classes > _TOP:
            self._in_top5 = self._in_top5 + _in_top(pred, y).sum()

    def compute(self) -> dict[str, float]:
        """The share of pictures whose largest logit is their class's, and of those where it is among the five largest
        (for more than 5 classes); F1 averaged over the classes. Each is 0 to 1.
        """
        pairs = self.confusion()
        scores = {"test_accuracy": accuracy(pairs), "test_f1": macro_f1(pairs, self._classes)}
        if self._classes > _TOP:
            scores["test_top5_accuracy"] = int(self._in_top5) / sum(pairs.values())
        return scores

    def confusion(self) -> Pairs:
        """How many pictures have each (class, predicted class)."""
        pairs, counts = torch.cat(self._pairs).unique(return_counts=True)  # type: ignore[no-untyped-call]
        return {divmod(pair, self._classes): count for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}

    def picture_by_picture(self) -> PictureAnswers | None:
        """What was answered for each; None where probabilities were not wanted."""
        if self._probabilities is None:
            return None
        pairs, confidences = torch.cat(self._pairs), torch.cat(self._confidences)
        steps = (confidences.nan_to_num(nan=0.0).clamp(0, 1) * STEPS).round().long()
        columns = torch.stack([pairs // self._classes, pairs % self._classes, steps])
        return PictureAnswers(*columns.tolist())  # a GPU is waited for once


def probabilities(logits: Tensor, loss: Loss) -> Tensor:
    """Of each class, N x classes, as a network that was trained with this loss means its logits.

    One that was trained on one-hot targets gives estimates of them, which need not keep to 0..1.
    """
    if isinstance(loss, MSE):
        positive = logits.clamp(min=torch.finfo(logits.dtype).tiny)
        return positive / positive.sum(dim=1, keepdim=True)
    return logits.softmax(dim=1)


def _in_top(pred: Tensor, y: Tensor) -> Tensor:
    """Whether each picture's class has one of its five largest logits: bool N. Of equal logits the first come first,
    as in argmax. NaN is larger than every number, but a class whose own logit it is has none of the largest.
    """
    own, place = pred.gather(1, y[:, None]), torch.arange(pred.shape[1], device=pred.device)
    ahead = ~(pred <= own) | ((pred == own) & (place < y[:, None]))
    return ahead.sum(1) < _TOP


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
