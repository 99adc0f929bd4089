"""What a dataset's training pictures look like: enough to tell a picture that is unlike them.

Calibrated on the pictures themselves, so that a set of photographs, whose negatives are hard to tell, never warns of
one. It travels in the checkpoint.
"""

from collections.abc import Callable
from typing import Final, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

Change = Literal["inverted", "turned_90", "turned_180", "turned_270"]

GRID: Final = 8  # a picture's brightness, averaged down to so many a side
DIFFERS: Final = 0.1  # of the brightness: less is the same as the border
_MOST, _MOST_BYTES = 2_000, 64 * 2**20  # pictures that are looked at
_AT_ONCE: Final = 64
_BOXES: Final = 100  # of those, how many are looked at for their borders
_LEAST: Final = 200  # below which nothing can be calibrated
_FALSE_ALARMS: Final = 0.001
# Share of changed pictures that must be told: one that is told seldom is told wrongly too often.
_LEAST_POWER: Final[dict[Change, float]] = {
    "inverted": 0.9,
    "turned_90": 0.5,
    "turned_180": 0.5,
    "turned_270": 0.5,
}


Image = Callable[[Tensor], Tensor]


def _turned(quarters: int) -> Image:
    return lambda images: torch.rot90(images, quarters, (-2, -1))


# What undoes each change; images are ... x H x W, uint8.
MENDS: Final[dict[Change, Image]] = {
    "inverted": lambda images: 255 - images,
    "turned_90": _turned(3),  # it was turned counter-clockwise
    "turned_180": _turned(2),
    "turned_270": _turned(1),
}
# The changes themselves, of N x GRID x GRID brightness in 0..1.
_CHANGES: Final[dict[Change, Image]] = {
    "inverted": lambda grids: 1 - grids,
    "turned_90": _turned(1),
    "turned_180": _turned(2),
    "turned_270": _turned(3),
}


class Direction(BaseModel):
    """A linear discriminant between pictures as they are and as they would be changed (R. A. Fisher, "The use of
    multiple measurements in taxonomic problems", Annals of Eugenics 7, 1936).
    """

    change: Change
    weights: list[float] = Field(description="Of the brightness, 0..1, of each field of the grid, row by row")
    least: float = Field(description="A picture whose sum is lower looks changed")
    power: float = Field(description="Share of changed training pictures that are told")


class Looks(BaseModel):
    is_grey: bool = Field(description="Whether all pictures are, whatever their channels")
    directions: list[Direction] = Field(description="Only those that tell; none where there are few pictures")
    least_std: float | None = Field(None, description="Of a picture's brightness, 0..1: hardly any has less")
    extent: float | None = Field(
        None,
        description="How much of a picture's longer side its content usually takes, where borders are of one value",
    )


def summarise(images: Tensor) -> Looks:
    """images: uint8 N x C x H x W, of the training split. Uses no random numbers."""
    _, channels, height, width = images.shape
    most = min(len(images), _MOST, max(_LEAST, _MOST_BYTES // (channels * height * width)))
    chosen = torch.linspace(0, len(images) - 1, most).round().long()
    is_grey, grids, deviations = True, [], []
    for indices in torch.split(chosen, _AT_ONCE):
        chunk = images.index_select(0, indices.to(images.device)).cpu()
        is_grey &= channels == 1 or bool((chunk == chunk[:, :1]).all())
        bright = brightness(chunk)
        grids.append(adaptive_avg_pool2d(bright[:, None], (GRID, GRID))[:, 0].double())
        deviations.append(bright.flatten(1).std(dim=1, correction=0))
    if most < _LEAST:
        return Looks(is_grey=is_grey, directions=[])
    changes = [change for change in _CHANGES if height == width or change in ("inverted", "turned_180")]
    found = [_direction(torch.cat(grids), change) for change in changes]
    return Looks(
        is_grey=is_grey,
        directions=[each for each in found if each is not None],
        least_std=_rounded(float(torch.cat(deviations).quantile(0.01))),
        extent=_extent(images, chosen[:: max(1, most // _BOXES)]),
    )


def brightness(images: Tensor) -> Tensor:
    """N x H x W in 0..1."""
    return images.float().mean(dim=1) / 255


def border(bright: Tensor) -> Tensor:
    """N x values of the outermost pixels."""
    return torch.cat([bright[:, 0], bright[:, -1], bright[:, :, 0], bright[:, :, -1]], dim=1)


def box(bright: Tensor) -> tuple[int, int, int, int] | None:
    """First and last row and column, exclusive, of what differs from the border of one picture H x W; None when the
    border is not of one value, or nothing differs.
    """
    edge = border(bright[None])[0]
    ground = edge.median()
    if float(((edge - ground).abs() < DIFFERS).float().mean()) < 0.95:
        return None
    differs = (bright - ground).abs() > DIFFERS
    rows, columns = differs.any(dim=1).nonzero().flatten(), differs.any(dim=0).nonzero().flatten()
    if not len(rows):
        return None
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _direction(grids: Tensor, change: Change) -> Direction | None:
    """Found on one half of the sample, measured on the other. grids: N x GRID x GRID."""
    one, other = grids.flatten(1), _CHANGES[change](grids).flatten(1)
    found, changed = one[::2], other[::2]
    spread = (torch.cov(found.T) + torch.cov(changed.T)) / 2
    spread += torch.eye(len(spread), dtype=spread.dtype) * (1e-3 * spread.trace() / len(spread) + 1e-6)
    weights = torch.linalg.solve(spread, found.mean(0) - changed.mean(0))
    kept = [_rounded(each) for each in (weights / weights.norm().clamp(min=1e-12)).tolist()]
    weights = torch.tensor(kept, dtype=torch.float64)
    least = _rounded(float((one[1::2] @ weights).quantile(_FALSE_ALARMS)))
    power = float((other[1::2] @ weights < least).double().mean())
    if power < _LEAST_POWER[change]:
        return None
    return Direction(change=change, weights=kept, least=least, power=round(power, 3))


def _extent(images: Tensor, chosen: Tensor) -> float | None:
    _, _, height, width = images.shape
    extents = []
    for index in chosen.tolist():
        found = box(brightness(images[index : index + 1].cpu())[0])
        if found is not None:
            top, bottom, left, right = found
            extents.append(max((bottom - top) / height, (right - left) / width))
    if len(extents) < 0.9 * len(chosen):
        return None
    return _rounded(float(torch.tensor(extents).median()))


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
