"""What a spec and a dataset make together: the preprocessing, and the network that sees its output."""

from pathlib import Path

import torch
from torch import Tensor, nn

from worker.datasets.pictures import Preprocessing, plain
from worker.jobs.card import Card
from worker.jobs.spec import NLL, Spec, Torchvision

from .build import build, image_size
from .weights import load_weights

# Of ImageNet's training pictures, which torchvision's weights have seen:
# https://docs.pytorch.org/vision/stable/models.html
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class LogProbabilities(nn.LogSoftmax):
    """In fp32 whatever the precision, as inside the cross entropy."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch calls it so
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def preprocessing(spec: Spec, card: Card) -> Preprocessing:
    """How a job's pictures become its network's input. Raises SpecRefused."""
    made = plain(card.channels, card.height, card.width)
    changes: dict[str, object] = {"image_size": image_size(spec.model, card.height, card.width)}
    if spec.normalization == "dataset":
        changes |= {"mean": card.mean, "std": [std or 1.0 for std in card.std]}  # a channel may be of one value
    elif spec.normalization == "imagenet":
        changes |= {"mean": _of_channels(_IMAGENET_MEAN, card), "std": _of_channels(_IMAGENET_STD, card)}
    return made.model_copy(update=changes)


def network(spec: Spec, preprocessing: Preprocessing, outputs: int) -> nn.Module:
    """N x outputs: logits, log probabilities for the loss `nll`, or numbers.

    Its weights come from torch's global generator: seed it first. Raises SpecRefused.
    """
    height, width = preprocessing.input_size
    built = build(spec.model, channels=preprocessing.channels, height=height, width=width, outputs=outputs)
    return nn.Sequential(built, LogProbabilities(dim=1)) if isinstance(spec.loss, NLL) else built


def begin_with(network: nn.Module, spec: Spec, folder: Path, *, allow_download: bool) -> None:
    """Loads the weights that the spec begins with, if it names any, into what `network` gave.

    Raises WeightsMissing and WeightsUnfit.
    """
    if isinstance(spec.model, Torchvision) and spec.model.weights is not None:
        inner = network[0] if isinstance(network, nn.Sequential) else network  # without the log-softmax
        load_weights(inner, spec.model, folder, allow_download=allow_download)


def _of_channels(values: list[float], card: Card) -> list[float]:
    return values if card.channels == len(values) else [sum(values) / len(values)] * card.channels
