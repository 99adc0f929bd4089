"""From a picture's bytes to an answer: the checkpoint's own preprocessing, `eval()`, probabilities for classes."""

import math

import torch
from torch import Tensor

from worker.jobs.spec import MSE
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
    is_one_hot = isinstance(metadata.spec.loss, MSE)
    return _classes(_shares(output) if is_one_hot else output.softmax(dim=0), metadata.classes, top_k)


def _shares(output: Tensor) -> Tensor:
    """A network trained on one-hot targets gives estimates of probabilities, which need not keep to 0..1."""
    positive = output.clamp(min=torch.finfo(output.dtype).tiny)
    return positive / positive.sum()


def _classes(of_classes: Tensor, classes: list[str], top_k: int) -> ClassPrediction:
    probabilities, indices = of_classes.topk(min(top_k, len(classes)))
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
