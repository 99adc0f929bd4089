"""The tutorial's two loops. Progress, stopping and timing come in with the dataloader; see `progress.py`.

https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

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
def test_loop(dataloader: Iterable[Batch], model: nn.Module, loss_fn: LossFn) -> tuple[float, float]:
    """One pass over the test pictures. Returns the loss averaged over samples, and the accuracy (0 to 1)."""
    model.eval()
    total_loss, correct, samples = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64), 0
    for X, y in dataloader:
        pred = model(X)
        total_loss = total_loss + loss_fn(pred, y) * len(X)
        correct = correct + (pred.argmax(1) == y).sum()
        samples += len(X)
    return float(total_loss) / samples, int(correct) / samples
