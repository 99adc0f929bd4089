"""Batches that go through the network in parts: asked for, or because memory does not suffice.

The gradients of the parts add up to that of the batch: each counts with its share of the batch's samples (or of their
class weights), the short last batch's too, so the step is the same up to rounding. Batch norm sees the parts, which
are as even as can be and at least `least`: of a single picture it may not be able to take the variance.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from worker.jobs.errors import OutOfMemory

from . import memory
from .loops import Batch, train_loop
from .losses import AverageLoss
from .optim import Stepper


class Accumulation:
    """Runs `train_loop` over micro-batches, which get smaller when they do not fit.

    After a failed allocation the batch at work begins anew in halves of the parts before: the training goes on as if
    it had never been larger.
    """

    def __init__(
        self,
        micro_batch: int,
        loss_fn: AverageLoss,
        optimizer: Stepper,
        *,
        weight: Tensor | None = None,
        least: int = 1,
        on_smaller: Callable[[int, int], None],
    ) -> None:
        """`weight`: of each class. `least`: the fewest pictures that the network takes at once.

        `on_smaller` is told the size that did not fit and the new one.
        """
        self.micro_batch, self._least = micro_batch, least
        self._loss_fn, self._optimizer, self._weight, self._on_smaller = loss_fn, optimizer, weight, on_smaller
        self._unfinished: Batch | None = None

    def train(self, batches: Iterator[Batch], model: nn.Module, device: torch.device) -> float:
        """One epoch. Returns the average loss. Raises OutOfMemory when not even one picture fits."""
        self._loss_fn.begin()
        self._optimizer.begin()
        self._unfinished = None
        while True:
            try:
                return train_loop(self._feed(batches), model, self._loss_fn, self._optimizer)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                self._shrink()
            memory.release(device)  # only now: the error held on to the tensors

    def _feed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while (batch := self._unfinished or _next(batches)) is not None:
            self._unfinished = batch
            yield from self._parts(*batch)
            self._unfinished = None
            self._loss_fn.commit()

    def _parts(self, X: Tensor, y: Tensor) -> Iterator[Batch]:
        if len(X) <= self.micro_batch:
            self._loss_fn.be_whole()
            self._optimizer.is_last = True
            yield X, y
            return
        whole = self._mass(y)
        count = max(1, min(math.ceil(len(X) / self.micro_batch), len(X) // self._least))
        for part, targets in zip(X.tensor_split(count), y.tensor_split(count), strict=True):
            count -= 1
            self._loss_fn.be_part(self._mass(targets) / whole, len(X))
            self._optimizer.is_last = count == 0
            yield part, targets

    def _mass(self, y: Tensor) -> float:
        """What the mean loss of these samples was divided by."""
        if self._weight is None or y.is_floating_point():
            return len(y)
        return float(self._weight[y].sum())

    def _shrink(self) -> None:
        if self._unfinished is None or self._optimizer.half_done:
            raise OutOfMemory("There is not enough memory for the batch itself, or for the optimizer.")
        tried = min(self.micro_batch, len(self._unfinished[0]))
        if tried <= self._least:
            raise OutOfMemory
        self.micro_batch = math.ceil(tried / 2)
        self._loss_fn.discard()
        self._optimizer.discard()
        self._on_smaller(tried, self.micro_batch)


def _next(batches: Iterator[Batch]) -> Batch | None:
    """Raises OutOfMemory: a generator that has raised is finished, so there is nothing to go on with."""
    try:
        return next(batches, None)
    except (RuntimeError, MemoryError) as error:
        if memory.is_out_of_memory(error):
            raise OutOfMemory("There is not enough memory for the pictures of one batch.") from error
        raise
