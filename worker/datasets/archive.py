"""Uploaded archives, which nobody trusts: read once from front to back, every name checked, real bytes counted.

The pictures go one after another into one file, so no name from an archive ever names a file here, and several
processes can read them by offset. An archive that is refused is refused whole, before a picture is decoded.
"""

import errno
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from worker.jobs.errors import ArchiveTooLarge, BadArchive
from worker.jobs.files import require_space
from worker.jobs.settings import Settings

from .containers import Entry, entries
from .names import Names, is_clutter

PICTURES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
LABELS: Final = "labels.csv"
_MAX_LABELS_BYTES: Final = 64 * 2**20
_MAX_RATIO, _ANY_RATIO_BYTES = 100, 64 * 2**20
_CHUNK: Final = 2**20
_LOOK_BYTES: Final = 16 * 2**20  # between two looks at the disk
# What the standard library raises on archives that are damaged or were made to harm.
DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OSError,
    OverflowError,
    ValueError,
    MemoryError,
)

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)

Count = Callable[[int, int], None]  # is told how many are done, and of how many (0: nobody knows)


@dataclass(frozen=True)
class Member:
    """A picture of the archive."""

    path: PurePosixPath
    offset: int  # in the file of all pictures
    size: int


@dataclass
class Unpacked:
    members: list[Member] = field(default_factory=list)
    folders: set[PurePosixPath] = field(default_factory=set)  # those that have an entry of their own
    labels: dict[PurePosixPath, bytes] = field(default_factory=dict)  # the tables, wherever they were
    oversized: list[PurePosixPath] = field(default_factory=list)  # pictures whose file is too large
    ignored: Counter[str] = field(default_factory=Counter)  # endings of the names of what is no picture
    end: int = 0  # of the members, in the file of all pictures


def unpack(
    archive: Path, blob: Path, settings: Settings, unpacked: Unpacked, count: Count
) -> Generator[Member, None, None]:
    """Copies the archive's pictures into `blob`, and yields each when it can be read there; at the end `unpacked` is
    whole. Raises BadArchive, UnsafePath and ArchiveTooLarge.
    """
    budget = _Budget(settings, archive.stat().st_size, blob.parent)
    names = Names(settings.max_entries)
    with blob.open("wb") as out:
        try:
            with entries(archive, settings.max_entries, budget.spend) as (found, total):
                for done, entry in enumerate(found, start=1):
                    if done > settings.max_entries:
                        raise ArchiveTooLarge(f"The archive holds more than {settings.max_entries} files and folders.")
                    path = names.check(entry.name, is_folder=entry.is_folder)
                    if path is not None and not is_clutter(path):
                        known = len(unpacked.members)
                        _take(entry, path, out, unpacked, budget)
                        yield from unpacked.members[known:]
                    count(done, total)
        except DAMAGED as error:
            if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                raise
            raise BadArchive("The archive is damaged, or was cut off.") from error
    if not unpacked.members and not unpacked.oversized:
        raise BadArchive(_no_pictures(unpacked.ignored))


class _Budget:
    """How much may come out of an archive, in real bytes: what its headers promise counts for nothing."""

    def __init__(self, settings: Settings, archive_bytes: int, folder: Path) -> None:
        self._folder, self._spare_bytes = folder, settings.min_free_bytes
        self.picture_bytes = settings.max_image_bytes
        self.labels_bytes = _MAX_LABELS_BYTES  # of all tables: they are held in memory
        self._bytes = min(settings.max_unpacked_bytes, max(_MAX_RATIO * archive_bytes, _ANY_RATIO_BYTES))
        self._spent = 0

    def spend(self, number: int) -> None:
        self._spent += number
        is_time_to_look = self._spent // _LOOK_BYTES != (self._spent - number) // _LOOK_BYTES
        if is_time_to_look:
            require_space(self._folder, self._spare_bytes)
        if self._spent > self._bytes:
            raise ArchiveTooLarge(f"The archive unpacks to more than {self._bytes} bytes.")


def _take(entry: Entry, path: PurePosixPath, out: BinaryIO, unpacked: Unpacked, budget: _Budget) -> None:
    if entry.is_folder:
        unpacked.folders.add(path)
    elif path.suffix.lower() in PICTURES:
        offset, size = unpacked.end, 0
        with entry.open() as source:
            while chunk := source.read(_CHUNK):
                out.write(chunk)
                size += len(chunk)
                if size > budget.picture_bytes:
                    out.seek(offset)
                    out.truncate()
                    unpacked.oversized.append(path)
                    return
        out.flush()
        unpacked.members.append(Member(path, offset, size))
        unpacked.end += size
    elif path.name.lower() == LABELS:
        with entry.open() as source:
            table = source.read(budget.labels_bytes + 1)
        budget.labels_bytes -= len(table)
        if budget.labels_bytes < 0:
            raise ArchiveTooLarge(f"{LABELS} is larger than {_MAX_LABELS_BYTES} bytes.")
        unpacked.labels[path] = table
    else:
        unpacked.ignored[path.suffix.lower()[:20]] += 1


def _no_pictures(ignored: Counter[str]) -> str:
    others = ", ".join(f"{count} {ending or 'without an ending'}" for ending, count in ignored.most_common(5))
    known = ", ".join(sorted(PICTURES))
    return f"The archive holds no pictures ({known})" + (f", but {others}." if others else ".")
