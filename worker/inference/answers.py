"""From a picture's file to an answer: the checkpoint's own preprocessing, `eval()`, probabilities for classes.

An answer is a `Prediction` of the wire as JSON. It is written here by hand, because pydantic would take longer for it
than the network; a test holds it against the model.
"""

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import torch
from torch import Tensor

from worker.datasets.pictures import decode, fit, may_be_coloured
from worker.training import memory

from .models import Ready

_LARGE: Final = 2**22  # values: what was needed for a larger picture is not kept for the next one, which may never come
MOST_PICTURES: Final = 16  # in one pass: while it answers these the service can bring the next ones


class Seen(NamedTuple):
    """A picture as the network will see it, and what was found about it."""

    pixels: Tensor  # uint8 C x H x W
    warnings: list[str]
    fixed: list[str]


def look(ready: Ready, file: bytes, max_pixels: int, *, auto_fix: bool) -> Seen:
    """Without the warnings that `examined` adds. Raises BadImage and ImageTooLarge."""
    shape, doctor = ready.preprocessing, ready.doctor
    whole = decode(file, shape.channels, max_pixels=max_pixels)
    height, width = whole.shape[1:]
    warnings, fixed = doctor.of_shape(height, width), list[str]()
    if auto_fix:
        pixels, fixed = doctor.mended(whole)
        warnings = [] if fixed else warnings
    else:
        pixels = fit(whole, shape.height, shape.width)
    if doctor.wants_colours and may_be_coloured(file):
        warnings += doctor.of_colours(decode(file, 3, max_pixels=max_pixels))
    if whole.numel() > _LARGE:
        del whole
        memory.trim()
    return Seen(pixels, warnings, fixed)


def examined(ready: Ready, images: Tensor, seen: Sequence[Seen]) -> list[Seen]:
    """With what is odd about the pictures as the network sees them. images: uint8 N x C x H x W."""
    told = list(seen)
    for place in ready.doctor.suspects(images):
        told[place] = told[place]._replace(warnings=[*told[place].warnings, *ready.doctor.warnings(images[place])])
    return told


@torch.inference_mode()
def computed(ready: Ready, seen: Sequence[Seen]) -> tuple[Tensor, list[Seen]]:
    """N x outputs from one pass through the network, and the pictures with all that was found about them."""
    images = torch.stack([each.pixels for each in seen])
    return ready.logits(images), examined(ready, images, seen)


def written(ready: Ready, logits: Tensor, seen: Sequence[Seen], top_k: int) -> list[bytes]:
    """logits: N x outputs."""
    notes = [f'"warnings":{_list(each.warnings)},"fixed":{_list(each.fixed)}}}' for each in seen]
    if ready.metadata.targets:
        return [_numbers(row, ready.metadata.targets, note) for row, note in zip(logits.tolist(), notes, strict=True)]
    labels = _labels(tuple(ready.metadata.classes))
    probabilities, indices = ready.probabilities(logits).topk(min(top_k, len(labels)))
    rows = zip(indices.tolist(), probabilities.tolist(), notes, strict=True)
    return [_classes(labels, *row) for row in rows]


def _classes(labels: list[str], indices: list[int], probabilities: list[float], note: str) -> bytes:
    guesses = [
        f'"class_index":{index},"label":{labels[index]},"probability":{_number(probability)}'
        for index, probability in zip(indices, probabilities, strict=True)
    ]
    top = ",".join([f"{{{guess}}}" for guess in guesses])
    return f'{{{guesses[0]},"top":[{top}],{note}'.encode()


def _numbers(values: list[float], targets: list[str], note: str) -> bytes:
    numbers = [_number(value) for value in values]
    alone = numbers[0] if len(targets) == 1 else "null"
    named = ",".join([f"{name}:{number}" for name, number in zip(_labels(tuple(targets)), numbers, strict=True)])
    return f'{{"value":{alone},"values":{{{named}}},{note}'.encode()


def _number(value: float) -> str:
    return repr(value) if math.isfinite(value) else "null"


@lru_cache(maxsize=64)
def _labels(names: tuple[str, ...]) -> list[str]:
    return [json.dumps(name) for name in names]


def _list(sentences: list[str]) -> str:
    return json.dumps(sentences) if sentences else "[]"
