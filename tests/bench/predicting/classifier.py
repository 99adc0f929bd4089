"""What the yardsticks serve: the checkpoint that epochd trained, in plain torch and Pillow, as users have it."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.functional import to_tensor

# What a yardstick's processes are told, by their environment: workers are started by the servers themselves.
NETWORK: Final = "BENCH_NETWORK"
CHECKPOINT: Final = "BENCH_CHECKPOINT"
THREADS: Final = "BENCH_THREADS"  # unset: torch's default

_SIDE: Final = 224


class Classifier:
    def __init__(self, network: str, checkpoint: Path) -> None:
        with safe_open(checkpoint, "pt") as file:
            self.classes: list[str] = json.loads(file.metadata()["epochd"])["classes"]
        self._network = _NETWORKS[network](len(self.classes))
        self._network.load_state_dict(load_file(checkpoint))
        self._network.eval()
        self._prepare = _PREPARE[network]

    def prepare(self, file: bytes) -> Tensor:
        """A picture's file as float32 C x H x W in 0..1."""
        with Image.open(io.BytesIO(file)) as image:
            X: Tensor = to_tensor(self._prepare(image))
        return X

    @torch.inference_mode()
    def answers(self, X: Tensor) -> list[dict[str, Any]]:
        """One for each picture of a batch."""
        probabilities, indices = self._network(X).softmax(dim=1).max(dim=1)
        return [
            {"class_index": index, "label": self.classes[index], "probability": probability}
            for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
        ]


def from_environment() -> Classifier:
    """Also sets torch's threads, of this process."""
    if threads := os.environ.get(THREADS):
        torch.set_num_threads(int(threads))
    return Classifier(os.environ[NETWORK], Path(os.environ[CHECKPOINT]))


def _mlp(classes: int) -> nn.Module:
    """The tutorial's."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(28 * 28, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, classes)
    )


def _resnet18(classes: int) -> nn.Module:
    network: nn.Module = resnet18(num_classes=classes)
    return network


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L")


def _cut(image: Image.Image) -> Image.Image:
    return ImageOps.fit(image.convert("RGB"), (_SIDE, _SIDE), Image.Resampling.BILINEAR)


_NETWORKS: Final[dict[str, Callable[[int], nn.Module]]] = {"mlp": _mlp, "resnet18": _resnet18}
_PREPARE: Final[dict[str, Callable[[Image.Image], Image.Image]]] = {"mlp": _grey, "resnet18": _cut}
