"""Random changes of training pictures: whole batches at a time, on their device, each picture its own.

Everything is derived from (seed, epoch), so that a resumed epoch repeats it. The numbers are drawn on the CPU, so that
every device sees the same changes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, one_hot, pad

from worker.jobs.spec import Augmentation

from .loops import Batch
from .order import derived_seed

_DOWN, _ACROSS = 2, 3  # dimensions of a batch


def augments(spec: Augmentation) -> bool:
    """Whether anything is on."""
    return spec != Augmentation()


class Augment:
    """The changes of one epoch's batches, which come in their order.

    What a batch gets depends on the spec, on (seed, epoch), and on the sizes of the batches before it. `classes` is
    None for regression.
    """

    def __init__(self, spec: Augmentation, *, classes: int | None, seed: int, epoch: int) -> None:
        self._spec, self._classes = spec, classes
        own_seed = derived_seed(seed, epoch, "augmentation")
        self._generator = torch.Generator().manual_seed(own_seed)
        self._numpy = np.random.default_rng(own_seed)  # torch's Beta takes no generator

    def state_dict(self) -> dict[str, Any]:
        """Of the random generators, between two batches. Plain types and tensors."""
        return {"torch": self._generator.get_state(), "numpy": self._numpy.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["torch"])
        self._numpy.bit_generator.state = state["numpy"]

    def __call__(self, X: Tensor, y: Tensor) -> Batch:
        """X float32 N x C x H x W with values 0..1, y int64 N or float32 N x targets; neither is modified.

        With mixup or cutmix the classes in y become probabilities, float32 N x classes. Else y is returned as it is.
        """
        X = self._recoloured(self._moved(X))
        if self._spec.cutout:
            sizes = torch.full((len(X),), self._spec.cutout)
            X = X * (1 - self._boxes(X, sizes, sizes))
        if self._spec.mixup or self._spec.cutmix:
            return self._mixed(X, y)
        return X, y

    def _moved(self, X: Tensor) -> Tensor:
        spec = self._spec
        if spec.flip in ("horizontal", "both"):
            X = flip(X, self._coins(X), _ACROSS)
        if spec.flip in ("vertical", "both"):
            X = flip(X, self._coins(X), _DOWN)
        if spec.rotate:
            X = rotate(X, spec.rotate * self._either_way(X))
        if spec.shift:
            X = shift(X, self._pixels(X, spec.shift), self._pixels(X, spec.shift), most=spec.shift)
        return X

    def _recoloured(self, X: Tensor) -> Tensor:
        spec = self._spec
        if spec.brightness:
            X = brightness(X, 1 + spec.brightness * self._either_way(X))
        if spec.contrast:
            X = contrast(X, 1 + spec.contrast * self._either_way(X))
        if spec.saturation:
            X = saturation(X, 1 + spec.saturation * self._either_way(X))
        return X

    def _mixed(self, X: Tensor, y: Tensor) -> Batch:
        spec = self._spec
        is_mixup = self._coin() if spec.mixup and spec.cutmix else bool(spec.mixup)
        alpha = spec.mixup if is_mixup else spec.cutmix
        shares = torch.from_numpy(self._numpy.beta(alpha, alpha, len(X)))
        partners = _on(X, torch.randperm(len(X), generator=self._generator))
        targets = y if self._classes is None else one_hot(y, self._classes).float()
        if is_mixup:
            return mix(X, targets, partners, _on(X, shares.float()).view(-1, 1, 1, 1))
        sides = shares.sqrt()
        boxes = self._boxes(X, (X.shape[_DOWN] * sides).long(), (X.shape[_ACROSS] * sides).long())
        return mix(X, targets, partners, boxes)

    def _boxes(self, X: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
        """One a picture, centred at a random pixel and cut off at the edges: float32 N x 1 x H x W of zeros and ones.

        Cutout of DeVries 2017, arXiv:1708.04552; CutMix's boxes lie likewise.
        """
        rows, columns = self._spans(X, _DOWN, heights), self._spans(X, _ACROSS, widths)
        return rows[:, None, :, None] * columns[:, None, None, :]

    def _spans(self, X: Tensor, dim: int, sizes: Tensor) -> Tensor:
        places = torch.arange(X.shape[dim])
        centres = torch.randint(X.shape[dim], (len(X),), generator=self._generator)
        behind_first = places - (centres - sizes // 2)[:, None]
        return _on(X, ((behind_first >= 0) & (behind_first < sizes[:, None])).float())

    def _coin(self) -> bool:
        return torch.rand((), generator=self._generator).item() < 0.5

    def _coins(self, X: Tensor) -> Tensor:
        return _on(X, torch.rand(len(X), generator=self._generator) < 0.5)

    def _either_way(self, X: Tensor) -> Tensor:
        """float32 N, from -1 to 1."""
        return _on(X, 2 * torch.rand(len(X), generator=self._generator) - 1)

    def _pixels(self, X: Tensor, most: int) -> Tensor:
        """int64 N, from -most to most."""
        return _on(X, torch.randint(-most, most + 1, (len(X),), generator=self._generator))


def flip(X: Tensor, chosen: Tensor, dim: int) -> Tensor:
    """Mirrors those that are `chosen` (bool N)."""
    return X.lerp(X.flip(dim), chosen.float().view(-1, 1, 1, 1))  # exact for 0 and 1, and faster than torch.where


def rotate(X: Tensor, degrees: Tensor) -> Tensor:
    """About the centre, with bilinear interpolation; what comes in is black. `degrees`: float32 N, clockwise.

    The grid is that of torch's affine_grid, which would compute it by a matrix product: slower, and inexact where
    the job lets products be tf32.
    """
    height, width = X.shape[_DOWN:]
    down = torch.arange(height, device=X.device) - (height - 1) / 2  # pixels from the centre
    across = torch.arange(width, device=X.device) - (width - 1) / 2
    cos, sin = degrees.deg2rad().cos()[:, None], degrees.deg2rad().sin()[:, None]
    by_row = torch.complex(down * sin * (2 / width), down * cos * (2 / height))[:, :, None]
    by_column = torch.complex(across * cos * (2 / width), -across * sin * (2 / height))[:, None, :]
    grid = torch.view_as_real(by_row + by_column)
    return grid_sample(X, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def shift(X: Tensor, down: Tensor, right: Tensor, *, most: int) -> Tensor:
    """By whole pixels (int64 N, -most to most); what comes in is black."""
    height, width = X.shape[_DOWN:]
    rows, columns = min(most, height), min(most, width)  # a picture that is moved further is as black
    padded = pad(X, (columns, columns, rows, rows))
    padded_width = padded.shape[_ACROSS]
    corners = (rows - down.clamp(-rows, rows)) * padded_width + columns - right.clamp(-columns, columns)
    lines = torch.arange(0, padded.numel(), padded_width, device=X.device).view(padded.shape[:_ACROSS])
    firsts = lines[:, :, :height] + corners.view(-1, 1, 1)  # where each row of each cut begins
    stretches = padded.flatten().unfold(0, width, 1)  # a view of all rows that could be cut
    return stretches.index_select(0, firsts.flatten()).view(X.shape)


def brightness(X: Tensor, factors: Tensor) -> Tensor:
    """`factors`: float32 N, here and below."""
    return (X * factors.view(-1, 1, 1, 1)).clamp_(0, 1)


def contrast(X: Tensor, factors: Tensor) -> Tensor:
    """About each picture's mean."""
    return _apart(X, X.mean((1, 2, 3), keepdim=True), factors)


