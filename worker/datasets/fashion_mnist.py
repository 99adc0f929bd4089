"""FashionMNIST: where its four idx files may come from, and how they are read.

H. Xiao, K. Rasul, R. Vollgraf: "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", 2017.
"""

import gzip
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
from torchvision.datasets import FashionMNIST

from worker.jobs.errors import DatasetMissing
from worker.jobs.settings import Settings

from .source import Source, Split

# Of the decompressed files: Debian's package compresses them anew, so the archives' own sums differ.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_PACKAGE = "dataset-fashion-mnist"
_log = structlog.get_logger()


def read(settings: Settings, scratch: Path) -> Source:
    """The pictures and labels, from the first place that has them; what is fetched lies in `scratch` meanwhile. Raises
    DatasetMissing.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        root = Path(folder)
        raw = root / "FashionMNIST" / "raw"  # where torchvision's reader looks
        gather(settings, raw, root / "download")
        train, test = (FashionMNIST(root, train=train, download=False) for train in (True, False))
        return Source(
            classes=list(train.classes),
            train=Split(train.data.unsqueeze(1), train.targets),
            test=Split(test.data.unsqueeze(1), test.targets),
        )


def gather(settings: Settings, raw: Path, download: Path) -> None:
    """Puts the four verified files into `raw`."""
    own = settings.data_dir / "sources" / "fashion-mnist"
    system = settings.system_datasets_dir / "fashion-mnist"
    if _copy_verified(own, raw) or _copy_verified(system, raw):
        return
    for fetch in FETCHERS if settings.allow_download else []:
        try:
            folder = fetch(download)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            _log.warning("dataset_fetch_failed", dataset="fashion-mnist", way=fetch.__name__, error=said[-500:])
            continue
        if _copy_verified(folder, raw):
            return
    raise DatasetMissing(
        "FashionMNIST was not found. Put its four idx files (plain or .gz) into "
        "sources/fashion-mnist in the data folder, or install Debian's package dataset-fashion-mnist, or "
        + (
            "let torchvision download it (that failed just now)."
            if settings.allow_download
            else "allow torchvision to download it with EPOCHD_ALLOW_DOWNLOAD=true."
        )
    )


def _copy_verified(folder: Path, raw: Path) -> bool:
    """Copies the files from `folder`, decompressed; False when one is absent or its contents are not right."""
    raw.mkdir(parents=True, exist_ok=True)
    for name, sha256 in SHA256.items():
        packed, plain = folder / f"{name}.gz", folder / name
        try:
            contents = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
        except (OSError, EOFError):
            return False
        if hashlib.sha256(contents).hexdigest() != sha256:
            _log.warning("dataset_contents_differ", dataset="fashion-mnist", file=name)
            return False
        (raw / name).write_bytes(contents)
    return True


def _from_debian(folder: Path) -> Path:
    """Unpacks Debian's package without installing it, so that no root is needed."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise FileNotFoundError("no apt-get on this machine")
    lists = folder / "state" / "lists" / "partial"
    archives = folder / "cache" / "archives" / "partial"
    for needed in (lists, archives):
        needed.mkdir(parents=True, exist_ok=True)
    own_state = ["-o", f"Dir::State={folder / 'state'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    try:  # with the machine's own package lists
        _run(folder, "apt-get", "-q", "download", _PACKAGE)
    except subprocess.CalledProcessError:  # a fresh machine has none: fetch a private copy
        _run(folder, "apt-get", "-q", *own_state, "update")
        _run(folder, "apt-get", "-q", *own_state, "download", _PACKAGE)
    package = next(folder.glob(f"{_PACKAGE}_*.deb"))
    _run(folder, "dpkg-deb", "-x", str(package), str(folder / "unpacked"))
    return folder / "unpacked" / "usr" / "share" / "datasets" / "fashion-mnist"


def _from_torchvision(folder: Path) -> Path:
    FashionMNIST(folder, download=True)
    return folder / "FashionMNIST" / "raw"


FETCHERS: list[Callable[[Path], Path]] = [_from_debian, _from_torchvision]


def _run(folder: Path, *command: str) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=300)
