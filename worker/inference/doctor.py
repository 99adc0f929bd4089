"""The input doctor: says how a picture is unlike those that the network was trained on, and mends what it can.

Looking at a batch costs one product of matrices; only pictures that it points at are looked at closely.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from worker.datasets.looks import GRID, MENDS, Change, Looks, box, brightness
from worker.datasets.pictures import Preprocessing, fit

_FAR_OFF: Final = 2.0  # times as wide, or as high, for its height: half of it or more is cut away
_SMALL: Final = 0.5  # of the usual extent
_COLOURED: Final = 24  # between the channels of a pixel, of 255,
_LOOKED_AT: Final = 256  # pixels a side: a large picture's colours show in some of them
_COLOURED_SHARE: Final = 0.02  # of the pixels
_MOST_PIXELS: Final = 16_000_000  # of a ground: a picture of 30,000 x 1 would have a thousand million
_CONSTANT: Final = 0.02  # standard deviation of brightness
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
        self._looks, self._shape = looks, shape
        self._is_grey = looks.is_grey if looks else shape.channels == 1
        directions = looks.directions if looks else []
        self._changes: list[Change] = [each.change for each in directions]
        of_pixels = [_of_pixels(each.weights, shape.height, shape.width) for each in directions]
        weights = torch.stack(of_pixels, dim=1) if of_pixels else torch.zeros(shape.height * shape.width, 0)
        self._weights = weights.repeat(shape.channels, 1) / (255 * shape.channels)  # pixels x directions
        self._least = torch.tensor([each.least for each in directions])
        self._least_std = max(_CONSTANT, (looks.least_std if looks else None) or 0.0)

    @property
    def wants_colours(self) -> bool:
        """Whether a coloured file is odd, which what the network sees of it does not show."""
        return self._shape.channels == 1

    def suspects(self, images: Tensor) -> list[int]:
        """Which of uint8 N x C x H x W deserve a closer look."""
        flat = images.flatten(1).float()
        odd = flat.std(dim=1, correction=0) < 255 * self._least_std
        if self._changes:
            odd |= (flat @ self._weights < self._least).any(dim=1)
        return odd.nonzero().flatten().tolist() if odd.any() else []

    def warnings(self, image: Tensor) -> list[str]:
        """Of uint8 C x H x W that `suspects` has pointed at."""
        (deviation,) = brightness(image[None]).flatten(1).std(dim=1, correction=0).tolist()
        if deviation < _CONSTANT:
            return ["There is hardly anything on it: nearly all of it has one brightness."]
        told = [_TOLD[change][0] for change in self._changed(image)[:1]]
        if self._is_small(image):
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
        if not self._is_grey or not _is_coloured(colours):
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
        for kinds in (("inverted",), ("turned_90", "turned_180", "turned_270")):
            found = [change for change in self._changed(image) if change in kinds]
            if found:
                image = MENDS[found[0]](image).contiguous()
                done.append(_TOLD[found[0]][1])
        return image, done

    def _changed(self, image: Tensor) -> list[Change]:
        """How it looks changed; the clearest first."""
        if not self._changes:
            return []
        distances = (self._least - image.flatten().float() @ self._weights).tolist()
        told = sorted(zip(distances, self._changes, strict=True), reverse=True)
        return [change for distance, change in told if distance > 0]

    def _is_small(self, image: Tensor) -> bool:
        if self._looks is None or self._looks.extent is None:
            return False
        found = box(brightness(image[None])[0])
        if found is None:
            return False
        top, bottom, left, right = found
        extent = max((bottom - top) / image.shape[1], (right - left) / image.shape[2])
        return extent < _SMALL * self._looks.extent

    def _cut_away(self, height: int, width: int) -> float | None:
        """The share, where it is much."""
        ratio = (height / width) / (self._shape.height / self._shape.width)
        odd = max(ratio, 1 / ratio)
        return 1 - 1 / odd if odd >= _FAR_OFF else None

    def _cut_to_content(self, whole: Tensor) -> Tensor | None:
        """With the usual margin; None when it fills the picture as usual, or cannot be told from the border."""
        extent = self._looks.extent if self._looks else None
        found = box(brightness(whole[None])[0]) if extent else None
        if extent is None or found is None:
            return None
        top, bottom, left, right = found
        _, height, width = whole.shape
        if max((bottom - top) / height, (right - left) / width) >= _SMALL * extent:
            return None
        content = whole[:, top:bottom, left:right]
        laid = _laid_out(content, self._shape.height / self._shape.width, ground=_ground(whole))
        margin = round(max(laid.shape[1:]) * (1 / extent - 1) / 2)
        return _padded(laid, (margin, margin, margin, margin), _ground(whole))


def _of_pixels(weights: list[float], height: int, width: int) -> Tensor:
    """Averaging down to the grid and weighing its fields are both sums, and so one: the weight of each pixel."""
    with torch.inference_mode(mode=False), torch.enable_grad():
        pixels = torch.zeros(1, 1, height, width, requires_grad=True)
        fields = adaptive_avg_pool2d(pixels, (GRID, GRID)).flatten()
        (found,) = torch.autograd.grad(fields @ torch.tensor(weights), pixels)
    return found.flatten()


def _is_coloured(colours: Tensor) -> bool:
    step = max(1, max(colours.shape[1:]) // _LOOKED_AT)
    some = colours[:, ::step, ::step]
    spread = some.amax(dim=0).int() - some.amin(dim=0).int()
    return bool((spread > _COLOURED).float().mean() > _COLOURED_SHARE)


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
