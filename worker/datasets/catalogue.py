"""The built-in datasets, through torchvision's readers: from files at hand, or from torchvision's own download.

Files at hand lie in `sources/<name>` in the data folder, as their authors publish them, packed or unpacked.
"""

import gzip
import importlib.util
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import structlog
import torch
from torch import Tensor
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, extract_archive

from worker.jobs.errors import DatasetMissing
from worker.jobs.settings import Settings

from . import fashion_mnist
from .source import Source, Split, Watch

_log = structlog.get_logger()


@dataclass(frozen=True)
class Reader:
    """One of torchvision's readers, and how its files are called."""

    load: Callable[..., Any]  # load(root, train=..., download=...)
    title: str
    wanted: str  # what a user can put into `sources/<name>`
    folder: str = "."  # where torchvision looks for the files, below its root
    archive: tuple[str, str] | None = None  # of all files: its name and md5


def read(settings: Settings, name: str, scratch: Path, watch: Watch) -> Source:
    """The pictures and labels, from the first place that has them; what is fetched lies in `scratch` meanwhile, since
    /tmp may be small. Raises DatasetMissing.
    """
    watch("fetching", 0, 0)
    if name == "fashion-mnist":
        return fashion_mnist.read(settings, scratch)
    if name == "svhn" and importlib.util.find_spec("scipy") is None:
        raise DatasetMissing("SVHN comes in MATLAB's format, and reading that needs scipy: pip install 'epochd[svhn]'.")
    reader = READERS[name]
    with TemporaryDirectory(dir=scratch) as folder:
        root = Path(folder)
        _bring(settings.data_dir / "sources" / name, root / reader.folder, reader)
        train, test = _load(reader, root, name, allow_download=settings.allow_download)
        return _source(name, train, test)


def _bring(own: Path, folder: Path, reader: Reader) -> None:
    """Puts files at hand where torchvision looks for them, unpacked.

    What is there twice, packed and plain, is taken once: what was written to a name that is a link already would end
    in the user's own file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = list(own.iterdir()) if own.is_dir() else []
    for file in files:
        if reader.archive is not None and file.name == reader.archive[0]:
            if check_integrity(file, reader.archive[1]):
                extract_archive(file, folder)
            else:
                _log.warning("dataset_contents_differ", dataset=reader.title, file=file.name)
    for file in files:
        if file.suffix not in (".gz", ".zip") and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    for packed in (*own.glob("*.gz"), *(folder / "gzip").glob("*.gz")):  # EMNIST is packed twice
        if not packed.name.endswith(".tar.gz") and not (folder / packed.stem).exists():
            _unpack(packed, folder / packed.stem)


def _unpack(packed: Path, plain: Path) -> None:
    try:
        with gzip.open(packed) as source, plain.open("wb") as file:
            shutil.copyfileobj(source, file)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        plain.unlink()
        _log.warning("dataset_contents_differ", file=packed.name)


def _load(reader: Reader, root: Path, name: str, *, allow_download: bool) -> tuple[Any, Any]:
    # A download never meets the files at hand: it would take damaged ones for its own.
    for folder, download in ((root, False), (root / "download", True))[: 1 + allow_download]:
        try:
            return tuple(reader.load(folder, train=train, download=download) for train in (True, False))
        except Exception as error:  # torchvision's readers raise what they like on damaged files
            _log.warning("dataset_not_read", dataset=name, download=download, error=str(error)[-500:])
    raise DatasetMissing(
        f"{reader.title} was not found. Put {reader.wanted} into sources/{name} in the data folder, or "
        + (
            "let torchvision download it (that failed just now)."
            if allow_download
            else "allow torchvision to download it with EPOCHD_ALLOW_DOWNLOAD=true."
        )
    )


def _source(name: str, train: Any, test: Any) -> Source:
    if name == "svhn":
        classes = [str(digit) for digit in range(10)]
        return Source(classes, *(Split(torch.tensor(each.data), torch.tensor(each.labels)) for each in (train, test)))
    return Source(list(train.classes), *(_split(each) for each in (train, test)))


def _split(read: Any) -> Split:
    labels = torch.as_tensor(read.targets, dtype=torch.int64)
    images: Tensor = torch.as_tensor(read.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Split(images.contiguous(), labels)


def _emnist(split: str) -> Reader:
    def load(root: Path, *, train: bool, download: bool) -> Any:
        read = datasets.EMNIST(root, split, train=train, download=download)
        read.data = read.data.transpose(1, 2)  # the files hold the pictures on their side
        if split == "letters":  # which counts from 1
            read.classes, read.targets = read.classes[1:], read.targets - 1
        return read

    wanted = f"gzip.zip or the files emnist-{split}-* that it holds"
    return Reader(
        load, f"EMNIST ({split})", wanted, "EMNIST/raw", (_basename(datasets.EMNIST.url), datasets.EMNIST.md5)
    )


def _basename(url: str) -> str:
    return url.rpartition("/")[2]


def _idx(kind: type[Any], title: str) -> Reader:
    return Reader(kind, title, "its four idx files (plain or .gz)", f"{kind.__name__}/raw")


def _cifar(kind: type[Any], title: str) -> Reader:
    return Reader(kind, title, f"{kind.filename} or what it holds", archive=(kind.filename, kind.tgz_md5))


def _svhn(root: Path, *, train: bool, download: bool) -> Any:
    return datasets.SVHN(root, "train" if train else "test", download=download)


READERS: Final = {
    "mnist": _idx(datasets.MNIST, "MNIST"),
    "kmnist": _idx(datasets.KMNIST, "KMNIST"),
    **{f"emnist-{split}": _emnist(split) for split in datasets.EMNIST.splits},
    "cifar10": _cifar(datasets.CIFAR10, "CIFAR-10"),
    "cifar100": _cifar(datasets.CIFAR100, "CIFAR-100"),
    "svhn": Reader(_svhn, "SVHN", "train_32x32.mat and test_32x32.mat"),
}
