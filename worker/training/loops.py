"""The tutorial's two loops. Progress, stopping and timing come in with the dataloader; see `progress.py`.

https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .scores import Scores

Batch = tuple[Tensor, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]


def train_loop(dataloader: Iterable[Batch], model: nn.Module, loss_fn: LossFn, optimizer: Optimizer) -> float:
    """One epoch of training. Returns the loss averaged over samples, as seen before each step."""
    model.train()
    total_loss, samples = torch.zeros((), dtype=torch.float64), 0
    for X, y in dataloader:
        # Compute prediction and loss
        pred = model(X)
        loss = loss_fn(pred, y)

        # Backpropagation
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

        total_loss = total_loss + loss.detach() * len(X)  # no .item(): a GPU need not wait
        samples += len(X)
    return float(total_loss) / samples


@torch.no_grad()
def test_loop(dataloader: Iterable[Batch], model: nn.Module, loss_fn: LossFn, scores: Scores) -> float:
    """One pass over the test pictures, which `scores` sees too. Returns the loss averaged over samples."""
    model.eval()
    total_loss, samples = torch.zeros((), dtype=torch.float64), 0
    for X, y in dataloader:
        pred = model(X)
        total_loss = total_loss + loss_fn(pred, y) * len(X)
        scores.update(pred, y)
        samples += len(X)
    return float(total_loss) / samples
