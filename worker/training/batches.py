"""Batches: whole slices of a prepared split, converted on the device. No per-sample Python, no loader processes."""

import math
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from worker.datasets.pictures import Preprocessing, unit
from worker.datasets.source import Split

from .loops import Batch
from .order import Order

_RESIDENT_SHARE: Final = 0.4  # of a GPU's free memory
_TEST_BYTES: Final = 4 * 2**20  # of float pixels in a test batch: they stay in the processor's cache


class Batches:
    """The batches of one epoch: X float32 N x C x H x W in 0..1, y int64 N or float32 N x targets.

    The last may be short. Preprocessing beyond that is done on the parts that go through the network (`FromUnit`).
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        device: torch.device,
        order: Order,
        *,
        augment: Callable[[Tensor, Tensor], Batch] | None = None,
        first: int = 0,
    ) -> None:
        """`first`: how many batches are left out at the beginning, because they are trained."""
        self.split, self.batch_size, self.order, self.first = split, batch_size, order, first
        self._device, self._augment = device, augment

    def __len__(self) -> int:
        """Of the whole epoch."""
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        in_memory = _InMemory(self.split, self.order)
        images, labels = self.split.images, self.split.labels
        order = self.order.indices if self.order.indices is None else self.order.indices.to(images.device)
        for start in range(self.first * self.batch_size, len(self.split), self.batch_size):
            stop = start + self.batch_size
            in_memory.move_to(start)
            if order is None:
                yield self._input(images[start:stop], labels[start:stop])
            else:
                indices = order[start:stop]
                yield self._input(images.index_select(0, indices), labels.index_select(0, indices))
        in_memory.move_to(len(self.split))

    def _input(self, images: Tensor, labels: Tensor) -> Batch:
        X, y = unit(images.to(self._device)), labels.to(self._device)
        return (X, y) if self._augment is None else self._augment(X, y)


class _InMemory:
    """Has the window at work and the next one read ahead, and lets go of those that are done."""

    def __init__(self, split: Split, order: Order) -> None:
        self._pages, self._windows = split.pages, order.windows
        self._expected = self._left = 0  # windows

    def move_to(self, place: int) -> None:
        if self._pages is None:
            return
        while self._left < len(self._windows) and self._windows[self._left].stop <= place:
            for block in self._windows[self._left].blocks:
                self._pages.release(*block)
            self._left += 1
        self._expected = max(self._expected, self._left)  # a batch may be larger than a window
        while self._expected < min(self._left + 2, len(self._windows)):
            for block in self._windows[self._expected].blocks:
                self._pages.expect(*block)
            self._expected += 1


def resident(split: Split, device: torch.device, most: int | None) -> Split:
    """The split on the GPU as a whole, where it leaves room for the training; else as it is.

    `most`: bytes that the training may take there, if that is limited.
    """
    if device.type == "cpu":
        return split
    room = torch.cuda.mem_get_info(device)[0]
    if split.images.nbytes > _RESIDENT_SHARE * (room if most is None else min(room, most)):
        return split
    return Split(split.images.to(device), split.labels.to(device))


def test_batch_size(preprocessing: Preprocessing, batch_size: int) -> int:
    """Testing keeps no gradients, so its batches can be larger than training's."""
    picture_bytes = 4 * preprocessing.channels * math.prod(preprocessing.input_size)
    return max(batch_size, _TEST_BYTES // picture_bytes)
