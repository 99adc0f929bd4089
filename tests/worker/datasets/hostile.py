"""The hostile corpus: archives that were made to harm, and some that are merely broken, each with the problem that it
is to be told. They are written by hand, because the tools that make archives do not lie.
"""

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

from PIL import Image

# What epochd is set to where the corpus is tried, so that a limit can be passed by a small archive.
MAX_ENTRIES: Final = 20_000

MIB: Final = 2**20
STORED, DEFLATED, DEFLATE64, BZIP2, LZMA = 0, 8, 9, 12, 14
ENCRYPTED, UTF8 = 0x1, 0x800  # general purpose bits
SYMLINK, FIFO = 0o120777, 0o010666
TAR_END: Final = bytes(2 * tarfile.BLOCKSIZE)

Files = dict[str, bytes]
Chunks = Iterable[bytes]


@dataclass(frozen=True)
class Case:
    """An archive, and what epochd has to say of it."""

    name: str
    make: Callable[[], bytes | Chunks]
    code: str
    says: str  # a part of the error's sentence
    form: Mapping[str, Any] = field(default_factory=dict)  # beside the name
    at_once: bool = False  # refused by the service with 422; the others by the worker

    def write(self, path: Path) -> None:
        made = self.make()
        with path.open("wb") as file:
            file.writelines([made] if isinstance(made, bytes) else made)


# Pictures


def picture(shade: int, kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    image = Image.new("L", size, shade)
    image.putpixel((0, 0), 255 - shade)
    image.save(buffer, kind)
    return buffer.getvalue()


@cache
def pictures() -> Files:
    """Two classes of three pictures, with which nothing is wrong."""
    return {f"{name}/{n}.png": picture(20 * n + shade) for name, shade in (("cat", 0), ("dog", 100)) for n in range(3)}


def labelled(table: bytes) -> Files:
    """Four pictures and what is said of them."""
    return {"labels.csv": table} | {f"images/{n}.png": picture(20 * n) for n in range(4)}


def huge_png() -> bytes:
    """13,000 x 13,000 pixels of one bit each: 20 kB."""
    buffer = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(buffer, "PNG")
    return buffer.getvalue()


# Many zeros


@cache
def deflated_zeros(size: int) -> bytes:
    """That many zeros, in MiB, as a raw deflate stream. Its blocks are all the same, so that one is compressed only."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // MIB) + packer.flush()


@cache
def crc_of_zeros(size: int, crc: int = 0) -> int:
    for _ in range(size // MIB):
        crc = zlib.crc32(bytes(MIB), crc)
    return crc


def gzipped_with_zeros(before: bytes, size: int) -> Chunks:
    """A gz of these bytes and then that many zeros, in MiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    yield b"\x1f\x8b\x08" + bytes(6) + b"\xff"
    yield packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    yield deflated_zeros(size)
    yield struct.pack("<2L", crc_of_zeros(size, zlib.crc32(before)), (len(before) + size) % 2**32)


# Zips


@dataclass(frozen=True)
class Packed:
    """The bytes of a zip's entry, and what its headers say of them."""

    data: bytes
    size: int
    crc: int

    @classmethod
    def of(cls, data: bytes) -> "Packed":
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return cls(packer.compress(data) + packer.flush(), len(data), zlib.crc32(data))

    @classmethod
    def of_zeros(cls, size: int) -> "Packed":
        return cls(deflated_zeros(size), size, crc_of_zeros(size))


class Zip:
    """Writes a zip by hand, so that it can lie. APPNOTE.TXT 4.3.7, 4.3.12 and 4.3.14 to 4.3.16."""

    def __init__(self, files: Files | None = None) -> None:
        self.body, self.directory, self.count = bytearray(), bytearray(), 0
        for name, data in (files or {}).items():
            self.add(name.encode(), data)

    def add(
        self,
        name: bytes,
        data: bytes | Packed = b"",
        *,
        flags: int = UTF8,
        method: int = DEFLATED,
        mode: int = 0,
        local_name: bytes | None = None,
    ) -> "Zip":
        packed = data if isinstance(data, Packed) else Packed.of(data)
        local = name if local_name is None else local_name
        about = struct.pack("<5H3L", 20, flags, method, 0, 0x21, packed.crc, len(packed.data), packed.size)
        offset = len(self.body)
        self.body += b"PK\3\4" + about + struct.pack("<2H", len(local), 0) + local + packed.data
        self.directory += b"PK\1\2" + struct.pack("<H", 0x314) + about  # 3: made on Unix
        self.directory += struct.pack("<5H2L", len(name), 0, 0, 0, 0, mode << 16, offset) + name
        self.count += 1
        return self

    def repeat(self, entry_bytes: int, times: int, number: bytes = b"") -> "Zip":
        """Repeats the last entry of the directory, with names of its own if `number` is in its name."""
        entry = bytes(self.directory[-entry_bytes:])
        if number:
            for n in range(times):
                self.directory += entry.replace(number, b"%0*d" % (len(number), n))
        else:
            self.directory += entry * times
        self.count += times
        return self

    def end(self, *, count: int | None = None, size: int | None = None) -> bytes:
        """The end record; lies where they are given."""
        entries = min(self.count, 0xFFFF) if count is None else count
        length = len(self.directory) if size is None else size
        return struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, entries, entries, length, len(self.body), 0)

    def end64(self, *, count: int | None = None, size: int | None = None, astray: int = 0) -> bytes:
        """The zip64 end record and what points to it, likewise."""
        entries = self.count if count is None else count
        length = len(self.directory) if size is None else size
        place = len(self.body) + len(self.directory) + astray
        record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, length, len(self.body))
        return record + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1)

    def ended(self, end: bytes | None = None) -> bytes:
        return bytes(self.body + self.directory) + (self.end() if end is None else end)


