"""Batches that go through the network in parts: asked for, or because memory does not suffice.

The gradients of the parts add up to that of the batch: each counts with its share of the batch's samples (or of their
class weights), the short last batch's too, so the step is the same up to rounding. Batch norm sees the parts, which
are as even as can be and at least `least`: of a single picture it may not be able to take the variance.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worker.jobs.errors import OutOfMemory
from worker.jobs.spec import Spec

from . import memory, randomness
from .loops import Batch, train_loop
from .losses import AverageLoss
from .optim import Stepper


def micro_batch(spec: Spec, train_count: int) -> int:
    """How many pictures at once the spec asks for."""
    return math.ceil(min(spec.batch_size, train_count) / spec.accumulation)


class Accumulation:
    """Runs `train_loop` over micro-batches, which get smaller when they do not fit.

    After a failed allocation the batch at work begins anew in halves of the parts before, with the random numbers and
    running averages that it began with: the training goes on as if it had never been larger.
    """

    def __init__(
        self,
        micro_batch: int,
        loss_fn: AverageLoss,
        optimizer: Stepper,
        *,
        least: int = 1,
        on_smaller: Callable[[int, int], None],
    ) -> None:
        """`least`: the fewest pictures that the network takes at once.

        `on_smaller` is told the size that did not fit and the new one.
        """
        self.micro_batch, self._least = micro_batch, least
        self._loss_fn, self._optimizer, self._on_smaller = loss_fn, optimizer, on_smaller
        self._unfinished: Batch | None = None

    def train(
        self,
        batches: Iterator[Batch],
        model: nn.Module,
        device: torch.device,
        *,
        begun: Mapping[str, Any] | None = None,
        on_part: Callable[[], None] = lambda: None,
    ) -> float:
        """One epoch, or the rest of one that has `begun`. Returns the average loss.

        `on_part` is called whenever a part of a batch is done. Raises OutOfMemory when not even one picture fits.
        """
        self._loss_fn.begin()
        self._optimizer.begin()
        if begun is not None:
            self._loss_fn.load_state_dict(begun["loss"])
            self._optimizer.load_state_dict(begun["stepper"])
        self._on_part = on_part
        self._unfinished, self._before = None, Before(model, device)
        while True:
            try:
                return train_loop(self._feed(batches), model, self._loss_fn, self._optimizer)
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
            memory.release(device)  # only now: the error held on to the tensors
            self._shrink()

    def state_dict(self) -> dict[str, Any]:
        """What the epoch has had so far, between two batches: for `train`."""
        return {"loss": self._loss_fn.state_dict(), "stepper": self._optimizer.state_dict()}

    def _feed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        while (batch := self._unfinished or _next(batches)) is not None:
            self._unfinished = batch
            self._before.remember()
            yield from self._parts(*batch)
            self._unfinished = None
            self._loss_fn.commit()

    def _parts(self, X: Tensor, y: Tensor) -> Iterator[Batch]:
        count = max(1, min(math.ceil(len(X) / self.micro_batch), len(X) // self._least))
        whole = self._loss_fn.mass(y) if count > 1 else 0.0
        for part, targets in zip(X.tensor_split(count), y.tensor_split(count), strict=True):
            count -= 1
            self._loss_fn.share = self._loss_fn.mass(targets) / whole if whole else 1.0
            self._optimizer.is_last = count == 0
            yield part, targets
            if count:
                self._on_part()

    def _shrink(self) -> None:
        if self._unfinished is None or self._optimizer.half_done:
            raise OutOfMemory(
                "There is not enough memory for the batch itself, or for the optimizer.",
                hint="Set `accumulation`, to have parts from the start, or take a smaller `batch_size`.",
            )
        tried = min(self.micro_batch, len(self._unfinished[0]))
        if tried <= self._least:
            raise OutOfMemory(hint="Take a smaller network or `image_size`, or allow more memory.")
        self.micro_batch = math.ceil(tried / 2)
        self._loss_fn.discard()
        self._optimizer.discard()
        self._before.restore()
        self._on_smaller(tried, self.micro_batch)


class Before:
    """What a failed pass through the network has changed already: random generators, and batch norm's averages."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._buffers, self._device = list(model.buffers()), device

    def remember(self) -> None:
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._random = randomness.state(self._device)

    def restore(self) -> None:
        for buffer, kept in zip(self._buffers, self._kept, strict=True):
            buffer.copy_(kept)
        randomness.set_state(self._random, self._device)


def _next(batches: Iterator[Batch]) -> Batch | None:
    """Raises OutOfMemory: a generator that has raised is finished, so there is nothing to go on with."""
    try:
        return next(batches, None)
    except (RuntimeError, MemoryError) as error:
        if memory.is_out_of_memory(error):
            raise OutOfMemory(
                "There is not enough memory for the pictures of one batch.", hint="Take a smaller `batch_size`."
            ) from error
        raise
