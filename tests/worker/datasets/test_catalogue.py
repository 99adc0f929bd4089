"""Tiny files in each dataset's own published format; torchvision's md5 sums are set to theirs where it checks them."""

import dataclasses
import gzip
import hashlib
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat
from torchvision import datasets

from worker.datasets import catalogue, fashion_mnist
from worker.datasets.catalogue import READERS
from worker.datasets.source import Source, Split
from worker.jobs.built_in import BUILT_IN
from worker.jobs.errors import DatasetMissing
from worker.jobs.settings import Settings

TRAIN, TEST = 10, 4
CIFARS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
RNG = np.random.default_rng(0)

Bytes = NDArray[np.uint8]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", allow_download=False)


def read(settings: Settings, name: str) -> Source:
    scratch = settings.data_dir / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    source = catalogue.read(settings, name, scratch, lambda *_: None)
    assert list(scratch.iterdir()) == []  # what was unpacked is gone
    return source


def own(settings: Settings, name: str) -> Path:
    """Where a user puts the files of this dataset."""
    folder = settings.data_dir / "sources" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def greys(count: int) -> Bytes:
    return RNG.integers(256, size=(count, 28, 28), dtype=np.uint8)


def colours(count: int) -> Bytes:
    return RNG.integers(256, size=(count, 3, 32, 32), dtype=np.uint8)


def numbers(count: int, first: int, behind: int) -> Bytes:
    return RNG.integers(first, behind, size=count, dtype=np.uint8)


