"""From an uploaded archive to a prepared dataset: unpack and inspect, divide, decode, report."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from worker.jobs.card import Card, Finding, FindingKind, Task
from worker.jobs.errors import DatasetInvalid
from worker.jobs.files import require_space
from worker.jobs.form import TEST_FRACTION, Form
from worker.jobs.settings import Settings

from . import layout, report
from .archive import Member, Unpacked, unpack
from .arrays import Writer
from .decoding import Decoders, Digest, Inspected, decoders
from .layout import Layout, Sample
from .pictures import Header, Preprocessing, plain
from .report import Findings, Noted
from .source import Watch

_OWN_SIZE_UP_TO, _USUAL_SIZE = 256, 64  # pixels a side
_UNREADABLE_SHARE: Final = 0.01  # of the pictures may be left out; with more, something is wrong


@dataclass(frozen=True)
class _Seen:
    """A sample whose file could be read."""

    sample: Sample
    header: Header
    digest: Digest  # of the file

    @property
    def file(self) -> str:
        return str(self.sample.member.path)


@dataclass
class _Written:
    """What train or test has become."""

    files: list[str] = field(default_factory=list)
    digests: list[Digest] = field(default_factory=list)  # of the pixels
    broken: list[Noted] = field(default_factory=list)
    labels: NDArray[Any] = field(default_factory=lambda: np.empty(0))


def prepare(archive: Path, form: Form, folder: Path, settings: Settings, watch: Watch) -> Card:
    """Writes the arrays into `folder`, where a copy of the pictures' files lies meanwhile. Returns the card.

    Raises BadArchive, UnsafePath, ArchiveTooLarge, DiskFull, DatasetInvalid (with the card, once the pictures were
    read), and DecoderDied, which is worth another try.
    """
    blob = folder / "pictures"
    unpacked = Unpacked()
    with decoders(blob, settings.max_pixels) as pool:
        with closing(unpack(archive, blob, settings, unpacked, partial(watch, "unpacking"))) as coming:
            inspected = [each for chunk in pool.inspect(coming) for each in chunk]
        found = layout.read(unpacked, form.task)
        seen, unreadable = _sort(found.samples, dict(zip(unpacked.members, inspected, strict=True)))
        shape = _shape(form, [each.header for each in seen])
        bytes_of_pictures = len(seen) * shape.channels * shape.height * shape.width
        require_space(folder, settings.min_free_bytes, bytes_of_pictures)
        with Writer(folder, (shape.channels, shape.height, shape.width)) as writer:
            train, test = (
                _write(pool, part, form.task, shape, writer, watch, len(seen)) for part in _divide(seen, form)
            )
    blob.unlink()
    unreadable += _left_out(unpacked, found) + train.broken + test.broken
    card = _card(form, found, shape, writer, train, test, unpacked)
    card.findings = _findings(card, found, seen, unreadable, train, test)
    _judge(card, form, unreadable)
    return card


def _sort(samples: Sequence[Sample], inspected: Mapping[Member, Inspected]) -> tuple[list[_Seen], list[Noted]]:
    """Those that can be read, and those that cannot."""
    seen, unreadable = [], []
    for sample in samples:
        each = inspected[sample.member]
        if each.header is not None:
            seen.append(_Seen(sample, each.header, each.digest))
        else:
            unreadable.append((str(sample.member.path), each.problem or ""))
    return seen, unreadable


def _left_out(unpacked: Unpacked, found: Layout) -> list[Noted]:
    absent = "labels.csv names it, but it is not in the archive, or was named before"
    return [(str(path), "its file is too large") for path in unpacked.oversized] + [
        (file, absent) for file in found.missing
    ]


def _shape(form: Form, headers: Sequence[Header]) -> Preprocessing:
    sizes = {(header.height, header.width) for header in headers}
    own = sizes.pop() if len(sizes) == 1 else (_USUAL_SIZE, _USUAL_SIZE)
    height, width = form.size or (own if max(own) <= _OWN_SIZE_UP_TO else (_USUAL_SIZE, _USUAL_SIZE))
    is_grey = form.channels == "grey" or (form.channels is None and all(header.is_grey for header in headers))
    return plain(1 if is_grey else 3, height, width)


def _divide(seen: Sequence[_Seen], form: Form) -> tuple[list[_Seen], list[_Seen]]:
    """Train and test, as the archive says, or by the pictures' contents: names and order do not matter, a class that
    grows moves few pictures to the other side, and equal files are never on both.
    """
    if any(each.sample.split is not None for each in seen):
        if form.test_fraction is not None:
            raise DatasetInvalid("The archive says itself which pictures are for testing: leave out test_fraction.")
        testing = {each.file for each in seen if each.sample.split == "test"}
    else:
        groups = defaultdict(list)
        for each in seen:
            groups[each.sample.label if form.task is Task.CLASSIFICATION else None].append(each)
        chosen: set[Digest] = set()
        for group in groups.values():
            wanted = round((form.test_fraction or TEST_FRACTION) * len(group))
            wanted = min(max(wanted, 1), len(group) - 1)
            chosen.update(sorted(each.digest for each in group)[:wanted])
        testing = {each.file for each in seen if each.digest in chosen}
    return [each for each in seen if each.file not in testing], [each for each in seen if each.file in testing]


def _write(
    pool: Decoders, part: Sequence[_Seen], task: Task, shape: Preprocessing, writer: Writer, watch: Watch, total: int
) -> _Written:
    """Decodes one split into the arrays."""
    written = _Written()
    dtype = np.int64 if task is Task.CLASSIFICATION else np.float32
    done = 0
    for chunk in pool.decode([each.sample.member for each in part], shape):
        these = part[done : done + len(chunk.digests) + len(chunk.problems)]
        good = [each for place, each in enumerate(these) if place not in chunk.problems]
        if good:  # of none, numpy cannot tell how many targets they have
            writer.add(chunk.images, np.array([each.sample.label for each in good], dtype=dtype))
        written.files += [each.file for each in good]
        written.digests += chunk.digests
        written.broken += [(these[place].file, problem) for place, problem in chunk.problems.items()]
        done += len(these)
        watch("decoding", writer.count, total)
    written.labels = writer.end_split()
    return written


def _card(
    form: Form,
    found: Layout,
    shape: Preprocessing,
    writer: Writer,
    train: _Written,
    test: _Written,
    unpacked: Unpacked,
) -> Card:
    mean, std = writer.statistics()
    is_regression = form.task is Task.REGRESSION
    numbers = train.labels if is_regression and len(train.labels) else None
    return Card(
        name=form.name,
        task=form.task,
        classes=found.classes,
        targets=found.targets,
        channels=shape.channels,
        height=shape.height,
        width=shape.width,
        train_count=len(train.files),
        test_count=len(test.files),
        train_counts=[] if is_regression else report.by_class(train.labels.tolist(), found.classes),
        test_counts=[] if is_regression else report.by_class(test.labels.tolist(), found.classes),
        mean=mean,
        std=std,
        target_mean=[] if numbers is None else numbers.mean(axis=0, dtype=np.float64).tolist(),
        target_std=[] if numbers is None else numbers.std(axis=0, dtype=np.float64).tolist(),
        ignored=dict(unpacked.ignored.most_common(20)),
        sha256=writer.sha256,
    )


def _findings(
    card: Card, found: Layout, seen: Sequence[_Seen], unreadable: list[Noted], train: _Written, test: _Written
) -> list[Finding]:
    findings = Findings()
    findings.add(FindingKind.UNREADABLE, "These were left out.", unreadable)
    leaked = report.leaked(train.files, train.digests, test.files, test.digests)
    findings.add(FindingKind.LEAKAGE, "Tested on what was trained on: the accuracy will look too good.", leaked)
    repeated = [each for part in (train, test) for each in report.same_pictures(part.files, part.digests)]
    findings.add(FindingKind.DUPLICATE, "The same picture again; it counts twice.", repeated)
    none = [(name, "no pictures at all; left out") for name in found.without_pictures]
    empty = none + report.empty_classes(card.classes, card.train_counts, card.test_counts)
    findings.add(FindingKind.EMPTY_CLASS, "Classes that cannot be learned or not be tested.", empty)
    uneven = report.imbalance(card.classes, card.train_counts)
    findings.add(FindingKind.IMBALANCE, "A network may learn to say these whatever it sees.", uneven)
    odd = report.odd_sizes(((each.file, each.header) for each in seen), card.height, card.width)
    findings.add(FindingKind.ODD_SIZE, f"They do not suit {card.width} x {card.height}; see image_size.", odd)
    unused = [(file, "not in labels.csv, or beside train and test") for file in found.unused]
    findings.add(FindingKind.UNUSED, "These were left out.", unused)
    return findings.all


def _judge(card: Card, form: Form, unreadable: Sequence[Noted]) -> None:
    """Raises DatasetInvalid, with the first reason that there is."""
    pictures = card.train_count + card.test_count + len(unreadable)
    if len(unreadable) > _UNREADABLE_SHARE * pictures:
        file, detail = unreadable[0]
        raise DatasetInvalid(
            f"{len(unreadable)} of {pictures} pictures cannot be read; at most 1 % may be left out. {file}: {detail}",
            card=card,
        )
    if card.task is Task.CLASSIFICATION and len(card.classes) < 2:
        raise DatasetInvalid(
            "There is one class only: pictures of each class belong in a folder of its own.", card=card
        )
    if not card.train_count or not card.test_count:
        raise DatasetInvalid("There are no pictures left to train on or to test on.", card=card)
    if form.strict and card.findings:
        told = ", ".join(f"{finding.count} {finding.kind}" for finding in card.findings)
        raise DatasetInvalid(f"Something was found, and `strict` allows nothing: {told}.", card=card)
