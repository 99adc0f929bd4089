"""Opening a prepared dataset: its arrays are mapped, not read, so opening costs nothing and memory is shared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .card import FILES, Card
from .source import Split


@dataclass(frozen=True)
class Prepared:
    card: Card
    train: Split
    test: Split


def open_prepared(folder: Path) -> Prepared:
    card = Card.model_validate_json((folder / "card.json").read_text())
    # Copy-on-write: the file cannot be changed through the tensor, and torch need not warn of a read-only one.
    arrays = [torch.from_numpy(np.load(folder / file, mmap_mode="c")) for file in FILES]
    return Prepared(card, train=Split(*arrays[:2]), test=Split(*arrays[2:]))