def idx(array: Bytes) -> bytes:
    """LeCun's format: two zeros, 8 for unsigned bytes, the number of dimensions, their sizes, the bytes."""
    return struct.pack(f"!HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def put_idx(folder: Path, stems: tuple[str, str], first: int = 0, *, compressed: bool = False) -> dict[str, Bytes]:
    """Writes four files and returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for stem, count in zip(stems, (TRAIN, TEST), strict=True):
        for file, array in (
            (f"{stem}-images-idx3-ubyte", greys(count)),
            (f"{stem}-labels-idx1-ubyte", numbers(count, first, first + 10)),
        ):
            written[file] = array
            if compressed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / file).write_bytes(idx(array))
    return written


def assert_holds(split: Split, images: Bytes, labels: Bytes) -> None:
    assert split.images.dtype == torch.uint8
    assert split.labels.dtype == torch.int64
    np.testing.assert_array_equal(split.images.numpy(), images)
    np.testing.assert_array_equal(split.labels.numpy(), labels)


def assert_holds_idx(source: Source, written: dict[str, Bytes], stems: tuple[str, str]) -> None:
    for split, stem in zip((source.train, source.test), stems, strict=True):
        images = written[f"{stem}-images-idx3-ubyte"][:, None]
        assert_holds(split, images, written[f"{stem}-labels-idx1-ubyte"])


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


MNIST_STEMS = ("train", "t10k")


def test_every_built_in_name_has_a_reader() -> None:
    assert {"fashion-mnist", *READERS} == set(BUILT_IN)


def test_fashion_mnist_has_its_own_reader(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source([], Split(torch.empty(0), torch.empty(0)), Split(torch.empty(0), torch.empty(0)))
    monkeypatch.setattr(fashion_mnist, "read", lambda given, _: source if given is settings else None)
    assert catalogue.read(settings, "fashion-mnist", Path(), lambda *_: None) is source


def test_it_says_that_it_is_fetching(settings: Settings, tmp_path: Path) -> None:
    put_idx(own(settings, "mnist"), MNIST_STEMS)
    told: list[tuple[str, int, int]] = []
    catalogue.read(settings, "mnist", tmp_path, lambda *each: told.append(each))
    assert told == [("fetching", 0, 0)]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_idx_files_in_the_data_folder_are_found(settings: Settings, name: str, compressed: bool) -> None:
    written = put_idx(own(settings, name), MNIST_STEMS, compressed=compressed)
    source = read(settings, name)
    assert_holds_idx(source, written, MNIST_STEMS)
    assert source.classes[9] == {"mnist": "9 - nine", "kmnist": "wo"}[name]
    assert len(source.classes) == 10


def test_a_file_that_is_there_packed_and_plain_is_taken_once_and_left_as_it_is(settings: Settings) -> None:
    """torchvision's own download leaves both. Unpacking must not write through a link into a file of the user's."""
    folder = own(settings, "mnist")
    put_idx(folder, MNIST_STEMS, compressed=True)
    written = put_idx(folder, MNIST_STEMS)  # others, so that it shows which were taken
    before = contents(folder)
    assert_holds_idx(read(settings, "mnist"), written, MNIST_STEMS)
    assert contents(folder) == before


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("split", "classes"),
    [("balanced", 47), ("byclass", 62), ("bymerge", 47), ("digits", 10), ("letters", 26), ("mnist", 10)],
)
def test_emnists_pictures_come_upright_and_its_classes_count_from_0(
    settings: Settings, split: str, classes: int, compressed: bool
) -> None:
    stems = (f"emnist-{split}-train", f"emnist-{split}-test")
    first = 1 if split == "letters" else 0  # as published
    written = put_idx(own(settings, f"emnist-{split}"), stems, first, compressed=compressed)
    source = read(settings, f"emnist-{split}")
    upright = {
        file: array.transpose(0, 2, 1) if array.ndim == 3 else array - np.uint8(first)
        for file, array in written.items()
    }
    assert_holds_idx(source, upright, stems)
    assert len(source.classes) == classes
    assert source.classes[0] == ("a" if split == "letters" else "0")


def put_emnist_zip(folder: Path, scratch: Path, *splits: str) -> dict[str, Bytes]:
    """The authors' one archive of all splits, whose members are packed themselves."""
    written: dict[str, Bytes] = {}
    for split in splits:
        written |= put_idx(scratch, (f"emnist-{split}-train", f"emnist-{split}-test"), 1, compressed=True)
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for file in scratch.iterdir():
            archive.write(file, f"gzip/{file.name}")
    return written


def vouch_for_archive(monkeypatch: pytest.MonkeyPatch, name: str, archive: Path) -> None:
    reader = dataclasses.replace(READERS[name], archive=(archive.name, md5(archive)))
    monkeypatch.setitem(READERS, name, reader)


def test_emnist_is_read_from_its_twice_packed_archive(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(settings, "emnist-digits")
    written = put_emnist_zip(folder, tmp_path / "packed", "digits", "letters")
    vouch_for_archive(monkeypatch, "emnist-digits", folder / "gzip.zip")
    source = read(settings, "emnist-digits")
    images = written["emnist-digits-test-images-idx3-ubyte"].transpose(0, 2, 1)[:, None]
    assert_holds(source.test, images, written["emnist-digits-test-labels-idx1-ubyte"])
    assert len(source.train) == TRAIN


def test_an_emnist_archive_with_another_md5_is_not_taken(settings: Settings, tmp_path: Path) -> None:
    put_emnist_zip(own(settings, "emnist-digits"), tmp_path / "packed", "digits")
    with pytest.raises(DatasetMissing):
        read(settings, "emnist-digits")


def put_cifar(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Bytes, list[int]]]:
    """Python pickles in a folder, as published. Returns pictures and labels of train and test."""
    kind = CIFARS[name]
    is_small = name == "cifar10"
    inner = folder / kind.base_folder
    inner.mkdir(parents=True)
    parts: dict[str, list[tuple[Bytes, list[int]]]] = {"train": [], "test": []}
    listed: dict[str, list[list[str]]] = {"train": [], "test": []}
    for split, files in (("train", kind.train_list), ("test", kind.test_list)):
        for file, _ in files:
            count = TRAIN // len(files) if split == "train" else TEST
            images, labels = colours(count), numbers(count, 0, len(label_names(name))).tolist()
            entry = {"data": images.reshape(count, -1), "labels" if is_small else "fine_labels": labels}
            if not is_small:
                entry["coarse_labels"] = [0] * count
            (inner / file).write_bytes(pickle.dumps(entry, protocol=2))
            parts[split].append((images, labels))
            listed[split].append([file, md5(inner / file)])
    (inner / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: label_names(name)}, protocol=2))
    monkeypatch.setattr(kind, "train_list", listed["train"])
    monkeypatch.setattr(kind, "test_list", listed["test"])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(inner / kind.meta["filename"])})
    return {
        split: (np.concatenate([images for images, _ in all_of]), [label for _, labels in all_of for label in labels])
        for split, all_of in parts.items()
    }


