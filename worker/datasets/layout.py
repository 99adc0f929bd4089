"""From the paths of an archive to samples: which pictures are for training and for testing, and what they show.

Three layouts: a folder a class, `train/` and `test/` with a folder a class in each, or a table `labels.csv`. A class
is the outermost folder; what lies deeper belongs to it too, as in torchvision's ImageFolder. A folder around everything
is looked through.
"""

import csv
import io
import math
import posixpath
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final, Literal

from worker.jobs.card import Task
from worker.jobs.errors import DatasetInvalid
from worker.jobs.texts import printable

from .archive import LABELS, Member, Unpacked

SplitName = Literal["train", "test"]
_TESTING: Final = ("test", "val", "valid", "validation")  # the first of them that there is, where there is a `train`
_IMAGES: Final = "images"
_FILE_COLUMNS: Final = ("file", "filename", "path", "image")
_MAX_CLASSES, _MAX_CLASS_NAME = 10_000, 100
_MAX_COLUMNS, _MAX_LINE = 1000, 64 * 2**10  # of labels.csv
_MOST_MISSING: Final = 1000
_LARGEST_FLOAT32: Final = 3.4028234663852886e38


@dataclass(frozen=True)
class Sample:
    member: Member
    label: int | tuple[float, ...]  # the index of the class, or the numbers
    split: SplitName | None  # None: the archive does not say


@dataclass
class Layout:
    samples: list[Sample]
    classes: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    without_pictures: list[str] = field(default_factory=list)  # folders of classes that hold none
    missing: list[str] = field(default_factory=list)  # in labels.csv, but not in the archive
    unused: list[str] = field(default_factory=list)  # in the archive, but not in labels.csv, or in a third split


def read(unpacked: Unpacked, task: Task) -> Layout:
    """The samples, ordered by the pictures' own names and then by their folders, or as labels.csv lists them.

    By own names, because most tools number pictures through: the classes then come mixed even where nothing is
    shuffled. Raises DatasetInvalid.
    """
    root = _root(unpacked)
    table = next((table for path, table in unpacked.labels.items() if path.parent == root), None)
    if table is not None:
        return _from_table(table, unpacked.members, root, task)
    if task is Task.REGRESSION:
        raise DatasetInvalid(f"Regression needs a {LABELS} beside the pictures: `file`, then columns of numbers.")
    return _from_folders(unpacked, root)


def _root(unpacked: Unpacked) -> PurePosixPath:
    """Looks through folders that merely surround everything else."""
    pictures = {path.parent for path in (*(member.path for member in unpacked.members), *unpacked.oversized)}
    tables = {path.parent for path in unpacked.labels}
    inner = PurePosixPath(posixpath.commonpath([str(folder) for folder in pictures | tables]))
    if inner in pictures and inner not in tables:
        return inner.parent  # it is a class
    return inner


def _from_folders(unpacked: Unpacked, root: PurePosixPath) -> Layout:
    inside = [(member, member.path.parts[len(root.parts) :]) for member in unpacked.members]
    inside.sort(key=lambda item: (item[1][-1], item[1]))
    splits = _splits({parts[0] for _, parts in inside if len(parts) > 1})
    depth = 1 if splits else 0  # of the class in a path
    found: list[tuple[Member, str, SplitName | None]] = []
    unused = []
    for member, parts in inside:
        if len(parts) < depth + 2:
            raise DatasetInvalid(f"A picture lies in no class's folder: {member.path}.")
        if splits and parts[0] not in splits:  # a `val` beside `test`
            unused.append(str(member.path))
            continue
        found.append((member, parts[depth], splits[parts[0]] if splits else None))
    classes = _ordered({name for _, name, _ in found})
    index = {name: number for number, name in enumerate(classes)}
    empty = {
        parts[depth]
        for folder in unpacked.folders
        if folder.is_relative_to(root) and len(parts := folder.relative_to(root).parts) > depth
    }
    samples = [Sample(member, index[name], split) for member, name, split in found]
    return Layout(samples, classes=classes, without_pictures=sorted(empty - set(classes)), unused=unused)


def _splits(folders: set[str]) -> dict[str, SplitName]:
    """Which outermost folders are splits and not classes; a class may be called `train` all the same."""
    testing = [name for name in folders if name.lower() in _TESTING]
    training = [name for name in folders if name.lower() == "train"]
    if not testing or not training:
        return {}
    others = folders - {training[0], *testing}
    if others:
        shown = ", ".join(sorted(others))[:200]
        raise DatasetInvalid(f"Beside `train` and `test` there are other folders, which say nothing: {shown}.")
    testing.sort(key=lambda name: _TESTING.index(name.lower()))
    return {training[0]: "train", testing[0]: "test"}


@dataclass(frozen=True)
class _Columns:
    """What the columns of labels.csv are, by their places."""

    names: list[str]
    file: int
    split: int | None
    labels: list[int]


