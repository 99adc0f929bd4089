"""What a reader of some dataset hands over for preparing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Watch = Callable[[str, int, int], None]  # is told what preparing does, how many are done, of how many (0: unknown)


class Pages(Protocol):
    """The memory that pictures are mapped to."""

    def expect(self, start: int, stop: int) -> None:
        """These pictures will be wanted soon: read them."""

    def release(self, start: int, stop: int) -> None:
        """These pictures are done with: memory need not hold them."""


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8, N x C x H x W
    labels: Tensor  # int64, N (classes), or float32, N x targets
    pages: Pages | None = None  # of the images, where they are mapped from a file

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    classes: list[str]
    train: Split
    test: Split
