"""The specs that are measured: the tutorial's, and what `reference.py` trains."""

from typing import Any, Final

from .reference import BATCH_SIZE, LR, MOMENTUM

_LIKE_THE_REFERENCE: Final[dict[str, Any]] = {
    "optimizer": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
    "batch_size": BATCH_SIZE,
    "precision": "bf16",
}
TUTORIAL: Final[dict[str, Any]] = {"shuffle": False}
AUGMENTED: Final[dict[str, Any]] = {"augmentation": {"flip": "horizontal", "shift": 2}}
MODELS: Final[dict[str, dict[str, Any]]] = {
    "mlp": {},
    "cnn": {"model": {"name": "cnn"}, **_LIKE_THE_REFERENCE},
    "resnet18": {"model": {"name": "resnet18", "image_size": 32, "small_stem": True}, **_LIKE_THE_REFERENCE},
}
