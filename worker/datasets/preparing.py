"""Preparing: a dataset's pictures, decoded once, become arrays on disk that training maps into memory.

A prepared dataset is a folder that appears whole, by one rename, or not at all.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

from worker.jobs.settings import Settings

from . import fashion_mnist
from .card import FILES, Card
from .source import Source, Split

_READERS: dict[str, Callable[[Settings], Source]] = {"fashion-mnist": fashion_mnist.read}
_CHUNK = 4096  # pictures at a time when statistics are computed


def prepare(settings: Settings, name: str) -> Path:
    """The folder of the prepared dataset, made now if this is its first use. Raises DatasetMissing."""
    datasets = settings.data_dir / "datasets"
    folder = datasets / name
    if (folder / "card.json").exists():
        return folder
    datasets.mkdir(parents=True, exist_ok=True)
    with _alone(datasets / f".{name}.lock"):
        if not (folder / "card.json").exists():
            for half_done in datasets.glob(f".preparing-{name}-*"):
                shutil.rmtree(half_done)
            if folder.exists():  # without a card it is none of ours
                shutil.rmtree(folder)
            scratch = Path(mkdtemp(prefix=f".preparing-{name}-", dir=datasets))
            write(_READERS[name](settings), name, scratch)
            scratch.rename(folder)
            _fsync(datasets)
    return folder


def write(source: Source, name: str, folder: Path) -> None:
    """Writes the arrays and the card of a prepared dataset, durably."""
    arrays = [source.train.images, source.train.labels, source.test.images, source.test.labels]
    digest = hashlib.sha256()
    for file, tensor in zip(FILES, arrays, strict=True):
        array = np.ascontiguousarray(tensor.numpy())
        digest.update(array.data)
        np.save(folder / file, array)
        _fsync(folder / file)
    mean, std = _statistics(source.train)
    _, channels, height, width = source.train.images.shape
    card = Card(
        name=name,
        classes=source.classes,
        channels=channels,
        height=height,
        width=width,
        train_count=len(source.train),
        test_count=len(source.test),
        mean=mean,
        std=std,
        sha256=digest.hexdigest(),
    )
    (folder / "card.json").write_text(card.model_dump_json(indent=2))
    _fsync(folder / "card.json")


def _statistics(split: Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels scaled to 0..1."""
    total = torch.zeros(split.images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(split.images, _CHUNK):
        pixels = chunk.double() / 255
        total += pixels.sum(dim=(0, 2, 3))
        squares += pixels.square().sum(dim=(0, 2, 3))
    count = split.images.numel() / split.images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), std.tolist()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the kernel lets go of the lock when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
