"""Preparing: a dataset's pictures, decoded once, become arrays on disk that training maps into memory.

A prepared dataset is a folder that appears whole, by one rename, or not at all.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

from worker.jobs import versions
from worker.jobs.card import Card
from worker.jobs.errors import DatasetInvalid
from worker.jobs.files import fsync
from worker.jobs.form import Form
from worker.jobs.settings import Settings
from worker.jobs.tables import Dataset

from . import catalogue, report, uploaded
from .arrays import Writer
from .opening import CARD, remember_contents
from .source import Source, Watch

_CHUNK = 4096  # pictures at a time


def prepare(settings: Settings, dataset: Dataset, watch: Watch) -> Card:
    """Makes the folder of the prepared dataset, unless it is there already. Returns its card.

    Raises DatasetMissing for a built-in one, and what `uploaded.prepare` raises.
    """
    folder = settings.data_dir / versions.folder(dataset)
    if dataset.form is None:
        name = dataset.name
        return _made_whole(
            folder, lambda scratch: write(catalogue.read(settings, name, scratch, watch), name, scratch, watch)
        )
    form = Form.model_validate(dataset.form)
    archive = settings.data_dir / versions.archive_path(dataset.id)
    if not archive.exists() and not folder.exists():
        raise DatasetInvalid("The uploaded file is gone; upload it again.")
    return _made_whole(folder, lambda scratch: uploaded.prepare(archive, form, scratch, settings, watch))


def write(source: Source, name: str, folder: Path, watch: Watch) -> Card:
    """Writes the arrays of what a reader gave, durably. Returns the card."""
    _, channels, height, width = source.train.images.shape
    total = len(source.train) + len(source.test)
    counts = []
    with Writer(folder, (channels, height, width)) as writer:
        for split in (source.train, source.test):
            for start in range(0, len(split), _CHUNK):
                stop = start + _CHUNK
                writer.add(split.images[start:stop].numpy(), split.labels[start:stop].numpy())
                watch("writing", writer.count, total)
            counts.append(report.by_class(writer.end_split().tolist(), source.classes))
    mean, std = writer.statistics()
    return Card(
        name=name,
        classes=source.classes,
        channels=channels,
        height=height,
        width=width,
        train_count=len(source.train),
        test_count=len(source.test),
        train_counts=counts[0],
        test_counts=counts[1],
        mean=mean,
        std=std,
        sha256=writer.sha256,
    )


def _made_whole(folder: Path, make: Callable[[Path], Card]) -> Card:
    """Has `make` fill a folder that then appears under its name. The dataset's lease keeps others away meanwhile;
    one that lost its lease and does not know it yet finds its folder gone.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / CARD).exists():  # made by an attempt that died before it could say so
        return Card.model_validate_json((folder / CARD).read_text())
    for left_over in folder.parent.glob(f"{versions.SCRATCH}{folder.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)  # its owner may still be at it
    if folder.exists():  # without a card it is none of ours
        shutil.rmtree(folder)
    scratch = Path(mkdtemp(prefix=f"{versions.SCRATCH}{folder.name}-", dir=folder.parent))
    try:
        card = make(scratch)
        (scratch / CARD).write_text(card.model_dump_json(indent=2))
        fsync(scratch / CARD)
        remember_contents(scratch)
        fsync(scratch)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    fsync(folder.parent)
    return card