def _columns(header: Sequence[str], task: Task) -> _Columns:
    names = [name.strip().lower() for name in header]
    if len(names) > _MAX_COLUMNS:
        raise DatasetInvalid(f"{LABELS} has {len(names)} columns; at most {_MAX_COLUMNS} are accepted.")
    file = next((names.index(name) for name in _FILE_COLUMNS if name in names), None)
    split = names.index("split") if "split" in names else None
    labels = [number for number in range(len(names)) if number not in (file, split)]
    if file is None or not labels or not all(names):
        raise DatasetInvalid(f"The first line of {LABELS} must name its columns: `file`, then `label` or targets.")
    if len(set(names)) < len(names):
        raise DatasetInvalid(f"The first line of {LABELS} names a column twice.")
    if task is Task.CLASSIFICATION and len(labels) > 1:
        raise DatasetInvalid(f"{LABELS} has {len(labels)} columns of labels; a picture has one class.")
    return _Columns(names, file, split, labels)


def _from_table(table: bytes, members: Sequence[Member], root: PurePosixPath, task: Task) -> Layout:
    rows = _rows(table)
    columns = _columns(next(rows, []), task)
    # Unicode has two ways to write an accented letter, and macOS takes the other one for names in archives.
    by_path = {_plain(member.path.parts[len(root.parts) :]): member for member in members}
    layout = Layout([])
    found: list[tuple[Member, list[str], SplitName | None, int]] = []
    for line, row in enumerate(rows, start=2):
        if not any(row):
            continue
        if len(row) != len(columns.names):
            raise DatasetInvalid(f"Line {line} of {LABELS} has {len(row)} columns; its first has {len(columns.names)}.")
        name = row[columns.file].strip()
        parts = PurePosixPath(name.replace("\\", "/")).parts
        member = by_path.pop(_plain(parts), None) or by_path.pop(_plain((_IMAGES, *parts)), None)
        if member is not None:
            split = _split(row[columns.split], line) if columns.split is not None else None
            found.append((member, [row[number].strip() for number in columns.labels], split, line))
        else:
            layout.missing.append(name[:200])
            if len(layout.missing) > len(members) + _MOST_MISSING:
                raise DatasetInvalid(
                    f"{LABELS} names far more files than the archive holds; {name[:200]} is not in it."
                )
    if not found and not layout.missing:
        raise DatasetInvalid(f"{LABELS} has columns but no lines.")
    layout.unused = [str(member.path) for member in by_path.values()]
    if task is Task.REGRESSION:
        layout.targets = [printable(columns.names[number])[:100] for number in columns.labels]
        layout.samples = [Sample(member, _numbers(texts, line), split) for member, texts, split, line in found]
    else:
        _label(layout, found)
    return layout


def _label(layout: Layout, found: Sequence[tuple[Member, list[str], SplitName | None, int]]) -> None:
    for _, (name,), _, line in found:
        if not name:
            raise DatasetInvalid(f"Line {line} of {LABELS} has no label.")
    layout.classes = _ordered({name for _, (name,), _, _ in found})
    index = {name: number for number, name in enumerate(layout.classes)}
    layout.samples = [Sample(member, index[name], split) for member, (name,), split, _ in found]


def _plain(parts: Iterable[str]) -> str:
    return unicodedata.normalize("NFC", "/".join(parts))


def _rows(table: bytes) -> Iterator[list[str]]:
    delimiter = ""
    try:
        for line in io.TextIOWrapper(io.BytesIO(table), "utf-8-sig", newline=""):
            if len(line) > _MAX_LINE:
                raise ValueError(f"a line has more than {_MAX_LINE} characters")
            delimiter = delimiter or max(",;\t", key=line.count)
            printable(line.rstrip("\r\n").replace(delimiter, ""))
            yield from csv.reader([line], delimiter=delimiter, strict=True)
    except (ValueError, csv.Error) as error:
        raise DatasetInvalid(f"{LABELS} is no table of comma-separated values in UTF-8.") from error


def _split(text: str, line: int) -> SplitName:
    name = text.strip().lower()
    if name == "train":
        return "train"
    if name in _TESTING:
        return "test"
    raise DatasetInvalid(f"Line {line} of {LABELS}: the split must be `train` or `test`.")


def _numbers(texts: Sequence[str], line: int) -> tuple[float, ...]:
    try:
        numbers = tuple(map(float, texts))
    except ValueError:
        numbers = (math.nan,)
    if not all(abs(number) <= _LARGEST_FLOAT32 for number in numbers):  # neither is NaN
        raise DatasetInvalid(f"Line {line} of {LABELS} holds something that is no finite number.")
    return numbers


def _ordered(names: set[str]) -> list[str]:
    """By name; by value where all are whole numbers, so that the class `7` has the index 7."""
    for name in names:
        if not 0 < len(name) <= _MAX_CLASS_NAME:
            raise DatasetInvalid(f"The name of a class must have 1 to {_MAX_CLASS_NAME} characters.")
    if len(names) > _MAX_CLASSES:
        raise DatasetInvalid(f"There are {len(names)} classes; at most {_MAX_CLASSES} are accepted.")
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
