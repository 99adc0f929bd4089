"""Predictions for many pictures, an archive's or a prepared dataset's: a stream of lines, in bounded memory."""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from worker.datasets.archive import Unpacked, unpack
from worker.datasets.opening import open_prepared
from worker.jobs.errors import BadImage, Conflict, ImageTooLarge
from worker.jobs.wire import BatchRequest, OfDataset

from .answers import Seen, examined, look, written
from .errands import Place
from .lines import Line, Lines, lines_of
from .models import Ready

_MOST_PICTURES = 64  # in one pass, so that lines come often


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
        unpacked = Unpacked()
        members = list(unpack(archive, blob, place.settings, unpacked, lambda _done, _total: None))
        total = len(members) + len(unpacked.oversized)
        lines, tally = lines_of(request.format, ready.metadata, total, has_truth=False), _Tally()
        yield lines.head()
        with blob.open("rb") as pictures:
            blob.unlink()  # nothing is left of it, whatever happens
            waiting = iter(members)
            number = 0
            while some := list(islice(waiting, min(ready.at_once, _MOST_PICTURES))):
                numbered: list[tuple[Line, Seen | None]] = []
                for member in some:
                    number += 1
                    line = Line(number, str(member.path))
                    contents = os.pread(pictures.fileno(), member.size, member.offset)
                    try:
                        seen = look(ready, contents, place.settings.max_pixels, auto_fix=request.auto_fix)
                    except (BadImage, ImageTooLarge) as error:
                        numbered.append((line._replace(error=error.detail), None))
                    else:
                        numbered.append((line, seen))
                yield _answered(ready, request, lines, tally, numbered)
        limit = place.settings.max_image_bytes
        too_large = [Line(number, str(path), error=f"The picture's file is larger than {limit} bytes.")
                     for number, path in enumerate(unpacked.oversized, start=number + 1)]  # fmt: skip
        yield _answered(ready, request, lines, tally, [(line, None) for line in too_large])
        yield _tail(lines, tally, has_truth=False)
    finally:
        blob.unlink(missing_ok=True)


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
    lines, tally = lines_of(request.format, ready.metadata, len(split), has_truth=known), _Tally()
    yield lines.head()
    for start in range(0, len(split), _MOST_PICTURES):
        stop = min(start + _MOST_PICTURES, len(split))
        truths = split.labels[start:stop].tolist() if known else [None] * (stop - start)
        numbered = [
            (Line(start + place_ + 1, truth=truth), Seen(pixels, [], []))
            for place_, (pixels, truth) in enumerate(zip(split.images[start:stop], truths, strict=True))
        ]
        yield _answered(ready, request, lines, tally, numbered)
    yield _tail(lines, tally, has_truth=known and bool(ready.metadata.classes))


def _answered(
    ready: Ready, request: BatchRequest, lines: Lines, tally: _Tally, numbered: Sequence[tuple[Line, Seen | None]]
) -> bytes:
    seen = [each for _, each in numbered if each is not None]
    answers: Iterator[bytes] = iter(())
    if seen:
        images = torch.stack([each.pixels for each in seen])
        logits: Tensor = ready.logits(images)
        answers = iter(written(ready, logits, examined(ready, images, seen), request.top_k))
        tally.right += sum(
            line.truth == guess
            for line, guess in zip(
                (line for line, each in numbered if each), logits.argmax(dim=1).tolist(), strict=True
            )
        )
    tally.done += len(numbered)
    tally.failed += len(numbered) - len(seen)
    return b"".join([lines.line(line, next(answers) if each is not None else None) for line, each in numbered])


def _tail(lines: Lines, tally: _Tally, *, has_truth: bool) -> bytes:
    accuracy = tally.right / tally.done if has_truth and tally.done else None
    return lines.tail(tally.done, tally.failed, accuracy, time.perf_counter() - tally.begun)
