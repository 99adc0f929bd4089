"""The tutorial's two loops. Progress, stopping and timing come in with the dataloader (`progress.py`), micro-batches
too (`accumulation.py`); precision comes in with the model, clipping and averaging with the optimizer.

https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from .scores import Scores

Batch = tuple[Tensor, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]


class AveragingLoss(Protocol):
    """A loss that remembers its average over the samples it saw."""

    def __call__(self, pred: Tensor, y: Tensor, /) -> Tensor: ...

    def average(self) -> float: ...


class Steps(Protocol):
    """Whatever can be used like an optimizer."""

    def step(self) -> object: ...

    def zero_grad(self) -> None: ...


def train_loop(dataloader: Iterable[Batch], model: nn.Module, loss_fn: AveragingLoss, optimizer: Steps) -> float:
    """One epoch of training. Returns the loss averaged over samples, as seen before each step."""
    model.train()
    for X, y in dataloader:
        # Compute prediction and loss
        pred = model(X)
        loss = loss_fn(pred, y)

        # Backpropagation
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return loss_fn.average()


@torch.no_grad()
def test_loop(dataloader: Iterable[Batch], model: nn.Module, loss_fn: AveragingLoss, scores: Scores) -> float:
    """One pass over the test pictures, which `scores` sees too. Returns the loss averaged over samples."""
    model.eval()
    for X, y in dataloader:
        pred = model(X)
        loss_fn(pred, y)
        scores.update(pred, y)
    return loss_fn.average()
