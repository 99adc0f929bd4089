"""A small dataset of real pictures, for tests that need training to take milliseconds: the first of FashionMNIST."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from worker.datasets import fashion_mnist
from worker.datasets.opening import Prepared, open_prepared
from worker.datasets.preparing import write
from worker.datasets.source import Source, Split
from worker.jobs.settings import Settings

TRAIN, TEST = 500, 100  # no multiple of 64: the last batch is short


@cache
def _whole() -> Source:
    with TemporaryDirectory() as folder:
        return fashion_mnist.read(Settings(data_dir=Path(folder)))


def prepare_tiny(data_dir: Path, train: int = TRAIN, test: int = TEST) -> Prepared:
    """Prepares the first pictures under the name fashion-mnist in this data folder."""
    whole = _whole()
    folder = data_dir / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    small = Source(
        classes=whole.classes,
        train=Split(whole.train.images[:train], whole.train.labels[:train]),
        test=Split(whole.test.images[:test], whole.test.labels[:test]),
    )
    write(small, "fashion-mnist", folder)
    return open_prepared(folder)
