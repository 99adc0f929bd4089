"""The preflight report: what somebody should know about pictures before a job is spent on them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from worker.jobs.card import FileNote, Finding, FindingKind

from .decoding import Digest
from .pictures import Header

_MOST_FILES: Final = 1000  # named in a finding; all are counted
_IMBALANCE: Final = 10  # times as many pictures as the smallest class
_ELONGATED: Final = 3  # times as long as wide: more than the half is cut away

Noted = tuple[str, str]  # a file and what there is to say of it


class Findings:
    """Collects findings; those without a case do not appear."""

    def __init__(self) -> None:
        self.all: list[Finding] = []

    def add(self, kind: FindingKind, detail: str, noted: Sequence[Noted]) -> None:
        if noted:
            files = [FileNote(file=file, detail=text) for file, text in noted[:_MOST_FILES]]
            self.all.append(Finding(kind=kind, count=len(noted), detail=detail, files=files))


def same_pictures(files: Sequence[str], digests: Sequence[Digest]) -> list[Noted]:
    """Those that an earlier one of the same split equals, once decoded and scaled."""
    first: dict[Digest, str] = {}
    repeated = []
    for file, digest in zip(files, digests, strict=True):
        earlier = first.setdefault(digest, file)
        if earlier is not file:
            repeated.append((file, f"the same as {earlier}"))
    return repeated


def leaked(
    train: Sequence[str], train_digests: Sequence[Digest], test: Sequence[str], test_digests: Sequence[Digest]
) -> list[Noted]:
    """The test pictures that are among the training pictures."""
    known = dict(zip(train_digests, train, strict=True))
    found = zip(test, test_digests, strict=True)
    return [(file, f"the same as {known[digest]}") for file, digest in found if digest in known]


def odd_sizes(files: Iterable[tuple[str, Header]], height: int, width: int) -> list[Noted]:
    """Pictures that lose much on their way to height x width, or that hold less than it."""
    odd = []
    for file, header in files:
        size = f"{header.width} x {header.height}"
        if header.width < width or header.height < height:
            odd.append((file, f"{size}: scaled up to {width} x {height}"))
        elif max(header.width / width, header.height / height) > _ELONGATED * min(
            header.width / width, header.height / height
        ):
            odd.append((file, f"{size}: more than half is cut away"))
    return odd


def empty_classes(classes: Sequence[str], train: Sequence[int], test: Sequence[int]) -> list[Noted]:
    return [
        (name, f"no pictures to {what}")
        for what, counts in (("train on", train), ("test on", test))
        for name, count in zip(classes, counts, strict=True)
        if count == 0
    ]


def imbalance(classes: Sequence[str], train: Sequence[int]) -> list[Noted]:
    """The classes that have many times the training pictures of the smallest that has any."""
    counts = [count for count in train if count]
    least = min(counts, default=0)
    return [
        (name, f"{count} training pictures; the smallest class has {least}")
        for name, count in zip(classes, train, strict=True)
        if least and count > _IMBALANCE * least
    ]


def by_class(labels: Iterable[int], classes: Sequence[str]) -> list[int]:
    counts = Counter(labels)
    return [counts[index] for index in range(len(classes))]
