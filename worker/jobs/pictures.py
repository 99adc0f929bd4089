"""The pictures of a prepared dataset, read one by one from its arrays: without numpy, which the API does not load."""

import ast
import math
import struct
import sys
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

from . import versions
from .card import Card
from .db import Database
from .errors import DatasetChanged, DatasetMissing, NotFound, NotReady
from .states import DatasetStatus
from .tables import Dataset, Job

Split = Literal["train", "test"]

_MAGIC: Final = b"\x93NUMPY"
_LENGTHS: Final = {1: struct.Struct("<H"), 2: struct.Struct("<I")}  # of the header, by the format's version
_MOST_HEADER: Final = 10_000  # bytes; numpy itself refuses more
_BYTES: Final = {"|u1": 1, "<i8": 8, "<f4": 4}  # of pixels, classes and targets
_CODES: Final = {"<i8": "q", "<f4": "f"}


class Picture(NamedTuple):
    channels: int
    height: int
    width: int
    pixels: bytes  # C x H x W


class _Array(NamedTuple):
    descr: str
    shape: tuple[int, ...]
    file: BinaryIO
    offset: int  # of the first number

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * _BYTES[self.descr]

    def rows(self, start: int, stop: int) -> bytes:
        """Raises DatasetChanged."""
        self.file.seek(self.offset + start * self.row_bytes)
        wanted = (stop - start) * self.row_bytes
        found = self.file.read(wanted)
        if len(found) != wanted:
            raise DatasetChanged
        return found


def prepared(dataset: Dataset | None) -> tuple[str, Card]:
    """The folder of its arrays, relative to the data folder, and its card. Raises NotReady.

    None: a built-in dataset that nobody asked for yet.
    """
    if dataset is None:
        raise NotReady("The dataset has not been prepared yet; POST /datasets with its name does that.")
    if dataset.status == DatasetStatus.INVALID:
        raise NotReady("This version of the dataset is invalid, so that there are no pictures; its `error` says why.")
    if dataset.status != DatasetStatus.READY:
        raise NotReady("The dataset is still being prepared; GET /datasets/{name} says how far that is.")
    return versions.folder(dataset), Card.model_validate(dataset.card)


def of_job(db: Database, job: Job) -> str:
    """The folder of the arrays that it trains on, relative to the data folder. Raises NotReady and DatasetMissing."""
    if job.dataset_id is None:
        raise DatasetMissing("The job came as a bundle, without the pictures that it was trained on.")
    dataset = versions.by_id(db, job.dataset_id)
    if dataset.status == DatasetStatus.DELETED:
        raise DatasetMissing("The dataset has been deleted, and its pictures with it.")
    return prepared(dataset)[0]


def picture(folder: Path, split: Split, index: int) -> Picture:
    """As it is trained on. Raises NotFound, DatasetMissing and DatasetChanged."""
    with _opened(folder / f"{split}_images.npy") as images:
        if images.descr != "|u1" or len(images.shape) != 4:
            raise DatasetChanged
        if not 0 <= index < images.shape[0]:
            raise NotFound(f"There is no such picture: they are numbered from 0 to {images.shape[0] - 1}.")
        return Picture(*images.shape[1:], images.rows(index, index + 1))


def classes(folder: Path, split: Split, start: int, stop: int) -> list[int]:
    """The class's number of each of these pictures; fewer where there are no more. Raises as `picture` does."""
    with _opened(folder / f"{split}_labels.npy") as labels:
        if labels.descr != "<i8" or len(labels.shape) != 1:
            raise DatasetChanged
        return [int(number) for number in _numbers(labels, start, stop)]


def targets(folder: Path, split: Split, start: int, stop: int) -> list[list[float]]:
    """The numbers of each of these pictures; fewer where there are no more. Raises as `picture` does."""
    with _opened(folder / f"{split}_labels.npy") as labels:
        if labels.descr != "<f4" or len(labels.shape) != 2:
            raise DatasetChanged
        numbers, width = _numbers(labels, start, stop), labels.shape[1]
        return [list(numbers[at : at + width]) for at in range(0, len(numbers), width)]


def of_class(folder: Path, split: Split, number: int) -> list[int]:
    """Which pictures are of this class. Raises as `picture` does."""
    return [index for index, each in enumerate(classes(folder, split, 0, sys.maxsize)) if each == number]


def _numbers(labels: _Array, start: int, stop: int) -> "array[int] | array[float]":
    first, last = (min(each, labels.shape[0]) for each in (start, stop))
    numbers = array(_CODES[labels.descr], labels.rows(first, last))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


@contextmanager
def _opened(path: Path) -> Iterator[_Array]:
    """An array as numpy's `.npy` has it. Raises DatasetMissing and DatasetChanged."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DatasetMissing(
            "The dataset's prepared files are gone: delete it, then upload or ask for it again."
        ) from error
    with file:
        try:
            header = _header(file)
        except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError, struct.error) as error:
            raise DatasetChanged from error
        yield header


def _header(file: BinaryIO) -> _Array:
    """https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"""
    magic = file.read(8)
    if not magic.startswith(_MAGIC):
        raise ValueError("no array")
    length = _LENGTHS[magic[6]]
    (size,) = length.unpack(file.read(length.size))
    if size > _MOST_HEADER:
        raise ValueError("the header is too long")
    found = ast.literal_eval(file.read(size).decode("latin-1"))
    descr, shape = found["descr"], found["shape"]
    if found["fortran_order"] or descr not in _BYTES or not all(type(each) is int and each >= 0 for each in shape):
        raise ValueError("no array as they are prepared")
    return _Array(descr, tuple(shape), file, file.tell())