def zipped(files: Files) -> bytes:
    return Zip(files).ended()


def zipped_with(*names: str) -> bytes:
    """Good pictures, and some whose names are not."""
    made = Zip(pictures())
    for shade, name in enumerate(names, start=200):
        made.add(name.encode(), b"" if name.endswith("/") else picture(shade))
    return made.ended()


def zipped_raw(name: bytes, *, flags: int = UTF8, mode: int = 0, method: int = DEFLATED) -> bytes:
    return Zip(pictures()).add(name, picture(200), flags=flags, mode=mode, method=method).ended()


def _counted(**lies: int) -> bytes:
    made = Zip(pictures())
    return made.ended(made.end(**lies))


def _counted64(*, astray: int = 0, **lies: int) -> bytes:
    made = Zip(pictures())
    return made.ended(made.end64(astray=astray, **lies) + made.end())


def _overlapping() -> bytes:
    """As D. Fifield's: many names for one run of bytes."""
    return Zip(pictures()).add(b"cat/#####.png", Packed.of_zeros(8 * MIB)).repeat(46 + 13, 500, b"#####").ended()


def _million(hidden: bool = False) -> bytes:
    """A directory of a million entries; only the zip64 record says so if they are hidden."""
    made = Zip(pictures()).add(b"").repeat(46, 1_000_000)
    return made.ended(made.end64() + made.end(count=6, size=46) if hidden else made.end())


def _bombs() -> bytes:
    """A hundred pictures, each as large as a picture may be."""
    made, bomb = Zip(pictures()), Packed.of_zeros(20 * MIB)
    for n in range(100):
        made.add(f"cat/{n + 10}.png".encode(), bomb)
    return made.ended()


def _tables() -> bytes:
    """Twenty tables of 64 MiB, in an archive large enough to be allowed as much."""
    made, table = Zip(pictures()).add(b"noise.bin", Random(0).randbytes(16 * MIB)), Packed.of_zeros(64 * MIB)
    for n in range(20):
        made.add(f"cat/{n}/labels.csv".encode(), table)
    return made.ended()


def _lying(packed: Packed, **lies: Any) -> bytes:
    return Zip(pictures()).add(b"cat/x.png", Packed(**(vars(packed) | lies))).ended()


# Tars


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def tar(files: Files, more: bytes = b"") -> bytes:
    return b"".join(member(name, data) for name, data in files.items()) + more + TAR_END


def tar_with(name: str) -> bytes:
    return tar(pictures(), member(name, picture(200)))


def pax(*said: tuple[str, str]) -> bytes:
    """A header that says more of the next member, in lines that begin with their own length."""
    lines = []
    for name, value in said:
        rest = len(f" {name}={value}\n".encode())
        length = next(n for n in range(rest, rest + 9) if n == rest + len(str(n)))
        lines.append(f"{length} {name}={value}\n".encode())
    return member("pax", b"".join(lines), tarfile.XHDTYPE)


