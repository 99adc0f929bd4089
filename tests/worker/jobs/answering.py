"""Jobs with reports of which it is known what was answered for each picture."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.worker.jobs.making import progress, result, running, saved
from worker.jobs import records
from worker.jobs.answers import STEPS, PictureAnswers
from worker.jobs.db import Database
from worker.jobs.report import report_of
from worker.jobs.tables import Job

CLASSES = ["cat", "dog", "emu"]
PROVENANCE: dict[str, Any] = {"threads": 1, "device": "cpu", "dataset": {"sha256": "ab" * 32}}


def answers(labels: Sequence[int], predicted: Sequence[int], probabilities: Sequence[float] = ()) -> PictureAnswers:
    """`probabilities`: unset, all answers are certain."""
    steps = [round(each * STEPS) for each in probabilities] or [STEPS] * len(labels)
    return PictureAnswers(labels, predicted, steps)


def record_answers(db: Database, job: Job, given: PictureAnswers, *, epoch: int = 1, are_kept: bool = True) -> None:
    """As an attempt does after an epoch."""
    report = report_of(Counter(zip(given.labels, given.predicted, strict=True)), CLASSES, epoch)
    packed = given.pack() if are_kept else None
    records.record_epoch(db, job.id, job.attempt, result(epoch), saved(epoch), progress(epoch), report, packed)


def job_with(
    db: Database, given: PictureAnswers, *, provenance: dict[str, Any] = PROVENANCE, are_kept: bool = True, **spec: Any
) -> Job:
    """A running job that has done an epoch."""
    job = running(db, **spec)
    records.record_start(db, job.id, job.attempt, provenance)
    record_answers(db, job, given, are_kept=are_kept)
    return job
