"""In which order an epoch sees its pictures, derived from (seed, epoch) alone, so that a resumed epoch repeats it.

A split of up to 2 GiB is shuffled as a whole. In a larger one a picture here and a picture there would each cost a
seek, and in the end all of it would be in memory. So its blocks of 1 MiB (or one picture) are shuffled, 256 at a time
make a window, and the pictures are shuffled within their window: reads are long, memory holds two windows, and an
epoch's windows are made of other blocks than those of the epoch before.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from worker.datasets.source import Split

_WHOLE_BYTES: Final = 2 * 2**30
_BLOCK_BYTES, _WINDOW_BLOCKS = 2**20, 256


@dataclass(frozen=True)
class Window:
    """A stretch of an epoch, and where its pictures lie."""

    start: int  # the first place in the order
    stop: int
    blocks: list[tuple[int, int]]  # first picture and the one behind the last


@dataclass(frozen=True)
class Order:
    indices: Tensor | None  # int64 N; None: as they lie
    windows: list[Window]  # none where the whole split may be in memory


def epoch_order(split: Split, seed: int, epoch: int) -> Order:
    """A shuffled order."""
    if split.images.nbytes <= _WHOLE_BYTES:
        return Order(shuffled_order(len(split), seed, epoch), [])
    return windowed_order(len(split), split.images[0].nbytes, seed, epoch)


def lying_order(split: Split) -> Order:
    """The pictures as they lie; by windows as soon as there is more than one, since that changes no order."""
    if split.images.nbytes <= _WINDOW_BLOCKS * _BLOCK_BYTES:
        return Order(None, [])
    step = max(1, _WINDOW_BLOCKS * _BLOCK_BYTES // split.images[0].nbytes)
    ends = [(start, min(start + step, len(split))) for start in range(0, len(split), step)]
    return Order(None, [Window(start, stop, [(start, stop)]) for start, stop in ends])


def derived_seed(seed: int, epoch: int, purpose: str) -> int:
    """A seed of its own for each epoch and purpose: the first 63 bits of SHA-256 of "seed/epoch/purpose"."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def shuffled_order(samples: int, seed: int, epoch: int) -> Tensor:
    """The order that a stock `DataLoader(shuffle=True, generator=g)` gives, where g is a fresh generator seeded with
    `derived_seed(seed, epoch, "order")`.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, "order"))
    torch.empty((), dtype=torch.int64).random_(generator=generator)  # the loader draws a base seed first
    return torch.randperm(samples, generator=generator)


def windowed_order(samples: int, picture_bytes: int, seed: int, epoch: int) -> Order:
    """Blocks shuffled, then pictures within windows of blocks."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, "order"))
    size = max(1, _BLOCK_BYTES // picture_bytes)
    starts = size * torch.randperm(-(-samples // size), generator=generator)
    indices, windows, done = [], [], 0
    for group in torch.split(starts, _WINDOW_BLOCKS):
        blocks = [(start, min(start + size, samples)) for start in group.tolist()]
        lying = torch.cat([torch.arange(*block) for block in blocks])
        indices.append(lying[torch.randperm(len(lying), generator=generator)])
        windows.append(Window(done, done + len(lying), sorted(blocks)))
        done += len(lying)
    return Order(torch.cat(indices), windows)
