"""Zip and tar archives as one sequence of entries, read in order. Nothing is ever extracted to a name of theirs."""

import gzip
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, Self

from worker.jobs.archives import HEAD_BYTES, kind_of
from worker.jobs.errors import ArchiveTooLarge, BadArchive, UnsafePath

from .names import USUAL_BYTES

_END: Final = struct.Struct("<4s4H2LH")  # "end of central directory": APPNOTE.TXT 4.3.16,
_LOCATOR64: Final = struct.Struct("<4sLQL")  # 4.3.15,
_END64: Final = struct.Struct("<4sQ2H2L4Q")  # and 4.3.14
_END_SIGNATURE, _LOCATOR64_SIGNATURE, _END64_SIGNATURE = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_LOCAL_HEADER_BYTES: Final = 30
_UTF8_NAME, _ENCRYPTED = 0x800, 0x1  # general purpose bits of a zip's entry
_MAX_EXTENDED_BYTES: Final = 64 * 2**10  # of a tar's header with what does not fit into the plain one
_CHUNK: Final = 2**20
_FILES: Final = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE})
_EXTENDED: Final = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)

Count = Callable[[int], None]


@dataclass(frozen=True)
class Entry:
    """A file or folder of an archive. A file must be read before the next entry is asked for."""

    name: str
    is_folder: bool
    open: Callable[[], AbstractContextManager["Readable"]]


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@contextmanager
def entries(archive: Path, max_entries: int, count: Count) -> Iterator[tuple[Iterator[Entry], int]]:
    """What the archive holds, and how many entries that will be (0 where only the end tells).

    `count` is told of all bytes that come out, those that are skipped in a tar included. Raises BadArchive, UnsafePath
    and ArchiveTooLarge, at once or while iterating; what the standard library raises may pass through too.
    """
    with archive.open("rb") as file:
        kind = kind_of(file.read(HEAD_BYTES))
    if kind is None:
        raise BadArchive
    if kind == "zip":
        with _opened_zip(archive, max_entries) as opened:
            yield (_zip_entry(opened, info, count) for info in opened.infolist()), len(opened.infolist())
    else:
        with _Counted(gzip.open(archive) if kind == "tar.gz" else archive.open("rb"), count) as counted:
            yield _of_tar(counted), 0


@contextmanager
def _opened_zip(archive: Path, max_entries: int) -> Iterator[zipfile.ZipFile]:
    promised, directory_bytes = _end_of_zip(archive)
    if directory_bytes > max_entries * USUAL_BYTES:  # zipfile reads the whole directory into memory
        raise ArchiveTooLarge(f"The archive holds more than {max_entries} files and folders.")
    try:
        opened = zipfile.ZipFile(archive)
    except UnicodeDecodeError as error:
        raise UnsafePath("The archive holds a name that is not valid UTF-8.") from error
    with opened:
        infos = opened.infolist()
        if len(infos) > max_entries:
            raise ArchiveTooLarge(f"The archive holds more than {max_entries} files and folders.")
        if promised not in (len(infos), min(len(infos), 0xFFFF), len(infos) & 0xFFFF):  # macOS writes the last of these
            raise BadArchive(f"The zip says that it holds {promised} files and folders; it holds {len(infos)}.")
        _check_overlap(infos)
        yield opened


