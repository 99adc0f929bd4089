"""The input doctor: says how a picture is unlike those that the network was trained on, and mends what it can.

Looking at a batch costs two products of small matrices; only pictures that it points at are looked at closely.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from worker.datasets.looks import (
    DIFFERS,
    EMPTY,
    FIELDS,
    GRID,
    MENDS,
    TURNS,
    Change,
    Looks,
    Turn,
    Upright,
    box,
    brightness,
    extents_of,
    fields,
    turned_kinds,
    uprightness,
)
from worker.datasets.pictures import Preprocessing, fit

_FAR_OFF: Final = 2.0  # times as wide, or as high, for its height: half of it or more is cut away
_SMALL: Final = 0.5  # of the usual extent
_COLOURED: Final = 24  # between the channels of a pixel, of 255,
_LOOKED_AT: Final = 256  # pixels a side: a large picture's colours show in some of them
_COLOURED_SHARE: Final = 0.02  # of the pixels
_MOST_PIXELS: Final = 16_000_000  # of a ground: a picture of 30,000 x 1 would have a thousand million
_CONSTANT: Final = 0.02  # standard deviation of brightness, where that of the training pictures is not known
_HARDLY_ANY: Final = 0.05  # at most, whatever they have
_MOST_CHANGES: Final = 2  # an inverted picture may be turned too
_TOLD: Final[dict[Change, tuple[str, str]]] = {
    "inverted": (
        "Light and dark look exchanged: those that the network was trained on are like its negative.",
        "Light and dark were exchanged.",
    ),
    "turned_90": ("It looks turned to the left.", "It was turned a quarter to the right."),
    "turned_180": ("It looks upside down.", "It was turned upside down."),
    "turned_270": ("It looks turned to the right.", "It was turned a quarter to the left."),
}


class Doctor:
    """Knows what the training pictures of one checkpoint look like."""

    def __init__(self, looks: Looks | None, shape: Preprocessing) -> None:
        self._shape = shape
        self._is_grey = looks.is_grey if looks else shape.channels == 1
        # A training picture is warned of as seldom as it has half of what hardly any has less than.
        known = looks.least_std if looks else None
        self._least_std = _CONSTANT if known is None else min(known / 2, _HARDLY_ANY)
        self._extent = looks.extent if looks else None
        least = looks.least_extent if looks else None
        self._least_extent = min(_SMALL * (self._extent or 0.0), 1.0 if least is None else least)
        self._inverted = next((each for each in looks.directions if each.change == "inverted"), None) if looks else None
        self._weights = torch.tensor(self._inverted.weights if self._inverted else [0.0] * FIELDS)
        self._turns = _Turns(looks.upright) if looks and looks.upright else None

    @property
    def wants_colours(self) -> bool:
        """Whether a coloured file is odd, which what the network sees of it does not show."""
        return self._shape.channels == 1

    def suspects(self, images: Tensor) -> list[int]:
        """Which of uint8 N x C x H x W deserve a closer look."""
        bright = brightness(images)
        flat = bright.flatten(1)
        odd = flat.square().mean(dim=1) - flat.mean(dim=1).square() < self._least_std**2  # much quicker than std
        if self._inverted or self._turns or self._least_extent:
            grids = fields(bright)
            if self._inverted:
                odd |= grids @ self._weights < self._inverted.least
            if self._turns:
                odd |= self._turns.are_turned(grids).any(dim=1)
            if self._least_extent:
                odd |= _takes_few_fields(grids, self._least_extent)
        if self._is_grey and images.shape[1] == 3:
            odd |= _coloured(images)
        return odd.nonzero().flatten().tolist()

    def warnings(self, image: Tensor) -> list[str]:
        """Of uint8 C x H x W that `suspects` has pointed at."""
        bright = brightness(image[None])
        told = self.of_colours(image) if len(image) == 3 else []
        if float(bright.std(correction=0)) < self._least_std:
            return [*told, "There is hardly anything on it: nearly all of it has one brightness."]
        if change := self._change(image):
            told.append(_TOLD[change][0])
        if float(extents_of(bright, EMPTY)) < self._least_extent:
            told.append("What is on it is small in a large empty border.")
        return told

    def of_shape(self, height: int, width: int) -> list[str]:
        """Of a picture's size, before it is cut to the network's."""
        share = self._cut_away(height, width)
        if share is None:
            return []
        return [f"Its shape is far from the training pictures': {share:.0%} of it is cut away."]

    def of_colours(self, colours: Tensor) -> list[str]:
        """Of uint8 3 x H x W, where the network was trained on grey pictures."""
        if not self._is_grey or not _coloured(colours[None]):
            return []
        return ["It has colours, but the network was trained on grey pictures: it sees its brightness only."]

    def mended(self, whole: Tensor) -> tuple[Tensor, list[str]]:
        """uint8 C x h x w, as decoded, to C x H x W as the network should see it; and what was done."""
        done = []
        if (cut := self._cut_to_content(whole)) is not None:
            whole = cut
            done.append("It was cut to what is on it.")
        elif self._cut_away(*whole.shape[1:]) is not None:
            laid = _laid_out(whole, self._shape.height / self._shape.width)
            if laid is whole:
                return fit(whole, self._shape.height, self._shape.width), []
            whole = laid
            done.append("It was laid on a ground of its border's colour, so that nothing is cut away.")
        image = fit(whole, self._shape.height, self._shape.width)
        for _ in range(_MOST_CHANGES):
            if change := self._change(image):
                image = MENDS[change](image).contiguous()
                done.append(_TOLD[change][1])
        return image, done

    def _change(self, image: Tensor) -> Change | None:
        """How it looks changed; negatives first, for it is they that are told surely."""
        grids = fields(brightness(image[None]))
        if self._inverted and float(grids @ self._weights) < self._inverted.least:
            return "inverted"
        return self._turns.clearest(grids) if self._turns else None

    def _cut_away(self, height: int, width: int) -> float | None:
        """The share, where it is much."""
        ratio = (height / width) / (self._shape.height / self._shape.width)
        odd = max(ratio, 1 / ratio)
        return 1 - 1 / odd if odd >= _FAR_OFF else None

    def _cut_to_content(self, whole: Tensor) -> Tensor | None:
        """With the usual margin; None when it fills the picture as usual, or cannot be told from the border."""
        bright = brightness(whole[None])
        if self._extent is None or not float(extents_of(bright, EMPTY)) < self._least_extent:
            return None
        found = box(bright[0])
        assert found is not None
        top, bottom, left, right = found
        content = whole[:, top:bottom, left:right]
        laid = _laid_out(content, self._shape.height / self._shape.width, ground=_ground(whole))
        margin = round(max(laid.shape[1:]) * (1 / self._extent - 1) / 2)
        return _padded(laid, (margin, margin, margin, margin), _ground(whole))


class _Turns:
    """Tells which pictures are turned."""

    def __init__(self, upright: Upright) -> None:
        self._kinds = turned_kinds(upright.kinds()).float()
        self._offsets, self._least = torch.tensor(upright.offsets), upright.least
        self._known: list[tuple[int, Turn]] = [(at, turn) for at, turn in enumerate(TURNS) if turn in upright.powers]
        self._places = [at for at, _ in self._known]

    def are_turned(self, grids: Tensor) -> Tensor:
        """N x turns that can be told."""
        return self._uprightness(grids) < self._least

    def clearest(self, grids: Tensor) -> Turn | None:
        """Of one picture."""
        (found,) = self._uprightness(grids).tolist()
        least, (_, turn) = min(zip(found, self._known, strict=True))
        return turn if least < self._least else None

    def _uprightness(self, grids: Tensor) -> Tensor:
        found = uprightness(grids, self._kinds, self._offsets)
        return found if len(self._places) == len(TURNS) else found[:, self._places]


def _takes_few_fields(grids: Tensor, extent: float) -> Tensor:
    """Which of N x FIELDS may have content that takes less than this of a side: no more than it can reach into."""
    differs = ((grids - grids[:, :1]).abs() > DIFFERS).view(-1, GRID, GRID)
    longer = torch.maximum(differs.any(dim=1).sum(dim=1), differs.any(dim=2).sum(dim=1))
    return longer <= math.ceil(extent * GRID) + 1


def _coloured(images: Tensor) -> Tensor:
    """Which of N x 3 x H x W are."""
    step = max(1, max(images.shape[2:]) // _LOOKED_AT)
    some = images[:, :, ::step, ::step]
    spread = some.amax(dim=1).int() - some.amin(dim=1).int()
    return (spread > _COLOURED).float().mean(dim=(1, 2)) > _COLOURED_SHARE


def _ground(whole: Tensor) -> Tensor:
    """The usual colour of the border: C values."""
    edges = [whole[:, 0], whole[:, -1], whole[:, :, 0], whole[:, :, -1]]
    return torch.cat(edges, dim=1).median(dim=1).values


def _laid_out(whole: Tensor, ratio: float, *, ground: Tensor | None = None) -> Tensor:
    """On a ground of height = ratio x width that holds all of it."""
    _, height, width = whole.shape
    wide, high = max(width, round(height / ratio)), max(height, round(width * ratio))
    left, top = (wide - width) // 2, (high - height) // 2
    if wide * high > _MOST_PIXELS:
        return whole
    sides = (top, high - height - top, left, wide - width - left)
    return _padded(whole, sides, _ground(whole) if ground is None else ground)


def _padded(whole: Tensor, sides: Sequence[int], ground: Tensor) -> Tensor:
    top, bottom, left, right = sides
    channels, height, width = whole.shape
    made = ground.view(-1, 1, 1).expand(channels, height + top + bottom, width + left + right).clone()
    made[:, top : top + height, left : left + width] = whole
    return made
