"""Predictions for many pictures, an archive's or a prepared dataset's: a stream of lines, in bounded memory."""

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import torch

from worker.datasets.archive import Member, Unpacked, unpack
from worker.datasets.opening import open_prepared
from worker.datasets.source import Split
from worker.jobs.errors import BadImage, Conflict, ImageTooLarge
from worker.jobs.settings import Settings
from worker.jobs.wire import BatchRequest, OfDataset
from worker.training import memory

from .answers import Seen, computed, look, written
from .errands import Place
from .lines import Line, Lines, lines_of
from .models import Ready

_MOST_PICTURES: Final = 64  # in one pass, so that lines come often
_SECONDS: Final = 1.0  # that a picture which is decoded waits for others, at most

_Found = tuple[Line, Seen | None]  # None: it cannot be read, and the line says why


@dataclass
class _Tally:
    """What the last line says."""

    begun: float = field(default_factory=time.perf_counter)
    done: int = 0
    failed: int = 0
    right: int = 0


def batch(place: Place, request: BatchRequest) -> Iterator[bytes]:
    """Lines of CSV or NDJSON, as many at a time as went through the network together.

    Raises, before the first of them, BadArchive, ArchiveTooLarge, UnsafePath, CheckpointCorrupt, DatasetMissing,
    DatasetChanged and Conflict.
    """
    ready = place.models.get(request.path, request.sha256)
    torch.set_num_threads(request.threads if ready.is_large else 1)
    if request.archive is not None:
        yield from _of_archive(place, request, ready, place.data_dir / request.archive)
    elif request.dataset is not None:
        yield from _of_dataset(place, request, ready, request.dataset)


def _of_archive(place: Place, request: BatchRequest, ready: Ready, archive: Path) -> Iterator[bytes]:
    blob = archive.with_name(f"{archive.name}.pictures")
    try:
        with blob.open("w+b") as pictures:
            fcntl.flock(pictures, fcntl.LOCK_EX)  # the sweep takes one that nobody holds
            members = list(_in_order(archive, blob, place.settings))
            blob.unlink()  # nothing is left of it, whatever happens
            # Else the heap would grow by nearly every large picture: what is kept of one lies where it was, so that the
            # next one, as large, does not fit there.
            memory.release(torch.device("cpu"))
            lines = lines_of(request.format, ready.metadata, len(members), has_truth=False)
            found = _decoded(members, pictures, ready, place.settings, auto_fix=request.auto_fix)
            yield from _told(ready, request, lines, found, is_scored=False)
    finally:
        blob.unlink(missing_ok=True)


def _in_order(archive: Path, blob: Path, settings: Settings) -> Iterator[Member | PurePosixPath]:
    """The archive's pictures as they lie in it; of those whose file is too large only the paths."""
    unpacked, told = Unpacked(), 0
    for member in unpack(archive, blob, settings, unpacked, lambda _done, _total: None):
        yield from unpacked.oversized[told:]
        told = len(unpacked.oversized)
        yield member
    yield from unpacked.oversized[told:]


def _decoded(
    members: Sequence[Member | PurePosixPath], pictures: BinaryIO, ready: Ready, settings: Settings, *, auto_fix: bool
) -> Iterator[_Found]:
    for number, member in enumerate(members, start=1):
        if isinstance(member, PurePosixPath):
            error = f"The picture's file is larger than {settings.max_image_bytes} bytes."
            yield Line(number, str(member), error=error), None
            continue
        contents = os.pread(pictures.fileno(), member.size, member.offset)
        try:
            seen = look(ready, contents, settings.max_pixels, auto_fix=auto_fix)
        except (BadImage, ImageTooLarge) as problem:
            yield Line(number, str(member.path), error=problem.detail), None
        else:
            yield Line(number, str(member.path)), seen


def _of_dataset(place: Place, request: BatchRequest, ready: Ready, dataset: OfDataset) -> Iterator[bytes]:
    data = open_prepared(place.data_dir / dataset.folder, dataset.sha256)
    split = data.train if request.split == "train" else data.test
    shape = ready.preprocessing
    if tuple(split.images.shape[1:]) != (shape.channels, shape.height, shape.width):
        wanted, found = (
            " x ".join(map(str, each)) for each in ((shape.channels, shape.height, shape.width), split.images.shape[1:])
        )
        raise Conflict(f"The network sees pictures of {wanted}, and this dataset has pictures of {found}.")
    known = data.card.outputs == ready.metadata.outputs and bool(data.card.classes) == bool(ready.metadata.classes)
    lines = lines_of(request.format, ready.metadata, len(split), has_truth=known)
    is_scored = known and bool(ready.metadata.classes)
    yield from _told(ready, request, lines, _pictures(split, with_truth=known), is_scored=is_scored)


def _pictures(split: Split, *, with_truth: bool) -> Iterator[_Found]:
    for index in range(len(split)):
        truth = split.labels[index].tolist() if with_truth else None
        yield Line(index + 1, truth=truth), Seen(split.images[index], [], [])
        if split.pages is not None and index % _MOST_PICTURES == 0:
            split.pages.release(max(0, index - _MOST_PICTURES), index)


def _told(
    ready: Ready, request: BatchRequest, lines: Lines, found: Iterable[_Found], *, is_scored: bool
) -> Iterator[bytes]:
    tally = _Tally()
    yield lines.head()
    for together in _together(found, min(ready.at_once, _MOST_PICTURES)):
        yield _answered(ready, request, lines, tally, together)
    accuracy = tally.right / tally.done if is_scored and tally.done else None
    yield lines.tail(tally.done, tally.failed, accuracy, time.perf_counter() - tally.begun)


def _together(found: Iterable[_Found], most: int) -> Iterator[list[_Found]]:
    """As many as go through the network at once, or as were decoded in a second."""
    some, since = list[_Found](), time.perf_counter()
    for each in found:
        some.append(each)
        if len(some) == most or time.perf_counter() - since > _SECONDS:
            yield some
            some, since = [], time.perf_counter()
    if some:
        yield some


def _answered(ready: Ready, request: BatchRequest, lines: Lines, tally: _Tally, numbered: Sequence[_Found]) -> bytes:
    seen = [each for _, each in numbered if each is not None]
    answers: Iterator[bytes] = iter(())
    if seen:
        logits, told = computed(ready, seen)
        answers = iter(written(ready, logits, told, request.top_k))
        tally.right += sum(
            line.truth == guess
            for line, guess in zip(
                (line for line, each in numbered if each), logits.argmax(dim=1).tolist(), strict=True
            )
        )
    tally.done += len(numbered)
    tally.failed += len(numbered) - len(seen)
    return b"".join([lines.line(line, next(answers) if each is not None else None) for line, each in numbered])
