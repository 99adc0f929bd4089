"""What an attempt leaves behind while it runs, and the queries that read it back. Every write is fenced."""

import math
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, select, update
from sqlmodel import col

from .db import Database, now
from .errors import NotFound, NotReady
from .leases import update_fenced
from .tables import Attempt, Checkpoint, Epoch, Job, Phase, Status, Transition


@dataclass(frozen=True)
class EpochResult:
    epoch: int  # from 1
    train_loss: float  # averages over samples
    test_loss: float
    learning_rate: float
    samples_per_second: float  # of the training part
    train_seconds: float
    test_seconds: float
    test_accuracy: float | None = None  # of classification: 0 to 1
    test_mae: float | None = None  # of regression: mean absolute error, and the share of variance explained
    test_r2: float | None = None


@dataclass(frozen=True)
class SavedCheckpoint:
    path: str  # relative to the data folder
    sha256: str
    bytes: int
    state_path: str
    state_sha256: str


@dataclass(frozen=True)
class Progress:
    phase: Phase
    epoch: int
    batch: int
    batches: int
    samples_per_second: float | None
    eta_seconds: float | None


def record_start(db: Database, job_id: str, attempt: int, provenance: dict[str, Any], resumed_from: int | None) -> None:
    with db.write() as session:
        update_fenced(session, Job, job_id, attempt, provenance=provenance)
        session.execute(
            update(Attempt)
            .where(col(Attempt.job_id) == job_id, col(Attempt.number) == attempt)
            .values(resumed_from=resumed_from)
        )


def record_first_batch(db: Database, job_id: str, attempt: int, progress: Progress) -> None:
    """The first progress of an attempt, and when it was made: the end of the wait that a user feels."""
    with db.write() as session:
        update_fenced(session, Job, job_id, attempt, **vars(progress))
        session.execute(
            update(Attempt)
            .where(col(Attempt.job_id) == job_id, col(Attempt.number) == attempt)
            .values(first_batch_at=now(session))
        )


def record_progress(db: Database, job_id: str, attempt: int, progress: Progress) -> None:
    with db.write() as session:
        update_fenced(session, Job, job_id, attempt, **vars(progress))


def record_epoch(
    db: Database, job_id: str, attempt: int, result: EpochResult, saved: SavedCheckpoint, progress: Progress
) -> None:
    """Metrics, checkpoint row and progress in one transaction: after any crash they agree."""
    with db.write() as session:
        update_fenced(session, Job, job_id, attempt, **vars(progress), last_seq=Job.last_seq + 1)
        # An attempt that goes on from an older checkpoint walks over later epochs again.
        for table in (Epoch, Checkpoint):
            session.execute(delete(table).where(col(table.job_id) == job_id, col(table.epoch) >= result.epoch))
        seq = session.execute(select(col(Job.last_seq)).where(col(Job.id) == job_id)).scalar_one()
        session.add(
            Epoch(
                job_id=job_id,
                seq=seq,
                attempt=attempt,
                recorded_at=now(session),
                **vars(result) | _finite(result),
            )
        )
        session.add(
            Checkpoint(job_id=job_id, epoch=result.epoch, attempt=attempt, created_at=now(session), **vars(saved))
        )


def epochs(db: Database, job_id: str, *, since: int = 0, limit: int = 1000) -> list[Epoch]:
    query = (
        select(Epoch).where(col(Epoch.job_id) == job_id, col(Epoch.seq) > since).order_by(col(Epoch.seq)).limit(limit)
    )
    with db.read() as session:
        return list(session.execute(query).scalars())


def attempts(db: Database, job_id: str) -> list[Attempt]:
    with db.read() as session:
        query = select(Attempt).where(col(Attempt.job_id) == job_id).order_by(col(Attempt.number))
        return list(session.execute(query).scalars())


def transitions(db: Database, job_id: str) -> list[Transition]:
    with db.read() as session:
        query = select(Transition).where(col(Transition.job_id) == job_id).order_by(col(Transition.seq))
        return list(session.execute(query).scalars())


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint with the metrics of its epoch and its place among the others."""

    row: Checkpoint
    metrics: Epoch
    is_best: bool  # the highest test accuracy, or the lowest test loss where there is none; of equals, the earliest
    is_last: bool


def checkpoints(db: Database, job_id: str) -> list[KeptCheckpoint]:
    """A job's checkpoints, oldest first."""
    query = (
        select(Checkpoint, Epoch)
        .join(Epoch, (col(Epoch.job_id) == col(Checkpoint.job_id)) & (col(Epoch.epoch) == col(Checkpoint.epoch)))
        .where(col(Checkpoint.job_id) == job_id)
        .order_by(col(Checkpoint.epoch))
    )
    with db.read() as session:
        rows = session.execute(query).all()
    if not rows:
        return []
    best = max(rows, key=lambda row: (_goodness(row[1]), -row[1].epoch))
    return [KeptCheckpoint(row, metrics, row is best[0], row is rows[-1][0]) for row, metrics in rows]


def checkpoint(db: Database, job_id: str, which: str) -> KeptCheckpoint:
    """The one that `best`, `last` or the number of an epoch names.

    Raises NotReady when there is none yet, NotFound when there is none of that epoch."""
    kept = checkpoints(db, job_id)
    if not kept:
        raise NotReady
    for item in kept:
        if (which == "best" and item.is_best) or (which == "last" and item.is_last) or which == str(item.row.epoch):
            return item
    raise NotFound(f"The job has no checkpoint of epoch {which}.")


def newest_succeeded(db: Database) -> str:
    """The job that answers when a prediction names none. Raises NotReady."""
    query = (
        select(col(Job.id))
        .where(col(Job.status) == Status.SUCCEEDED)
        .order_by(col(Job.finished_at).desc(), col(Job.id).desc())
        .limit(1)
    )
    with db.read() as session:
        job_id: str | None = session.execute(query).scalar_one_or_none()
    if job_id is None:
        raise NotReady("No job has succeeded yet; name one with `?job=`, or wait.")
    return job_id


def _goodness(epoch: Epoch) -> float:
    if epoch.test_accuracy is not None:
        return epoch.test_accuracy
    return -math.inf if epoch.test_loss is None else -epoch.test_loss


def _finite(result: EpochResult) -> dict[str, Any]:
    """JSON and SQLite know no NaN: such a number is stored as null, and `non_finite` says what it was."""
    names = ("train_loss", "test_loss", "test_mae", "test_r2")
    numbers = {name: value for name in names if (value := getattr(result, name)) is not None}
    odd = [str(value) for value in numbers.values() if not math.isfinite(value)]
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return finite | {"non_finite": odd[0] if odd else None}
