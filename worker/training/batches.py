"""Batches: whole slices of a prepared split, converted on the device. No per-sample Python, no loader processes."""

import hashlib
import math
from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from worker.datasets.pictures import Preprocessing
from worker.datasets.source import Split

from .loops import Batch

_TEST_BYTES: Final = 4 * 2**20  # of float pixels in a test batch: they stay in the processor's cache


class Batches:
    """The batches of one epoch: X float32 N x C x H x W, y int64 N. The last one may be short."""

    def __init__(
        self,
        split: Split,
        batch_size: int,
        preprocessing: Preprocessing,
        device: torch.device,
        order: Tensor | None = None,
    ) -> None:
        self.split, self.batch_size, self.order = split, batch_size, order
        self._preprocessing, self._device = preprocessing, device

    def __len__(self) -> int:
        return math.ceil(len(self.split) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.split), self.batch_size):
            stop = start + self.batch_size
            if self.order is None:
                images, labels = self.split.images[start:stop], self.split.labels[start:stop]
            else:
                indices = self.order[start:stop]
                images = self.split.images.index_select(0, indices)
                labels = self.split.labels.index_select(0, indices)
            yield self._preprocessing.normalise(images.to(self._device)), labels.to(self._device)


def test_batch_size(preprocessing: Preprocessing, batch_size: int) -> int:
    """Testing keeps no gradients, so its batches can be larger than training's."""
    picture_bytes = 4 * preprocessing.channels * preprocessing.height * preprocessing.width
    return max(batch_size, _TEST_BYTES // picture_bytes)


def derived_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed of its own for each epoch and purpose: the first 63 bits of SHA-256 of "seed/epoch/purpose"."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffled_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch: the one that a stock `DataLoader(shuffle=True, generator=g)` gives, where g is a
    fresh generator seeded with `derived_seed(seed, epoch, "order")`.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, "order"))
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # the loader draws a base seed first
    return torch.randperm(samples, generator=generator)