def label_names(name: str) -> list[str]:
    return [f"class {index}" for index in range({"cifar10": 10, "cifar100": 100}[name])]


def pack_cifar(folder: Path, name: str) -> Path:
    kind = CIFARS[name]
    packed: Path = folder / kind.filename
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(folder / kind.base_folder, kind.base_folder)
    return packed


def remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def assert_holds_cifar(source: Source, written: dict[str, tuple[Bytes, list[int]]], name: str) -> None:
    assert_holds(source.train, written["train"][0], np.array(written["train"][1], dtype=np.uint8))
    assert_holds(source.test, written["test"][0], np.array(written["test"][1], dtype=np.uint8))
    assert source.classes == label_names(name)


@pytest.mark.parametrize("name", CIFARS)
def test_cifar_is_read_from_its_unpacked_folder(settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = put_cifar(own(settings, name), name, monkeypatch)
    source = read(settings, name)
    assert source.train.images.shape == (TRAIN, 3, 32, 32)
    assert_holds_cifar(source, written, name)


@pytest.mark.parametrize("name", CIFARS)
def test_cifar_is_read_from_its_archive(settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own(settings, name)
    written = put_cifar(folder, name, monkeypatch)
    vouch_for_archive(monkeypatch, name, pack_cifar(folder, name))
    remove(folder / CIFARS[name].base_folder)
    assert_holds_cifar(read(settings, name), written, name)


def test_an_archive_beside_its_unpacked_folder_leaves_that_as_it_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(settings, "cifar10")
    written = put_cifar(folder, "cifar10", monkeypatch)
    vouch_for_archive(monkeypatch, "cifar10", pack_cifar(folder, "cifar10"))
    (folder / datasets.CIFAR10.base_folder / "test_batch").write_bytes(b"the user's own")
    before = contents(folder)
    assert_holds_cifar(read(settings, "cifar10"), written, "cifar10")
    assert contents(folder) == before


@pytest.mark.parametrize("name", CIFARS)
def test_a_cifar_archive_with_another_md5_is_not_taken(
    settings: Settings, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = own(settings, name)
    put_cifar(folder, name, monkeypatch)  # the files in it would be right
    pack_cifar(folder, name)
    remove(folder / CIFARS[name].base_folder)
    with pytest.raises(DatasetMissing, match=CIFARS[name].filename):
        read(settings, name)


def put_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Bytes, Bytes]]:
    """MATLAB files: the pictures are the last dimension, and 10 stands for the digit 0."""
    written, listed = {}, {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, labels = colours(count), np.array([10, *numbers(count - 1, 1, 11)], dtype=np.uint8)
        file = folder / f"{split}_32x32.mat"
        savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels[:, None]})
        written[split] = images, labels % 10
        listed[split] = ["http://localhost/", file.name, md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return written


def test_svhn_is_read_from_its_matlab_files(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    written = put_svhn(own(settings, "svhn"), monkeypatch)
    source = read(settings, "svhn")
    assert_holds(source.train, *written["train"])
    assert_holds(source.test, *written["test"])
    assert source.train.labels[0] == 0
    assert source.classes == [*"0123456789"]


def test_without_scipy_a_sentence_says_how_svhn_can_be_had(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    put_svhn(own(settings, "svhn"), monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(DatasetMissing, match=r"scipy: pip install 'epochd\[svhn\]'"):
        read(settings, "svhn")


@pytest.mark.parametrize("name", READERS)
def test_with_nothing_at_hand_a_sentence_names_what_to_put_where(settings: Settings, name: str) -> None:
    with pytest.raises(DatasetMissing) as caught:
        read(settings, name)
    for said in (READERS[name].wanted, f"sources/{name}", "EPOCHD_ALLOW_DOWNLOAD"):
        assert said in caught.value.detail


def replace_load(monkeypatch: pytest.MonkeyPatch, name: str, load: Any) -> None:
    monkeypatch.setitem(READERS, name, dataclasses.replace(READERS[name], load=load))


def test_a_download_that_fails_is_said_to_have_failed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(root: Path, *, train: bool, download: bool) -> Any:
        raise ConnectionError("no network here")

    replace_load(monkeypatch, "mnist", unreachable)
    with pytest.raises(DatasetMissing, match=r"download it \(that failed just now\)"):
        read(settings.model_copy(update={"allow_download": True}), "mnist")


def with_download(monkeypatch: pytest.MonkeyPatch, published: Path) -> list[bool]:
    """MNIST's reader, whose download copies from `published`. Returns, in the course of time, when it was asked."""
    asked = []

    def load(root: Path, *, train: bool, download: bool) -> Any:
        asked.append(download)
        raw = root / "MNIST" / "raw"
        if download and not raw.exists():
            raw.mkdir(parents=True)
            for file in published.iterdir():
                (raw / file.name).write_bytes(file.read_bytes())
        return datasets.MNIST(root, train=train)

    replace_load(monkeypatch, "mnist", load)
    return asked


def test_a_download_is_the_last_way(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = put_idx(tmp_path / "published", MNIST_STEMS)
    asked = with_download(monkeypatch, tmp_path / "published")
    source = read(settings.model_copy(update={"allow_download": True}), "mnist")
    assert_holds_idx(source, written, MNIST_STEMS)
    assert asked == [False, True, True]  # at hand; then both splits


def test_nothing_is_downloaded_when_files_are_at_hand(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = put_idx(own(settings, "mnist"), MNIST_STEMS)
    asked = with_download(monkeypatch, tmp_path / "published")
    assert_holds_idx(read(settings.model_copy(update={"allow_download": True}), "mnist"), written, MNIST_STEMS)
    assert not any(asked)


def flipped(packed: bytes) -> bytes:
    """With another sum than its contents have: only the end of the file tells."""
    return packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]


DAMAGES: dict[str, Any] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "empty": lambda file: file.write_bytes(b""),
    "no idx file": lambda file: file.write_bytes(b"<html>404 Not Found</html>"),
    "cut .gz": lambda file: pack_instead(file, gzip.compress(file.read_bytes())[:-100]),
    "no .gz": lambda file: pack_instead(file, b"<html>404 Not Found</html>"),
    "flipped .gz": lambda file: pack_instead(file, flipped(gzip.compress(file.read_bytes()))),
}


def pack_instead(file: Path, packed: bytes) -> None:
    file.unlink()
    file.with_name(f"{file.name}.gz").write_bytes(packed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_not_taken_but_downloaded_anew_and_left_as_they_are(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    put_idx(own(settings, "mnist"), MNIST_STEMS)
    DAMAGES[damage](own(settings, "mnist") / "t10k-images-idx3-ubyte")
    before = contents(own(settings, "mnist"))
    with pytest.raises(DatasetMissing):
        read(settings, "mnist")

    written = put_idx(tmp_path / "published", MNIST_STEMS)
    with_download(monkeypatch, tmp_path / "published")
    source = read(settings.model_copy(update={"allow_download": True}), "mnist")
    assert_holds_idx(source, written, MNIST_STEMS)
    assert contents(own(settings, "mnist")) == before
