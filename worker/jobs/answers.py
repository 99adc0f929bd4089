"""What a network answered for each test picture of an epoch: kept with the epoch's report, packed into one value.

Packed are a head (version, bytes of a class's number, pictures), then compressed, column after column: the classes of
the pictures, the classes they were taken for, and how sure the network was. Little-endian.
"""

import operator
import struct
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from sqlalchemy import select
from sqlmodel import col

from .db import Database
from .errors import NotReady, SpecRefused
from .records import NO_REPORT
from .report import Report
from .tables import ReportRow

MOST_PICTURES: Final = 250_000  # of more test pictures none are kept: they are written anew after each epoch
STEPS: Final = 2**16 - 1  # into which a probability is divided: near 1, where most of them are, as finely as elsewhere

_VERSION: Final = 1
_HEAD: Final = struct.Struct("<BBI")
_CODES: Final = {1: "B", 2: "H", 4: "I"}  # by bytes
_PROBABILITY_BYTES: Final = 2
_LEVEL: Final = 1  # what makes it small are columns; more effort gains little


@dataclass(frozen=True)
class PictureAnswers:
    """Three columns, a number a test picture, in the order of the dataset."""

    labels: Sequence[int]  # numbers of classes
    predicted: Sequence[int]
    steps: Sequence[int]  # the predicted class's probability, in `STEPS` parts

    def __len__(self) -> int:
        return len(self.labels)

    def probability(self, index: int) -> float:
        return round(self.steps[index] / STEPS, 5)

    def right(self) -> bytes:
        """A byte a picture: 1 where the answer is right, else 0."""
        return bytes(map(operator.eq, self.labels, self.predicted))

    def pack(self) -> bytes:
        largest = max(max(self.labels, default=0), max(self.predicted, default=0))
        width = next(width for width in _CODES if largest < 2 ** (8 * width))
        columns = [_written(width, self.labels), _written(width, self.predicted)]
        columns.append(_written(_PROBABILITY_BYTES, self.steps))
        return _HEAD.pack(_VERSION, width, len(self)) + zlib.compress(b"".join(columns), _LEVEL)

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        version, width, count = _HEAD.unpack_from(packed)
        size = count * (2 * width + _PROBABILITY_BYTES)
        columns = zlib.decompressobj().decompress(packed[_HEAD.size :], size + 1)
        if version != _VERSION or len(columns) != size:
            raise ValueError("these are no answers as this version packs them")
        first, second = count * width, 2 * count * width
        return cls(
            _read(width, columns[:first]),
            _read(width, columns[first:second]),
            _read(_PROBABILITY_BYTES, columns[second:]),
        )


def of_job(db: Database, job_id: str) -> tuple[Report, PictureAnswers | None]:
    """Of the newest epoch; see `why_none` for when there are no answers. Raises NotReady."""
    with db.read() as session:
        query = select(col(ReportRow.contents), col(ReportRow.answers)).where(col(ReportRow.job_id) == job_id)
        row = session.execute(query).first()
    if row is None:
        raise NotReady(NO_REPORT)
    report, packed = Report.model_validate(row.contents), row.answers
    return report, None if packed is None else PictureAnswers.unpack(packed)


def why_none(report: Report) -> str:
    """Why nothing is known of single pictures."""
    if sum(each.support for each in report.classes) > MOST_PICTURES:
        return f"What was answered for single pictures is not kept where more than {MOST_PICTURES} are tested."
    return "What was answered for single pictures was not kept yet when this job was tested; extend it, or train anew."


def class_number(labels: Sequence[str], label: str, *, pointer: str) -> int:
    """Raises SpecRefused, which says at `pointer` what is wrong."""
    found = [number for number, each in enumerate(labels) if each == label]
    if not found:
        raise SpecRefused("There is no class of this name.", pointer=pointer)
    if len(found) > 1:
        raise SpecRefused("Several classes have this name, so that it names none of them.", pointer=pointer)
    return found[0]


def given(answers: PictureAnswers, label: int | None, predicted: int | None) -> list[int]:
    """The test pictures of one class that were taken for another, or for itself; the most confident answer first.

    None: of any class, or for any; of these only the wrong answers.
    """
    asked = enumerate(zip(answers.labels, answers.predicted, strict=True))
    is_wanted = [
        index
        for index, (true, said) in asked
        if label in (None, true) and predicted in (None, said) and (true != said or None not in (label, predicted))
    ]
    return sorted(is_wanted, key=lambda index: -answers.steps[index])


def _written(width: int, numbers: Sequence[int]) -> bytes:
    column = array(_CODES[width], numbers)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _read(width: int, column: bytes) -> Sequence[int]:
    numbers = array(_CODES[width], column)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers
