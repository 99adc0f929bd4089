"""Pictures out of `.npy` files, without numpy: as numpy reads them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from worker.datasets.arrays import Writer
from worker.jobs.errors import DatasetChanged, DatasetMissing, NotFound
from worker.jobs.pictures import classes, of_class, picture, targets

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
CLASSES = np.array([1, 0, 2, 0, 1], dtype=np.int64)
TARGETS = RNG.normal(size=(5, 2)).astype(np.float32)


@pytest.fixture(params=[(1, 0), (2, 0)], ids=["format 1", "format 2"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    for name, array in (("test_images", IMAGES), ("test_labels", CLASSES), ("train_labels", TARGETS)):
        with (tmp_path / f"{name}.npy").open("wb") as file:
            npy.write_array(file, array, version=request.param)
    return tmp_path


def test_each_picture_is_the_arrays(folder: Path) -> None:
    for index, expected in enumerate(IMAGES):
        found = picture(folder, "test", index)
        assert found[:3] == (3, 4, 6)
        assert found.pixels == expected.tobytes()


def test_labels_are_read_from_anywhere_and_not_beyond_the_end(folder: Path) -> None:
    for start, stop in ((0, 5), (1, 3), (4, 99), (5, 6), (99, 100)):
        assert classes(folder, "test", start, stop) == CLASSES[start:stop].tolist()
        assert targets(folder, "train", start, stop) == TARGETS[start:stop].tolist()
    assert [of_class(folder, "test", number) for number in range(4)] == [[1, 3], [0, 4], [2], []]


def test_what_a_training_opens_is_read_too(tmp_path: Path) -> None:
    with Writer(tmp_path, (3, 4, 6)) as writer:
        writer.add(IMAGES[:2], CLASSES[:2])
        writer.end_split()
        writer.add(IMAGES[2:], CLASSES[2:])
        writer.end_split()
    assert picture(tmp_path, "train", 1).pixels == IMAGES[1].tobytes()
    assert picture(tmp_path, "test", 2).pixels == IMAGES[4].tobytes()
    assert classes(tmp_path, "test", 0, 9) == CLASSES[2:].tolist()


@pytest.mark.parametrize("index", [-1, 5, 2**53 - 1])
def test_a_picture_beyond_the_last_is_not_there(folder: Path, index: int) -> None:
    with pytest.raises(NotFound, match="numbered from 0 to 4"):
        picture(folder, "test", index)


def test_without_its_files_a_dataset_is_missing(folder: Path) -> None:
    with pytest.raises(DatasetMissing):
        picture(folder, "train", 0)
    with pytest.raises(DatasetMissing):
        classes(folder / "nowhere", "test", 0, 1)


def header(text: str, length: int | None = None) -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(text) if length is None else length).to_bytes(2, "little") + text.encode()


GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (5, 3, 4, 6), }"


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\x93NUMPY",
        b"no array at all",
        b"\x93NUMPY\x03\x00" + header(GOOD)[8:],
        b"\x93NUMPY\x01\x00\x05",
        header(GOOD),  # without pixels
        header(GOOD) + b"\0" * 71,  # with too few
        header(GOOD, 60_000) + b"\0" * 60_000,
        header(GOOD.replace("False", "True")) + b"\0" * 999,
        header(GOOD.replace("|u1", "|O")) + b"\0" * 999,
        header(GOOD.replace("|u1", "<f4")) + b"\0" * 9999,
        header(GOOD.replace("'|u1'", "[('a', '|u1')]")) + b"\0" * 999,
        header(GOOD.replace("5, 3, 4, 6", "5, -3, 4, 6")) + b"\0" * 999,
        header(GOOD.replace("5, 3, 4, 6", "5, 3, 24")) + b"\0" * 999,
        header(GOOD.replace("(5, 3, 4, 6)", "7")) + b"\0" * 999,
        header("__import__('os').getpid()"),
        header("(" * 5_000),
        header("{}"),
        header("[]"),
    ],
)
def test_what_is_no_array_of_pictures_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "test_images.npy").write_bytes(contents)
    with pytest.raises(DatasetChanged):
        picture(tmp_path, "test", 0)


@pytest.mark.parametrize("array", [IMAGES, CLASSES.astype(np.int32), CLASSES[:, None], TARGETS[:, 0]])
def test_labels_of_another_kind_are_refused(tmp_path: Path, array: "np.ndarray[Any, Any]") -> None:
    np.save(tmp_path / "test_labels.npy", array)
    for read in (classes, targets):
        with pytest.raises(DatasetChanged):
            read(tmp_path, "test", 0, 1)
