"""What a dataset's training pictures look like: enough to tell a picture that is unlike them.

Calibrated on the pictures themselves, so that a set of photographs, whose negatives are hard to tell, never warns of
one. It travels in the checkpoint.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Annotated, Final, Literal

import torch
from pydantic import BaseModel, Field, FiniteFloat, model_validator
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

Turn = Literal["turned_90", "turned_180", "turned_270"]  # counter-clockwise
Change = Literal["inverted", Turn]

GRID: Final = 8  # a picture's brightness, averaged down to so many fields a side
FIELDS: Final = GRID * GRID
DIFFERS: Final = 0.1  # of the brightness: less is the same as the border
EMPTY, _USUAL = 0.95, 0.5  # share of a border of one value: of one that is empty; of one whose value can be told
_MOST, _MOST_BYTES = 2_000, 64 * 2**20  # pictures that are looked at
_AT_ONCE: Final = 64
_LEAST: Final = 200  # below which nothing can be calibrated
_FALSE_ALARMS: Final = 0.001  # of each kind
_ENOUGH: Final = 0.999  # share of changed pictures above which a threshold need not tell more
_LEAST_POWER: Final = 0.9  # share of changed pictures that must be told: who tells few is too often wrong
_KINDS, _ROUNDS = 32, 10

Image = Callable[[Tensor], Tensor]
Weights = Annotated[list[FiniteFloat], Field(min_length=FIELDS, max_length=FIELDS)]


def _turned(quarters: int) -> Image:
    return lambda images: torch.rot90(images, quarters, (-2, -1))


# What undoes each change; images are ... x H x W, uint8.
MENDS: Final[dict[Change, Image]] = {
    "inverted": lambda images: 255 - images,
    "turned_90": _turned(3),
    "turned_180": _turned(2),
    "turned_270": _turned(1),
}
TURNS: Final[dict[Turn, Image]] = {"turned_90": _turned(1), "turned_180": _turned(2), "turned_270": _turned(3)}


class Direction(BaseModel):
    """Fisher's linear discriminant between pictures and their negatives (R. A. Fisher, "The use of multiple
    measurements in taxonomic problems", Annals of Eugenics 7, 1936).
    """

    change: Change
    weights: Weights = Field(description="Of the brightness, 0..1, of each field of the grid, row by row")
    least: FiniteFloat = Field(description="A picture whose sum is lower looks changed")
    power: float = Field(description="Share of changed training pictures that are told")


class Upright(BaseModel):
    """Tells turned pictures: the same between many kinds of pictures, since shoes are turned otherwise than shirts
    (T. Hastie, R. Tibshirani, "Discriminant Analysis by Gaussian Mixtures", JRSS B 58, 1996).
    """

    weights: str = Field(description="Kinds x fields of the grid, row by row, a signed byte each, as base64")
    unit: FiniteFloat = Field(description="What a weight of 1 stands for")
    offsets: list[FiniteFloat] = Field(description="Of each kind")
    least: FiniteFloat = Field(description="A picture that is as likely to be turned as this, or more, looks turned")
    powers: dict[Turn, float] = Field(description="Share of training pictures turned so that are told")

    @model_validator(mode="after")
    def _is_whole(self) -> "Upright":
        if not self.offsets or len(b64decode(self.weights, validate=True)) != len(self.offsets) * FIELDS:
            raise ValueError("There must be as many weights as kinds need.")
        return self

    def kinds(self) -> Tensor:
        """float64 kinds x FIELDS."""
        signed = torch.frombuffer(bytearray(b64decode(self.weights)), dtype=torch.int8)
        return signed.double().view(-1, FIELDS) * self.unit


class Looks(BaseModel):
    is_grey: bool = Field(description="Whether all pictures are, whatever their channels")
    directions: list[Direction] = Field(description="Only those that tell; none where there are few pictures")
    upright: Upright | None = Field(None, description="Where turned pictures can be told")
    least_std: FiniteFloat | None = Field(None, description="Of a picture's brightness, 0..1: hardly any has less")
    extent: FiniteFloat | None = Field(
        None,
        gt=0,
        le=1,
        description="How much of a picture's longer side its content usually takes, where borders are of one value",
    )
    least_extent: FiniteFloat | None = Field(None, description="Hardly any takes less")


def summarise(images: Tensor) -> Looks:
    """images: uint8 N x C x H x W, of the training split. Uses no random numbers."""
    _, channels, height, width = images.shape
    most = min(len(images), _MOST, max(_LEAST, _MOST_BYTES // (channels * height * width)))
    chosen = torch.linspace(0, len(images) - 1, most, dtype=torch.float64).round().long()
    is_grey, grids, deviations, extents = True, [], [], []
    for indices in torch.split(chosen, _AT_ONCE):
        chunk = images.index_select(0, indices.to(images.device)).cpu()
        is_grey &= channels == 1 or bool((chunk == chunk[:, :1]).all())
        bright = brightness(chunk)
        grids.append(fields(bright).double())
        deviations.append(bright.flatten(1).std(dim=1, correction=0))
        extents.append(extents_of(bright, _USUAL))
    if most < _LEAST:
        return Looks(is_grey=is_grey, directions=[])
    known = torch.cat(extents)
    known = known[~known.isnan()]
    has_ground = len(known) >= 0.9 * most
    inverted = _inverted(torch.cat(grids))
    return Looks(
        is_grey=is_grey,
        directions=[inverted] if inverted else [],
        upright=_upright(torch.cat(grids), is_square=height == width),
        least_std=_rounded(torch.cat(deviations).quantile(_FALSE_ALARMS)),
        extent=_rounded(known.median()) if has_ground else None,
        least_extent=_rounded(known.quantile(_FALSE_ALARMS)) if has_ground else None,
    )


def brightness(images: Tensor) -> Tensor:
    """N x H x W in 0..1."""
    bright = images.float()
    return (bright[:, 0] if images.shape[1] == 1 else bright.mean(dim=1)) / 255


def fields(bright: Tensor) -> Tensor:
    """N x FIELDS averages."""
    return adaptive_avg_pool2d(bright[:, None], (GRID, GRID)).flatten(1)


def turned_kinds(kinds: Tensor) -> Tensor:
    """4 * kinds x FIELDS: as they are, and in each of TURNS. One covariance serves all, and so a turned picture is as
    likely under a kind that is turned likewise as it was under the kind.
    """
    grids = kinds.view(-1, GRID, GRID)
    return torch.cat([grids, *(turn(grids) for turn in TURNS.values())]).flatten(1)


def uprightness(grids: Tensor, turned: Tensor, offsets: Tensor) -> Tensor:
    """N x 3: the logarithm of how much likelier a picture is as it is than as one in each of TURNS.
    grids: N x FIELDS; turned: from `turned_kinds`; offsets: of the kinds.
    """
    likely = ((grids @ turned.T).view(-1, 1 + len(TURNS), len(offsets)) + offsets).logsumexp(dim=2)
    return likely[:, :1] - likely[:, 1:]


def box(bright: Tensor) -> tuple[int, int, int, int] | None:
    """First and last row and column, exclusive, of what differs from the border of one picture H x W; None when the
    border is not of one value, or nothing differs.
    """
    boxes, is_known = _boxes(bright[None], EMPTY)
    top, bottom, left, right = boxes[0].tolist()
    return (top, bottom, left, right) if is_known else None


def extents_of(bright: Tensor, share: float) -> Tensor:
    """N: how much of the longer side the content takes; NaN where less than this share of the border is of one value,
    or nothing differs from it. bright: N x H x W.
    """
    boxes, is_known = _boxes(bright, share)
    top, bottom, left, right = boxes.float().unbind(dim=1)
    extents = torch.maximum((bottom - top) / bright.shape[1], (right - left) / bright.shape[2])
    return extents.where(is_known, torch.nan)


def _boxes(bright: Tensor, share: float) -> tuple[Tensor, Tensor]:
    edge = torch.cat([bright[:, 0], bright[:, -1], bright[:, :, 0], bright[:, :, -1]], dim=1)
    ground = edge.median(dim=1, keepdim=True).values
    is_of_one = ((edge - ground).abs() < DIFFERS).float().mean(dim=1) >= share
    differs = (bright - ground[:, :, None]).abs() > DIFFERS
    sides = []
    for across in (2, 1):
        line = differs.any(dim=across).int()
        sides += [line.argmax(dim=1), line.shape[1] - line.flip(1).argmax(dim=1)]
    return torch.stack(sides, dim=1), is_of_one & differs.flatten(1).any(dim=1)


def _inverted(grids: Tensor) -> Direction | None:
    """Found on one half of the sample, measured on the other. grids: N x FIELDS."""
    found, one = grids[::2], grids[1::2]
    spread = _regular(torch.cov(found.T), 1e-3)  # that of the negatives too
    weights = torch.linalg.solve(spread, 2 * found.mean(dim=0) - 1)
    kept = [_rounded(each) for each in weights / weights.norm().clamp(min=1e-12)]
    weights = torch.tensor(kept, dtype=torch.float64)
    sums, changed = one @ weights, (1 - one) @ weights
    least = _rounded(torch.minimum(sums.quantile(_FALSE_ALARMS), changed.quantile(_ENOUGH)))
    power = _share(changed < least)
    if power < _LEAST_POWER:
        return None
    return Direction(change="inverted", weights=kept, least=least, power=power)


def _upright(grids: Tensor, *, is_square: bool) -> Upright | None:
    """As `_inverted`. A picture that is no square cannot have been turned by a quarter. grids: N x FIELDS."""
    weights, offsets = _kinds(grids[::2])
    unit = float(weights.abs().max()) / 127 or 1.0
    bytes_ = (weights / unit).round().to(torch.int8)
    turned, one = turned_kinds(bytes_.double() * unit), grids[1::2].view(-1, GRID, GRID)
    places = {turn: place for place, turn in enumerate(TURNS) if is_square or turn == "turned_180"}
    sums = uprightness(one.flatten(1), turned, offsets)[:, list(places.values())].amin(dim=1)
    changed = {
        turn: uprightness(TURNS[turn](one).flatten(1), turned, offsets)[:, place] for turn, place in places.items()
    }
    enough = torch.stack([each.quantile(_ENOUGH) for each in changed.values()]).max()
    least = _rounded(torch.minimum(sums.quantile(_FALSE_ALARMS), enough))
    powers = {turn: _share(each < least) for turn, each in changed.items()}
    told = {turn: power for turn, power in powers.items() if power >= _LEAST_POWER}
    if not told:
        return None
    encoded = b64encode(bytes_.numpy().tobytes()).decode()
    return Upright(weights=encoded, unit=unit, offsets=[_rounded(each) for each in offsets], least=least, powers=told)


def _kinds(grids: Tensor) -> tuple[Tensor, Tensor]:
    """Weights, kinds x FIELDS, and offsets: linear discriminants of the clusters that k-means finds (S. Lloyd, "Least
    squares quantization in PCM", IEEE Transactions on Information Theory 28, 1982). grids: N x FIELDS.
    """
    first = torch.linspace(0, len(grids) - 1, min(_KINDS, len(grids) // 2)).long()
    centres = grids[first]
    for _ in range(_ROUNDS):
        members = one_hot((centres.square().sum(dim=1) - 2 * grids @ centres.T).argmin(dim=1), len(centres)).double()
        sizes = members.sum(dim=0)
        centres = torch.where(sizes[:, None] > 0, members.T @ grids / sizes.clamp(min=1)[:, None], centres)
    rest = (grids - members @ centres).view(-1, GRID, GRID)
    every = torch.cat([rest, *(turn(rest) for turn in TURNS.values())]).flatten(1)
    weights = torch.linalg.solve(_regular(every.T @ every / len(every), 0.1), centres.T).T
    return weights, (sizes.clamp(min=1) / len(grids)).log() - (centres * weights).sum(dim=1) / 2


def _regular(covariance: Tensor, share: float) -> Tensor:
    """With so much of its mean variance added to each, so that it can be inverted."""
    ridge = share * covariance.trace() / len(covariance) + 1e-6
    return covariance + ridge * torch.eye(len(covariance), dtype=covariance.dtype)


def _share(told: Tensor) -> float:
    return _rounded(told.double().mean())


def _rounded(value: float | Tensor) -> float:
    return float(f"{float(value):.4g}")