def _negative() -> bytes:
    """A size of -512, in GNU tar's base 256, which leads back to its own header."""
    block = header("cat/x.png")
    block = block[:124] + (-512).to_bytes(12, "big", signed=True) + block[136:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _spoiled(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def _digits() -> bytes:
    """Headers that keep tarfile of old busy for seconds each (CVE-2024-6232)."""
    return gzip.compress(member("pax", b"1" * 60_000, tarfile.XHDTYPE) * 100 + tar(pictures()))


def _empty_members(count: int) -> bytes:
    return gzip.compress(b"".join(header(f"{n}.txt") for n in range(count)) + TAR_END, 1)


def _deep(count: int, depth: int) -> bytes:
    """Short names in folders that have no entries of their own."""
    inside = "a/" * (depth - 1)
    return gzip.compress(b"".join(header(f"{n}/{inside}x.png") for n in range(count)) + TAR_END, 1)


# Tables


def _two_columns(*lines: str) -> bytes:
    return zipped(labelled("\n".join(("file,label", *lines)).encode()))


def _large_table(line: bytes, times: int, first: bytes = b"file,label\n") -> bytes:
    return zipped(labelled(first + line * times))


# Outcomes
NO_ARCHIVE: Final = ("bad_archive", "not an archive")
NO_END: Final = ("bad_archive", "no end")
DAMAGED: Final = ("bad_archive", "damaged, or was cut off")
CUT_OFF: Final = ("bad_archive", "The tar has no end")
NO_PICTURES: Final = ("bad_archive", "holds no pictures")
COMPRESSION: Final = ("bad_archive", "compressed in a way")
TOO_MANY: Final = ("archive_too_large", "more than 20000 files and folders")
TOO_MUCH: Final = ("archive_too_large", "unpacks to more than")
TOO_LONG: Final = ("archive_too_large", "a header of more than 65536 bytes")
ESCAPES: Final = ("unsafe_path", "leads out of its folder")
ROOT: Final = ("unsafe_path", "begins at the root")
BACKSLASH: Final = ("unsafe_path", "holds a backslash")
ENDS_IN: Final = ("unsafe_path", "ends in a dot or a space")
LONG: Final = ("unsafe_path", "is longer than 255 bytes")
NOT_TEXT: Final = ("unsafe_path", "not valid UTF-8")
TWICE: Final = ("unsafe_path", "a name twice: cat/0.png")
FILE_AND_FOLDER: Final = ("unsafe_path", "a name twice")
CASE: Final = ("unsafe_path", "differ only in upper and lower case")
LINK: Final = ("unsafe_path", "holds a link")
NO_TABLE: Final = ("dataset_invalid", "no table of comma-separated values")
NO_COLUMNS: Final = ("dataset_invalid", "must name its columns")
NOT_FINITE: Final = ("dataset_invalid", "Line 3 of labels.csv holds something that is no finite number")
UNREADABLE: Final = ("dataset_invalid", "1 of 7 pictures cannot be read")
NO_CLASS: Final = ("dataset_invalid", "lies in no class's folder")

REGRESSION: Final = {"task": "regression"}

CASES: Final = [
    # No archives, and what is left of some
    Case("a text", lambda: b"I am no archive\n" * 1000, *NO_ARCHIVE, at_once=True),
    Case("nothing", lambda: b"", *NO_ARCHIVE, at_once=True),
    Case("a tar of nothing", lambda: bytes(10_240), *NO_ARCHIVE, at_once=True),
    Case("a picture", lambda: picture(0), *NO_ARCHIVE, at_once=True),
    Case("noise behind a zip's first bytes", lambda: b"PK\3\4" + Random(1).randbytes(50_000), *NO_END),
    Case("noise behind a gz's first bytes", lambda: b"\x1f\x8b\x08" + Random(2).randbytes(50_000), *DAMAGED),
    Case("noise behind a tar's first header", lambda: member("a", b"") + Random(3).randbytes(50_000), *DAMAGED),
    Case("a text in a gz", lambda: gzip.compress(b"I am no tar\n" * 1000), *DAMAGED),
    Case("a zip of nothing", lambda: Zip().ended(), *NO_PICTURES),
    Case("a tar.gz of nothing", lambda: gzip.compress(bytes(10_240)), *NO_PICTURES),
    Case("no pictures", lambda: zipped({"a.txt": b"a", "b.txt": b"b"}), "bad_archive", "but 2 .txt"),
    Case("a zip in a zip", lambda: zipped({"inner.zip": zipped(pictures())}), "bad_archive", "but 1 .zip"),
    Case("a zip cut off", lambda: zipped(pictures())[:-30], *NO_END),
    Case("a zip that lost its beginning", lambda: b"PK\3\4" + zipped(pictures())[200:], "bad_archive", "overlap"),
    Case("a tar cut off in a picture", lambda: tar(pictures())[: 4 * 512 + 513 + 20], *CUT_OFF),
    Case("a tar cut off in a header", lambda: tar(pictures())[: 4 * 512 + 100], *CUT_OFF),
    Case("a tar cut off between members", lambda: tar(pictures())[: -len(TAR_END)], *CUT_OFF),
    Case("a tar cut off behind zeros", lambda: member("a/0.bmp", picture(0, "BMP") + bytes(2048)), *CUT_OFF),
    Case("a tar with a damaged header", lambda: _spoiled(tar(pictures()), 2 * 1024 + 5) + bytes(10_240), *DAMAGED),
    Case("a tar with a size below zero", lambda: tar(pictures(), _negative()), "bad_archive", "A header of the tar"),
    Case("a tar with a pax header of noise", lambda: tar({}, pax(("a", "b")).replace(b"6 a=b", b"x a=b")), *DAMAGED),
    Case("a tar.gz cut off", lambda: gzip.compress(tar(pictures()))[:-100], *DAMAGED),
    Case("a tar.gz without its checksum", lambda: gzip.compress(tar(pictures()))[:-8], *DAMAGED),
    Case("a tar.gz with another checksum", lambda: _spoiled(gzip.compress(tar(pictures())), -8), *DAMAGED),
    # Zips that lie
    Case("encrypted", lambda: zipped_raw(b"cat/x.png", flags=UTF8 | ENCRYPTED), "bad_archive", "encrypted"),
    Case("bzip2", lambda: zipped_raw(b"cat/x.png", method=BZIP2), *COMPRESSION),
    Case("lzma", lambda: zipped_raw(b"cat/x.png", method=LZMA), *COMPRESSION),
    Case("deflate64", lambda: zipped_raw(b"cat/x.png", method=DEFLATE64), *COMPRESSION),
    Case("called stored", lambda: zipped_raw(b"cat/x.png", method=STORED), *DAMAGED),
    Case("counts too many", lambda: _counted(count=7), "bad_archive", "says that it holds 7 files and folders"),
    Case("counts too few", lambda: _counted(count=5), "bad_archive", "it holds 6"),
    Case("a directory larger than the zip", lambda: _counted(size=2**31), "bad_archive", "larger than the zip"),
    Case("a directory shorter than it is", lambda: _counted(size=100), *DAMAGED),
    Case("a zip64 directory of exabytes", lambda: _counted64(size=2**62), "bad_archive", "larger than the zip"),
    Case("a zip64 end that is elsewhere", lambda: _counted64(astray=-5), "bad_archive", "contradict each other"),
    Case("zip64 counts too many", lambda: _counted64(count=2**40), "bad_archive", "says that it holds 1099511627776"),
    Case("overlapping entries", _overlapping, "bad_archive", "overlap"),
    Case("another name in front of the data", lambda: Zip().add(b"a/1.png", local_name=b"a/2.png").ended(), *DAMAGED),
    Case("another checksum", lambda: _lying(Packed.of(picture(9)), crc=0), *DAMAGED),
    Case("smaller than it is", lambda: _lying(Packed.of(picture(9)), size=10), *DAMAGED),
    Case("no deflate", lambda: _lying(Packed.of(picture(9)), data=b"\xff" * 50), *DAMAGED),
    # Too much
    Case("a million entries", _million, *TOO_MANY),
    Case("a million entries, hidden", lambda: _million(hidden=True), *TOO_MANY),
    Case("many members", lambda: _empty_members(MAX_ENTRIES + 1), *TOO_MANY),
    Case(
        "a gibibyte of zeros called big.png",
        lambda: Zip(pictures()).add(b"cat/big.png", Packed.of_zeros(1024 * MIB)).ended(),
        "dataset_invalid",
        "cat/big.png: its file is too large",
    ),
    Case("a hundred pictures of zeros", _bombs, *TOO_MUCH),
    Case(
        "a gibibyte of zeros that is no picture",
        lambda: gzipped_with_zeros(tar(pictures())[: -len(TAR_END)] + header("x.txt", 1024 * MIB), 1024 * MIB),
        *TOO_MUCH,
    ),
    Case("a gibibyte of zeros behind the end", lambda: gzipped_with_zeros(tar(pictures()), 1024 * MIB), *TOO_MUCH),
    Case(
        "a pax header of a gibibyte",
        lambda: gzipped_with_zeros(header("pax", 1024 * MIB, tarfile.XHDTYPE), 1024 * MIB),
        *TOO_LONG,
    ),
    Case(
        "a name of a gibibyte",
        lambda: gzipped_with_zeros(header("long", 1024 * MIB, tarfile.GNUTYPE_LONGNAME), 1024 * MIB),
        *TOO_LONG,
    ),
    Case("pax headers of digits", _digits, *DAMAGED),
    Case("folders a thousand deep", lambda: _deep(3000, 500), "unsafe_path", "more than 32 folders deep"),
    Case("folders without entries", lambda: _deep(19_000, 31), *TOO_MANY),
    Case("tables that fill the memory", _tables, "archive_too_large", "labels.csv is larger than"),
    Case("a table of words", lambda: _large_table(b"ab cd ", 10 * MIB), *NO_TABLE),
    Case("a table of columns", lambda: _large_table(b"ab,", 20 * MIB, b"file,"), *NO_TABLE),
    Case(
        "a table of files that are not there", lambda: _large_table(b"a,b\n", 15 * MIB), "dataset_invalid", "far more"
    ),
    Case("a table of quotes", lambda: _large_table(b'"\n",', 10 * MIB), *NO_TABLE),
    # Names
    Case("zip: ../x", lambda: zipped_with("../x.png"), *ESCAPES),
    Case("tar: ../x", lambda: tar_with("../x.png"), *ESCAPES),
    Case("up and down", lambda: zipped_with("cat/../../x.png"), *ESCAPES),
    Case("up in a pax header", lambda: tar(pictures(), pax(("path", "../x.png")) + member("x", b"x")), *ESCAPES),
    Case("up in a GNU header", lambda: tar_with("../" * 50 + "x.png"), *ESCAPES),
    Case("a folder that leads up", lambda: zipped_with("../up/"), *ESCAPES),
    Case("zip: /x", lambda: zipped_with("/epochd-hostile.png"), *ROOT),
    Case("tar: /x", lambda: tar_with("/epochd-hostile.png"), *ROOT),
    Case("two slashes in front", lambda: zipped_with("//host/share/x.png"), *ROOT),
    Case("C:\\x", lambda: zipped_with("C:\\x.png"), *BACKSLASH),
    Case("C:x", lambda: zipped_with("C:x.png"), "unsafe_path", "begins with a drive"),
    Case("..\\x", lambda: zipped_with("cat/..\\..\\x.png"), *BACKSLASH),
    Case("no name between slashes", lambda: zipped_with("cat//x.png"), *ESCAPES),
    Case("a dot between slashes", lambda: zipped_with("cat/./x.png"), *ESCAPES),
    Case("a file that ends in a dot", lambda: zipped_with("cat/x.png."), *ENDS_IN),
    Case("a folder that ends in a dot", lambda: zipped_with("cat./x.png"), *ENDS_IN),
    Case("ends in a space", lambda: zipped_with("cat/x.png "), *ENDS_IN),
    Case("zip: NUL", lambda: zipped_raw(b"cat/x.png\0.txt"), *NOT_TEXT),
    Case("tar: NUL", lambda: tar(pictures(), pax(("path", "cat/x.png\0.txt")) + member("x", b"x")), *NOT_TEXT),
    Case("a line break", lambda: zipped_with("cat/x\n.png"), *NOT_TEXT),
    Case("an escape sequence", lambda: tar_with("cat/\x1b[2Jx.png"), *NOT_TEXT),
    Case("zip: 300 characters", lambda: zipped_with("cat/" + "x" * 300 + ".png"), *LONG),
    Case("tar: 300 characters", lambda: tar_with("cat/" + "x" * 300 + ".png"), *LONG),
    Case("200 letters of two bytes", lambda: zipped_with("cat/" + "ä" * 200 + ".png"), *LONG),
    Case("a path of 1100 bytes", lambda: zipped_with(("x" * 99 + "/") * 11 + "x.png"), *LONG),
    Case("zip: Latin-1", lambda: zipped_raw(b"cat/\xe4.png", flags=0), *NOT_TEXT),
    Case("zip: Latin-1 called UTF-8", lambda: zipped_raw(b"cat/\xe4.png"), *NOT_TEXT),
    Case("tar: Latin-1", lambda: tar_with("cat/\udce4.png"), *NOT_TEXT),
    Case("zip: twice", lambda: zipped_with("cat/0.png"), *TWICE),
    Case("tar: twice", lambda: tar_with("cat/0.png"), *TWICE),
    Case("twice, spelled differently", lambda: zipped_with("./cat/0.png"), *TWICE),
    Case("files of another case", lambda: zipped_with("cat/A.png", "cat/a.png"), *CASE),
    Case("folders of another case", lambda: tar_with("Cat/x.png"), *CASE),
    Case("composed and decomposed", lambda: zipped_with("cat/\u00e9.png", "cat/e\u0301.png"), *CASE),
    Case("a file, then a folder", lambda: zipped_with("cat/x.png", "cat/x.png/y.png"), *FILE_AND_FOLDER),
    Case(
        "a folder, then a file",
        lambda: tar(pictures(), member("a/b/x.png", b"x") + member("a/b", b"x")),
        *FILE_AND_FOLDER,
    ),
    # What is no file
    Case("zip: symbolic link", lambda: zipped_raw(b"cat/x.png", mode=SYMLINK), *LINK),
    Case("zip: pipe", lambda: zipped_raw(b"cat/x.png", mode=FIFO), *LINK),
    Case(
        "a file behind a symbolic link",
        lambda: tar(pictures(), header("up", 0, tarfile.SYMTYPE, "../..") + member("up/x.png", picture(200))),
        *LINK,
    ),
    Case("hard link", lambda: tar(pictures(), header("x.png", 0, tarfile.LNKTYPE, "/etc/hostname")), *LINK),
    Case("character device", lambda: tar(pictures(), header("x.png", 0, tarfile.CHRTYPE)), *LINK),
    Case("block device", lambda: tar(pictures(), header("x.png", 0, tarfile.BLKTYPE)), *LINK),
    Case("pipe", lambda: tar(pictures(), header("x.png", 0, tarfile.FIFOTYPE)), *LINK),
    Case("sparse, GNU", lambda: tar(pictures(), member("x.png", bytes(512), tarfile.GNUTYPE_SPARSE)), *LINK),
    Case(
        "sparse, pax",
        lambda: tar(pictures(), pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")) + member("x.png", b"9\n")),
        *LINK,
    ),
    # Tables
    Case("a table of noise", lambda: zipped(labelled(Random(4).randbytes(5000))), *NO_TABLE),
    Case("a table with NUL", lambda: _two_columns("0.png,a\0b"), *NO_TABLE),
    Case("a table in UTF-16", lambda: zipped(labelled("file,label\n0.png,ä".encode("utf-16"))), *NO_TABLE),
    Case("an open quote", lambda: _two_columns('0.png,"cat'), *NO_TABLE),
    Case("an empty table", lambda: zipped(labelled(b"")), *NO_COLUMNS),
    Case("other columns", lambda: zipped(labelled(b"name,kind\n0.png,cat\n")), *NO_COLUMNS),
    Case("no labels", lambda: zipped(labelled(b"file,split\n0.png,train\n")), *NO_COLUMNS),
    Case(
        "two labels", lambda: zipped(labelled(b"file,a,b\n0.png,1,2\n")), "dataset_invalid", "a picture has one class"
    ),
    Case(
        "a long line",
        lambda: _two_columns("0.png,cat", "1.png,dog,cow"),
        "dataset_invalid",
        "Line 3 of labels.csv has 3",
    ),
    Case(
        "a thousand and one targets",
        lambda: zipped(labelled(b"file" + b",t" * 1001)),
        "dataset_invalid",
        "has 1002 columns",
        REGRESSION,
    ),
    Case("NaN", lambda: _two_columns("0.png,1", "1.png,nan"), *NOT_FINITE, REGRESSION),
    Case("more than a float32", lambda: _two_columns("0.png,1", "1.png,1e39"), *NOT_FINITE, REGRESSION),
    Case("no number", lambda: _two_columns("0.png,1", "1.png,cat"), *NOT_FINITE, REGRESSION),
    Case("regression without a table", lambda: zipped(pictures()), "dataset_invalid", "needs a labels.csv", REGRESSION),
    Case(
        "a third split",
        lambda: zipped(labelled(b"file,label,split\n0.png,a,train\n1.png,b,later\n")),
        "dataset_invalid",
        "Line 3 of labels.csv: the split must be",
    ),
    Case(
        "files that are not there",
        lambda: _two_columns("0.png,a", "1.png,b", "2.png,a", "3.png,b", "../../4.png,a"),
        "dataset_invalid",
        "1 of 5 pictures cannot be read; at most 1 % may be left out. ../../4.png: labels.csv names it",
    ),
    Case(
        "a file that is named twice",
        lambda: _two_columns("0.png,a", "1.png,b", "0.png,b"),
        "dataset_invalid",
        "1 of 3 pictures cannot be read; at most 1 % may be left out. 0.png: labels.csv names it",
    ),
    Case(
        "a class without a name",
        lambda: _two_columns("0.png,a", "1.png,"),
        "dataset_invalid",
        "Line 3 of labels.csv has no label",
    ),
    # Layouts
    Case(
        "one class",
        lambda: zipped({"cat/0.png": picture(0), "cat/1.png": picture(9)}),
        "dataset_invalid",
        "one class only",
    ),
    Case("no folders", lambda: zipped({"0.png": picture(0), "1.png": picture(9)}), *NO_CLASS),
    Case("a picture beside the folders", lambda: zipped_with("x.png"), *NO_CLASS),
    Case(
        "train, test and more",
        lambda: zipped(
            {f"{split}/{name}": data for split in ("train", "more", "test") for name, data in pictures().items()}
        ),
        "dataset_invalid",
        "Beside `train` and `test` there are other folders, which say nothing: more",
    ),
    Case(
        "splits and a fraction",
        lambda: zipped({f"{split}/{name}": data for split in ("train", "test") for name, data in pictures().items()}),
        "dataset_invalid",
        "leave out test_fraction",
        {"test_fraction": 0.5},
    ),
    Case(
        "a long class", lambda: zipped(pictures() | {f"{'x' * 101}/0.png": picture(200)}), "dataset_invalid", "1 to 100"
    ),
    # Pictures
    Case("a text called .png", lambda: zipped(pictures() | {"cat/x.png": b"I am no picture\n"}), *UNREADABLE),
    Case(
        "an SVG called .png",
        lambda: zipped(pictures() | {"cat/x.png": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}),
        *UNREADABLE,
    ),
    Case("a JPEG cut off", lambda: zipped(pictures() | {"cat/x.jpg": picture(9, "JPEG")[:-40]}), *UNREADABLE),
    Case("a PNG cut off", lambda: zipped(pictures() | {"cat/x.png": picture(9, size=(99, 99))[:-30]}), *UNREADABLE),
    Case("an empty picture", lambda: zipped(pictures() | {"cat/x.png": b""}), *UNREADABLE),
    Case("a GIF of 0 x 0", lambda: zipped(pictures() | {"cat/x.gif": b"GIF89a" + bytes(50)}), *UNREADABLE),
    Case("a TIFF called .png", lambda: zipped(pictures() | {"cat/x.png": picture(9, "TIFF")}), *UNREADABLE),
    Case(
        "169 million pixels in 20 kB",
        lambda: zipped(pictures() | {"cat/x.png": huge_png()}),
        "dataset_invalid",
        "cat/x.png: The picture has 13000 x 13000 pixels",
    ),
    Case(
        "only pictures that cannot be read",
        lambda: zipped({"a/0.png": b"0", "b/0.png": b"1"}),
        "dataset_invalid",
        "2 of 2",
    ),
    Case(
        "the same picture twice, where nothing is allowed",
        lambda: zipped(pictures() | {"cat/x.png": picture(0)}),
        "dataset_invalid",
        "`strict` allows nothing: 1 duplicate",
        {"strict": True},
    ),
]
