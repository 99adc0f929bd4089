"""Whether jobs differ: in what was asked for, in what came out, and by more than chance on the same test pictures."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, get_args

from sqlalchemy import select
from sqlmodel import Session, col

from . import answers, queue
from .answers import PictureAnswers
from .db import Database
from .errors import NotReady
from .owners import EVERYBODY, Caller
from .records import NO_REPORT
from .report import Report
from .spec import LOWER_IS_BETTER, Metric
from .tables import Dataset, Epoch, Job

SIGNIFICANT: Final = 0.05  # a split that chance gives more seldom than this is taken for a difference
_MOST_FLIPPED: Final = 20  # that are shown of a pair of jobs
_METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
_NEGLIGIBLE: Final = 1e-17  # of a sum: adding it changes nothing


class Difference(NamedTuple):
    pointer: str  # a JSON pointer
    values: dict[str, Any]  # by the names of those that have something there


class Course(NamedTuple):
    """Of a metric."""

    best: float
    best_epoch: int
    last: float | None  # None where it was not finite


@dataclass(frozen=True)
class Result:
    """A job, and what came out of it so far."""

    job: Job
    dataset: Dataset | None
    report: Report | None
    answers: PictureAnswers | None
    courses: dict[Metric, Course]

    @property
    def sha256(self) -> str | None:
        """Of the dataset that it was tested on."""
        digest: str | None = (self.job.provenance or {}).get("dataset", {}).get("sha256")
        return digest

    @cached_property
    def right(self) -> int:
        """A byte a test picture, the first one least: 1 where the answer is right."""
        assert self.answers is not None
        return int.from_bytes(self.answers.right(), "little")


@dataclass(frozen=True)
class Counts:
    """In test pictures."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int


@dataclass(frozen=True)
class Pair:
    first: Result
    second: Result
    verdict: str  # a sentence
    same_pictures: bool
    counts: Counts | None = None  # with the rest, where it is known what both answered for the same pictures
    p: float | None = None
    better: Result | None = None
    flipped: tuple[int, ...] = ()  # the first pictures that only one of them got right


def result(db: Database, job_id: str, caller: Caller = EVERYBODY) -> Result:
    """Raises NotFound."""
    job = queue.get(db, job_id, caller)
    report, kept = None, None
    with suppress(NotReady):
        report, kept = answers.of_job(db, job_id)
    with db.read() as session:
        dataset = session.get(Dataset, job.dataset_id) if job.dataset_id is not None else None
        return Result(job, dataset, report, kept, dict(_courses(session, job_id)))


def differences(documents: Mapping[str, Mapping[str, Any]]) -> list[Difference]:
    """Where documents of JSON, by their names, are not all the same. A list counts as a whole."""
    flat = {name: dict(_leaves(document)) for name, document in documents.items()}
    found = []
    for pointer in dict.fromkeys(itertools.chain.from_iterable(flat.values())):
        values = {name: leaves[pointer] for name, leaves in flat.items() if pointer in leaves}
        some = next(iter(values.values()))
        if len(values) < len(flat) or any(value != some for value in values.values()):
            found.append(Difference(pointer, values))
    return found


def pairs(results: Sequence[Result]) -> list[Pair]:
    return [_pair(first, second) for first, second in itertools.combinations(results, 2)]


def mcnemar(only_first: int, only_second: int) -> float:
    """How often chance alone splits so many pictures as unevenly as this: exact, two-sided.

    Twice the binomial distribution's tail. Each of its terms follows from the one before; the first, by logarithms: it
    may be smaller than any float.
    """
    fewer, both = min(only_first, only_second), only_first + only_second
    log_ways = math.lgamma(both + 1) - math.lgamma(fewer + 1) - math.lgamma(both - fewer + 1)
    term = tail = 1.0  # in parts of the largest term
    for number in range(fewer, 0, -1):
        term *= number / (both - number + 1)
        tail += term
        if term < _NEGLIGIBLE * tail:
            break
    return min(1.0, 2 * tail * math.exp(log_ways - both * math.log(2)))


def _pair(first: Result, second: Result) -> Pair:
    are_same = first.sha256 is not None and first.sha256 == second.sha256
    if (reason := _untestable(first, second, are_same=are_same)) is not None:
        return Pair(first, second, reason, are_same)
    assert first.answers is not None
    pictures = len(first.answers)
    both = (first.right & second.right).bit_count()
    only_first, only_second = first.right.bit_count() - both, second.right.bit_count() - both
    p = mcnemar(only_first, only_second)
    better = None if p >= SIGNIFICANT else first if only_first > only_second else second
    said = "Not distinguishable" if better is None else f"Job {better.job.id} is better"
    split = f"{only_first} of {pictures} test pictures only the first got right, and {only_second} only the second"
    return Pair(
        first,
        second,
        f"{said}: {split} ({'p < 0.001' if p < 0.001 else f'p = {p:.2g}'}).",
        are_same,
        Counts(both, only_first, only_second, pictures - both - only_first - only_second),
        p,
        better,
        tuple(itertools.islice(_ones((first.right ^ second.right).to_bytes(pictures, "little")), _MOST_FLIPPED)),
    )


def _untestable(first: Result, second: Result, *, are_same: bool) -> str | None:
    """Why the two cannot be compared picture by picture."""
    lacking = "Not tested, for lack of answers of job"
    for each in (first, second):
        if each.report is None:
            return f"{lacking} {each.job.id}: {NO_REPORT}"
    if not are_same:
        return "Not tested: these two were tested on different pictures."
    for each in (first, second):
        if each.report is not None and each.answers is None:
            return f"{lacking} {each.job.id}: {answers.why_none(each.report)}"
    return None


def _ones(places: bytes) -> Iterator[int]:
    at = places.find(1)
    while at >= 0:
        yield at
        at = places.find(1, at + 1)


def _leaves(document: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in document.items():
        pointer = f"{place}/{name.replace('~', '~0').replace('/', '~1')}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, pointer)
        else:
            yield pointer, value


def _courses(session: Session, job_id: str) -> Iterator[tuple[Metric, Course]]:
    newest = select(Epoch).where(col(Epoch.job_id) == job_id).order_by(col(Epoch.epoch).desc()).limit(1)
    last = session.execute(newest).scalar_one_or_none()
    if last is None:  # the first epoch may be recorded right now
        return
    for metric in _METRICS:
        column = getattr(Epoch, metric)
        order = column.asc() if metric in LOWER_IS_BETTER else column.desc()
        best = (
            select(col(Epoch.epoch), column)
            .where(col(Epoch.job_id) == job_id, column.is_not(None))
            .order_by(order, col(Epoch.epoch))
            .limit(1)
        )
        if (found := session.execute(best).first()) is not None:
            yield metric, Course(best=found[1], best_epoch=found[0], last=getattr(last, metric))
