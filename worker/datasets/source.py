"""What a reader of some dataset hands over for preparing."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Split:
    images: Tensor  # uint8, N x C x H x W
    labels: Tensor  # int64, N

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Source:
    classes: list[str]
    train: Split
    test: Split
