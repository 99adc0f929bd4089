"""Opening a prepared dataset: its arrays are mapped, not read, so opening costs nothing and memory is shared."""

import hashlib
import json
import math
import mmap
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.lib import format as npy

from worker.jobs.card import FILES, Card
from worker.jobs.errors import DatasetChanged, DatasetMissing

from .source import Split

CARD: Final = "card.json"
_VERIFIED: Final = "verified.json"  # size and times of change of each file whose contents are known to be right
_CHUNK: Final = 2**24


@dataclass(frozen=True)
class Prepared:
    card: Card
    train: Split
    test: Split


def open_prepared(folder: Path, sha256: str) -> Prepared:
    """The dataset whose contents have this digest.

    The files are read through when one of them is of another size or time than when that was last done. Raises
    DatasetMissing, and DatasetChanged when the contents are others.
    """
    try:
        card = Card.model_validate_json((folder / CARD).read_text())
        if card.sha256 != sha256:
            raise DatasetChanged
        _verify(folder, sha256)
        train, test = (_open_split(folder, *FILES[at : at + 2]) for at in (0, 2))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DatasetMissing(
            "The dataset's prepared files are gone: delete it, then upload or ask for it again."
        ) from error
    except (ValueError, EOFError) as error:  # no card, no array
        raise DatasetChanged from error
    return Prepared(card, train, test)


class MappedPages:
    """Of an array that is mapped from a file; see `Pages`."""

    def __init__(self, mapped: mmap.mmap, offset: int, picture_bytes: int) -> None:
        self._mapped, self._offset, self._picture_bytes = mapped, offset, picture_bytes

    def expect(self, start: int, stop: int) -> None:
        self._advise(mmap.MADV_WILLNEED, start, stop)

    def release(self, start: int, stop: int) -> None:
        self._advise(mmap.MADV_DONTNEED, start, stop)

    def _advise(self, advice: int, start: int, stop: int) -> None:
        first = self._offset + start * self._picture_bytes
        aligned = first - first % mmap.PAGESIZE
        self._mapped.madvise(advice, aligned, self._offset + stop * self._picture_bytes - aligned)


def _open_split(folder: Path, images: str, labels: str) -> Split:
    with (folder / images).open("rb") as file:
        npy.read_magic(file)
        shape, _, _ = npy.read_array_header_1_0(file)
        offset = file.tell()
        # A copy on write: the file cannot be changed through the tensor, and torch need not warn of a read-only one.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pixels = np.frombuffer(mapped, dtype=np.uint8, offset=offset).reshape(shape)
    pages = MappedPages(mapped, offset, math.prod(shape[1:]))
    return Split(torch.from_numpy(pixels), torch.from_numpy(np.load(folder / labels)), pages)


def remember_contents(folder: Path) -> None:
    """The files are right as they are now."""
    scratch = folder / f".{_VERIFIED}"
    scratch.write_text(json.dumps(_stamps(folder)))
    scratch.rename(folder / _VERIFIED)


def _verify(folder: Path, sha256: str) -> None:
    known = None
    with suppress(OSError, ValueError):
        known = json.loads((folder / _VERIFIED).read_text())
    if known == _stamps(folder):
        return
    digest = hashlib.sha256()
    for file in FILES:
        with (folder / file).open("rb") as contents:
            npy.read_magic(contents)
            npy.read_array_header_1_0(contents)
            while chunk := contents.read(_CHUNK):
                digest.update(chunk)
    if digest.hexdigest() != sha256:
        raise DatasetChanged
    with suppress(OSError):  # a read-only folder is read through each time
        remember_contents(folder)


def _stamps(folder: Path) -> dict[str, list[int]]:
    stats = {file: (folder / file).stat() for file in FILES}
    return {file: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for file, stat in stats.items()}