def _end_of_zip(archive: Path) -> tuple[int, int]:
    """How many entries, and how many bytes of directory, zipfile is going to find."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        start = file.seek(max(0, size - _END64.size - _LOCATOR64.size - _END.size - 0xFFFF))
        tail = file.read()
    at = tail.rfind(_END_SIGNATURE)
    if at < 0 or len(tail) < at + _END.size:
        raise BadArchive("The zip has no end: it was cut off, or is none.")
    *_, entries, directory_bytes, _, _ = _END.unpack_from(tail, at)
    at64 = at - _LOCATOR64.size - _END64.size
    if at64 >= 0 and tail.startswith(_LOCATOR64_SIGNATURE, at - _LOCATOR64.size):
        _, _, said, _ = _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)
        if said != start + at64 or not tail.startswith(_END64_SIGNATURE, at64):
            raise BadArchive("The zip's two ends contradict each other.")
        *_, entries, directory_bytes, _ = _END64.unpack_from(tail, at64)
    if directory_bytes > size:
        raise BadArchive("The zip's directory is said to be larger than the zip.")
    return entries, directory_bytes


def _check_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Entries that share their bytes unpack to far more than an archive of that size could hold (D. Fifield, 2019)."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise BadArchive("Entries of the zip overlap.")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


def _zip_entry(opened: zipfile.ZipFile, info: zipfile.ZipInfo, count: Count) -> Entry:
    name = info.orig_filename
    if info.flag_bits & _ENCRYPTED:
        raise BadArchive("The zip is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BadArchive("The zip is compressed in a way that is not accepted; plain `zip` makes one that is.")
    if not info.flag_bits & _UTF8_NAME and not name.isascii():
        try:  # many programs write UTF-8 without saying so; zipfile then took it for code page 437
            name = name.encode("cp437").decode()
        except UnicodeDecodeError as error:
            raise UnsafePath("The archive holds a name that is not valid UTF-8.") from error
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafePath("The archive holds a link or a device.")
    return Entry(name, name.endswith("/"), lambda: _Counted(opened.open(info), count))


def _of_tar(file: Readable) -> Iterator[Entry]:
    """Reads the headers itself: tarfile takes a damaged one for the end of the archive, holds one of any size in
    memory, and before Python 3.11.10 spends minutes on some (CVE-2024-6232).
    """
    extended: dict[str, str] = {}
    while any(header := _exactly(file, tarfile.BLOCKSIZE)):  # a tar ends in blocks of zeros
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if info.type in _EXTENDED:
            extended |= _extended(info, file)
            continue
        if info.type != tarfile.DIRTYPE and info.type not in _FILES:
            raise UnsafePath("The archive holds a link, a device or a sparse file.")
        data = _TarMember(file, 0 if info.isdir() else int(extended.get("size", info.size)))
        name = extended.get("path", info.name).rstrip("/")
        yield Entry(name, info.isdir(), lambda data=data: data)  # type: ignore[misc]
        data.skip()
        extended = {}
    while file.read(_CHUNK):  # to the checksum at the end of a gz
        pass


def _extended(info: tarfile.TarInfo, file: Readable) -> dict[str, str]:
    """What a header says of the member that follows: `path` and `size`."""
    if info.size > _MAX_EXTENDED_BYTES:
        raise ArchiveTooLarge(f"The tar has a header of more than {_MAX_EXTENDED_BYTES} bytes.")
    data = _TarMember(file, info.size)
    contents = data.read(info.size)
    data.skip()
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": _text(contents.partition(b"\0")[0])}
    said: dict[str, str] = {}
    at = 0 if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE) else len(contents)
    while at < len(contents) and contents[at]:  # "<length> <name>=<value>\n"
        length = int(contents[at : contents.index(b" ", at)])
        record = contents[at : at + length]
        if length <= 0 or not record.endswith(b"\n"):
            raise BadArchive("A header of the tar is damaged.")
        name, _, value = record[:-1].partition(b" ")[2].partition(b"=")
        if name.startswith(b"GNU.sparse."):
            raise UnsafePath("The archive holds a link, a device or a sparse file.")
        if name in (b"path", b"size"):
            said[_text(name)] = _text(value)
        at += length
    return said


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")  # the judge of names refuses what is no UTF-8


def _exactly(file: Readable, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise BadArchive("The tar has no end: it was cut off.")
    return data


class _TarMember:
    """The bytes of one member of a tar."""

    def __init__(self, file: Readable, size: int) -> None:
        if size < 0:
            raise BadArchive("A header of the tar is damaged.")
        self._file, self._left, self._padding = file, size, -size % tarfile.BLOCKSIZE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        data = _exactly(self._file, min(size, self._left))
        self._left -= len(data)
        return data

    def skip(self) -> None:
        """To the next header."""
        while self.read(_CHUNK):
            pass
        _exactly(self._file, self._padding)


class _Counted:
    """Counts what is read."""

    def __init__(self, file: IO[bytes] | gzip.GzipFile, count: Count) -> None:
        self._file, self._count = file, count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._count(len(data))
        return data
