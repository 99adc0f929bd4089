"""Batches: whole slices of a prepared split, converted on the device. No per-sample Python, no loader processes."""

import math
from collections.abc import Iterator
from typing import Final

import torch

from worker.datasets.pictures import Preprocessing
from worker.datasets.source import Split

from .loops import Batch
from .order import Order

_TEST_BYTES: Final = 4 * 2**20  # of float pixels in a test batch: they stay in the processor's cache


class Batches:
    """The batches of one epoch: X float32 N x C x H x W, y int64 N or float32 N x targets. The last may be short."""

    def __init__(
        self, split: Split, batch_size: int, preprocessing: Preprocessing, device: torch.device, order: Order
    ) -> None:
        self.split, self.batch_size, self.order = split, batch_size, order
        self._preprocessing, self._device = preprocessing, device

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        in_memory = _InMemory(self.split, self.order)
        for start in range(0, len(self.split), self.batch_size):
            stop = start + self.batch_size
            in_memory.move_to(start)
            if self.order.indices is None:
                images, labels = self.split.images[start:stop], self.split.labels[start:stop]
            else:
                indices = self.order.indices[start:stop]
                images = self.split.images.index_select(0, indices)
                labels = self.split.labels.index_select(0, indices)
            yield self._preprocessing.normalise(images.to(self._device)), labels.to(self._device)
        in_memory.move_to(len(self.split))


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


def test_batch_size(preprocessing: Preprocessing, batch_size: int) -> int:
    """Testing keeps no gradients, so its batches can be larger than training's."""
    picture_bytes = 4 * preprocessing.channels * preprocessing.height * preprocessing.width
    return max(batch_size, _TEST_BYTES // picture_bytes)
