"""A small dataset of real pictures, for tests that need training to take milliseconds: the first of FashionMNIST."""

from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.worker.jobs.making import make_ready
from worker.datasets import fashion_mnist
from worker.datasets.opening import CARD, Prepared, open_prepared
from worker.datasets.preparing import prepare, write
from worker.datasets.source import Source, Split
from worker.jobs import versions
from worker.jobs.db import Database
from worker.jobs.settings import Settings
from worker.jobs.tables import Dataset

TRAIN, TEST = 500, 100  # no multiple of 64: the last batch is short


@cache
def _whole() -> Source:
    with TemporaryDirectory() as folder:
        return fashion_mnist.read(Settings(data_dir=Path(folder)), Path(folder))


def prepare_tiny(data_dir: Path, train: int = TRAIN, test: int = TEST) -> Prepared:
    """Prepares the first pictures under the name fashion-mnist in this data folder."""
    whole = _whole()
    folder = data_dir / "datasets" / "fashion-mnist-v1"
    folder.mkdir(parents=True)
    small = Source(
        classes=whole.classes,
        train=Split(whole.train.images[:train], whole.train.labels[:train]),
        test=Split(whole.test.images[:test], whole.test.labels[:test]),
    )
    card = write(small, "fashion-mnist", folder, lambda *_: None)
    (folder / CARD).write_text(card.model_dump_json())
    return open_prepared(folder, card.sha256)


def ready_tiny(db: Database, data_dir: Path) -> Prepared:
    """The same, and known to the database."""
    prepared = prepare_tiny(data_dir)
    make_ready(db, prepared.card)
    return prepared


def prepare_whole(data_dir: Path) -> Path:
    """The folder of FashionMNIST, all of it."""
    row = Dataset(id="0" * 24, name="fashion-mnist", version=1, created_at=datetime.now(UTC))
    prepare(Settings(data_dir=data_dir), row, lambda *_: None)
    return data_dir / versions.folder(row)