def saturation(X: Tensor, factors: Tensor) -> Tensor:
    """About each pixel's luminance (ITU-R BT.601, as Pillow's). Only colour pictures have any."""
    if X.shape[1] != 3:
        return X
    red, green, blue = X[:, :1], X[:, 1:2], X[:, 2:]
    return _apart(X, 0.299 * red + 0.587 * green + 0.114 * blue, factors)


def mix(X: Tensor, targets: Tensor, partners: Tensor, weights: Tensor) -> Batch:
    """Each picture and its targets with those of its partner (int64 N), which may be itself.

    `weights` are the partner's: float32 N x 1 x 1 x 1 (mixup, Zhang 2017, arXiv:1710.09412) or zeros and ones,
    N x 1 x H x W (CutMix, Yun 2019, arXiv:1905.04899). Targets, float32 N x anything, are mixed by their average.
    """
    shares = weights.mean((1, 2, 3))[:, None]
    blended = X.lerp(X.index_select(0, partners), weights)
    return blended, targets.lerp(targets.index_select(0, partners), shares)


def _apart(X: Tensor, middle: Tensor, factors: Tensor) -> Tensor:
    """Times as far from the middle."""
    factors = factors.view(-1, 1, 1, 1)
    return (X * factors).add_(middle * (1 - factors)).clamp_(0, 1)


def _on(X: Tensor, numbers: Tensor) -> Tensor:
    """On the device of X, without waiting for it."""
    return numbers.to(X.device, non_blocking=True)
