"""From a picture's bytes to an answer: the checkpoint's own preprocessing, `eval()`, softmax for classes."""

import math

import torch
from torch import Tensor

from worker.jobs.wire import ClassPrediction, Guess, NumberPrediction, Prediction

from .models import Ready


@torch.inference_mode()
def predict(ready: Ready, image: bytes, top_k: int, *, max_pixels: int) -> Prediction:
    """Raises BadImage and ImageTooLarge."""
    metadata = ready.metadata
    picture = metadata.preprocessing.picture(image, max_pixels=max_pixels)
    (output,) = ready.model(metadata.preprocessing.normalise(picture.unsqueeze(0)))
    if metadata.targets:
        return _numbers(output, metadata.targets)
    return _classes(output, metadata.classes, top_k)


def _classes(logits: Tensor, classes: list[str], top_k: int) -> ClassPrediction:
    probabilities, indices = logits.softmax(dim=0).topk(min(top_k, len(classes)))
    top = [
        Guess(class_index=index, label=classes[index], probability=probability)
        for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
    return ClassPrediction(**top[0].model_dump(), top=top)


def _numbers(output: Tensor, targets: list[str]) -> NumberPrediction:
    numbers = [number if math.isfinite(number) else None for number in output.tolist()]
    return NumberPrediction(
        value=numbers[0] if len(targets) == 1 else None, values=dict(zip(targets, numbers, strict=True))
    )
