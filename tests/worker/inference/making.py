"""What an errand works with: a data folder, a checkpoint in it, a dataset."""

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.tiny import prepare_tiny
from worker.datasets.looks import summarise
from worker.inference.answers import Seen, computed, written
from worker.inference.errands import Place
from worker.inference.models import Models, Ready
from worker.jobs.card import Card
from worker.jobs.records import SavedCheckpoint
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.wire import OfDataset
from worker.networks import whole
from worker.training import checkpoints
from worker.training.checkpoints import Metadata
from worker.training.checkpoints import Place as CheckpointPlace

FOLDER = "datasets/fashion-mnist-v1"


def place(data_dir: Path, **settings: int) -> Place:
    made = Settings(data_dir=data_dir, min_free_bytes=0, **settings)  # type: ignore[arg-type]
    return Place(Models(data_dir, 2**30), made)


def tiny(data_dir: Path) -> tuple[Card, OfDataset]:
    """The tiny FashionMNIST, in place."""
    card = prepare_tiny(data_dir).card
    return card, OfDataset(folder=FOLDER, sha256=card.sha256)


def checkpoint(data_dir: Path, card: Card, **spec: object) -> SavedCheckpoint:
    """Of an untrained network for the dataset's pictures."""
    checked = Spec.model_validate(spec)
    torch.manual_seed(0)
    shape = whole.preprocessing(checked, card)
    images = torch.randint(256, (200, card.channels, card.height, card.width), dtype=torch.uint8)
    metadata = Metadata(
        job="1" * 24,
        epoch=3,
        spec=checked,
        classes=card.classes,
        targets=card.targets,
        preprocessing=shape,
        looks=summarise(images),
        dataset_sha256=card.sha256,
        metrics={"test_accuracy": 0.5} if card.classes else {},
    )
    network = whole.network(checked, shape, card.outputs)
    return checkpoints.save(CheckpointPlace(data_dir, metadata.job, 1, 0), metadata, network.state_dict(), {})


def answers(ready: Ready, seen: Sequence[Seen], top_k: int) -> list[bytes]:
    """One `Prediction` for each picture, as a predictor writes them."""
    return written(ready, *computed(ready, seen), top_k)
