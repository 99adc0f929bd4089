"""What an attempt leaves behind while it runs, and the queries that read it back. Every write is fenced."""

import math
from dataclasses import dataclass
from typing import Any, Final, get_args

from sqlalchemy import ColumnElement, ScalarSelect, delete, func, select, update
from sqlmodel import Session, col

from . import deliveries, kept
from .db import Database, now
from .errors import NotFound, NotReady
from .leases import hold, update_fenced
from .owners import EVERYBODY, Caller, visible
from .report import Report
from .spec import Metric
from .states import EventKind, Phase, Resume, Status
from .tables import Attempt, Checkpoint, Epoch, Event, Job, ParityRow, ReportRow, StepCheckpoint, Transition

NO_REPORT: Final = "The job has no report yet; it comes with the first epoch. Regression has none."
_DETAIL_CHARACTERS = 300


@dataclass(frozen=True)
class EpochResult:
    epoch: int  # from 1
    train_loss: float  # averages over samples
    test_loss: float
    learning_rate: float
    samples_per_second: float  # of the training part
    train_seconds: float
    test_seconds: float
    gradient_norm: float | None = None  # L2, averaged over some steps of the epoch
    peak_memory_bytes: int | None = None  # of the training process, or of the GPU where it trains on one
    test_accuracy: float | None = None  # of classification: 0 to 1
    test_top5_accuracy: float | None = None  # where there are more than 5 classes
    test_f1: float | None = None  # average over classes
    test_mae: float | None = None  # of regression: mean absolute error, and the share of variance explained
    test_r2: float | None = None


_MAY_BE_ODD = (*get_args(Metric), "gradient_norm")  # numbers that need not be finite


@dataclass(frozen=True)
class SavedCheckpoint:
    path: str  # relative to the data folder
    sha256: str
    bytes: int
    weights_sha256: str  # of the weights without their file's header: equal for equal trainings
    state_path: str
    state_sha256: str


@dataclass(frozen=True)
class SavedSteps:
    """A checkpoint inside an epoch."""

    epoch: int  # the one at work, from 1
    batch: int  # how many of its batches are trained
    path: str  # relative to the data folder
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Resumed:
    """Where an attempt went on, and how near that is to a training that was never interrupted."""

    epoch: int  # the last one that is done
    batch: int  # how many of the next one's batches are too
    differences: list[str]  # in what computes; none: the same bits


@dataclass(frozen=True)
class Progress:
    phase: Phase
    epoch: int
    batch: int
    batches: int
    samples_per_second: float | None
    eta_seconds: float | None


def record_start(
    db: Database, job_id: str, attempt: int, provenance: dict[str, Any], resumed: Resumed | None = None
) -> None:
    """Forgets what lies behind the place where the attempt goes on."""
    values: dict[str, Any] = {}
    if resumed is not None:
        differs = resumed.differences
        values = {
            "resumed_from": resumed.epoch,
            "resumed_batch": resumed.batch,
            "resume": Resume.APPROXIMATE if differs else Resume.EXACT,
            "resume_reason": "; ".join(differs)[:_DETAIL_CHARACTERS] or None,
        }
    with db.write() as session:
        update_fenced(session, Job, job_id, attempt, provenance=provenance)
        # What it could not go on from would hide what it is going to save; that will be trained again.
        done = resumed.epoch if resumed else 0
        for table in (Epoch, Checkpoint, ReportRow, ParityRow):
            session.execute(delete(table).where(col(table.job_id) == job_id, col(table.epoch) > done))
        if resumed is None or not resumed.batch:
            session.execute(delete(StepCheckpoint).where(col(StepCheckpoint.job_id) == job_id))
        if values:
            session.execute(
                update(Attempt).where(col(Attempt.job_id) == job_id, col(Attempt.number) == attempt).values(**values)
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
    db: Database,
    job_id: str,
    attempt: int,
    result: EpochResult,
    saved: SavedCheckpoint,
    progress: Progress,
    report: Report | None = None,
    answers: bytes | None = None,
) -> list[str]:
    """Metrics, report, checkpoint row and progress in one transaction: after any crash they agree.

    `answers`: what was answered for each picture, as `PictureAnswers` packs it; kept with the report.

    Forgets the checkpoints that the spec does not keep. Returns the paths, relative to the data folder, of all files
    of those that stay: weights and state.
    """
    with db.write() as session:
        update_fenced(session, Job, job_id, attempt, **vars(progress), last_seq=Job.last_seq + 1)
        # An attempt that goes on from an older checkpoint walks over later epochs again.
        for table in (Epoch, Checkpoint):
            session.execute(delete(table).where(col(table.job_id) == job_id, col(table.epoch) >= result.epoch))
        session.execute(delete(StepCheckpoint).where(col(StepCheckpoint.job_id) == job_id))
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
        if report is not None:
            contents = report.model_dump(mode="json")
            session.merge(ReportRow(job_id=job_id, epoch=report.epoch, contents=contents, answers=answers))
        deliveries.note_epoch(session, job_id, result)
        return kept.prune(session, job_id)


def record_steps(db: Database, job_id: str, attempt: int, saved: SavedSteps) -> list[str]:
    """A checkpoint inside an epoch, instead of the one before. Returns the paths of all files that stay."""
    with db.write() as session:
        hold(session, Job, job_id, attempt)
        session.merge(StepCheckpoint(job_id=job_id, attempt=attempt, created_at=now(session), **vars(saved)))
        session.flush()
        return kept.files(session, job_id)


def steps(db: Database, job_id: str) -> StepCheckpoint | None:
    """The checkpoint inside the epoch that follows the newest whole one, if there is one."""
    newest = select(func.coalesce(func.max(Checkpoint.epoch), 0)).where(col(Checkpoint.job_id) == job_id)
    query = select(StepCheckpoint).where(
        col(StepCheckpoint.job_id) == job_id, col(StepCheckpoint.epoch) == newest.scalar_subquery() + 1
    )
    with db.read() as session:
        return session.execute(query).scalar_one_or_none()


def files(db: Database, job_id: str) -> list[str]:
    """The paths, relative to the data folder, of all files that the job's rows name."""
    with db.read() as session:
        return kept.files(session, job_id)


def record_event(db: Database, job_id: str, attempt: int, epoch: int, kind: EventKind, detail: str) -> None:
    """A sentence for people about what the training did by itself; what is too long is cut."""
    with db.write() as session:
        hold(session, Job, job_id, attempt)
        last = select(func.coalesce(func.max(Event.seq), 0)).where(col(Event.job_id) == job_id)
        session.add(
            Event(
                job_id=job_id,
                seq=session.execute(last).scalar_one() + 1,
                at=now(session),
                attempt=attempt,
                epoch=epoch,
                kind=kind,
                detail=detail[:_DETAIL_CHARACTERS],
            )
        )


def epochs(db: Database, job_id: str, *, since: int = 0, limit: int | None = None) -> list[Epoch]:
    """The rows behind the one whose `seq` is `since`, oldest first; all of them, or `limit`."""
    query = (
        select(Epoch).where(col(Epoch.job_id) == job_id, col(Epoch.seq) > since).order_by(col(Epoch.seq)).limit(limit)
    )
    with db.read() as session:
        return list(session.execute(query).scalars())


def attempts(db: Database, job_id: str) -> list[Attempt]:
    with db.read() as session:
        query = select(Attempt).where(col(Attempt.job_id) == job_id).order_by(col(Attempt.number))
        return list(session.execute(query).scalars())


def events(db: Database, job_id: str) -> list[Event]:
    with db.read() as session:
        query = select(Event).where(col(Event.job_id) == job_id).order_by(col(Event.seq))
        return list(session.execute(query).scalars())


def report(db: Database, job_id: str) -> Report:
    """Of the newest epoch. Raises NotReady."""
    with db.read() as session:
        query = select(col(ReportRow.contents)).where(col(ReportRow.job_id) == job_id)
        contents = session.execute(query).scalar_one_or_none()
    if contents is None:
        raise NotReady(NO_REPORT)
    return Report.model_validate(contents)


def transitions(db: Database, job_id: str) -> list[Transition]:
    with db.read() as session:
        query = select(Transition).where(col(Transition.job_id) == job_id).order_by(col(Transition.seq))
        return list(session.execute(query).scalars())


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint with the metrics of its epoch and its place among the others."""

    row: Checkpoint
    metrics: Epoch
    is_best: bool  # by the spec's `checkpoints.best_by`; of equals, the earliest
    is_last: bool


def checkpoints(db: Database, job_id: str) -> list[KeptCheckpoint]:
    """A job's checkpoints, oldest first."""
    with db.read() as session:
        return _checkpoints(session, job_id)


def shown_checkpoints(db: Database, job_id: str, newest: int) -> tuple[list[KeptCheckpoint], int]:
    """The best and so many of the newest, newest first; and how many there are in all."""
    epoch = col(Checkpoint.epoch)
    every = select(epoch).where(col(Checkpoint.job_id) == job_id)
    with db.read() as session:
        count: int = session.execute(select(func.count()).select_from(every.subquery())).scalar_one()
        wanted = epoch.in_(every.order_by(epoch.desc()).limit(newest)) | (epoch == _best(session, job_id))
        return _checkpoints(session, job_id, wanted)[::-1], count


def checkpoint(db: Database, job_id: str, which: str) -> KeptCheckpoint:
    """The one that `best`, `last` or the number of an epoch names.

    Raises NotReady when there is none yet, NotFound when there is none of that epoch."""
    with db.read() as session:
        return find_checkpoint(session, job_id, which)


def find_checkpoint(session: Session, job_id: str, which: str) -> KeptCheckpoint:
    """As `checkpoint`, inside a transaction."""
    epoch = col(Checkpoint.epoch)
    named = {"best": epoch == _best(session, job_id), "last": epoch == _last(session, job_id)}
    if which in named or (which.isdecimal() and str(int(which)) == which):
        found = _checkpoints(session, job_id, named[which] if which in named else epoch == int(which))
        if found:
            return found[0]
    if not _checkpoints(session, job_id, named["last"]):
        raise NotReady
    raise NotFound(f"The job has no checkpoint of epoch {which}, or did not keep it.")


def _checkpoints(session: Session, job_id: str, wanted: ColumnElement[bool] | None = None) -> list[KeptCheckpoint]:
    epoch = col(Checkpoint.epoch)
    query = (
        select(Checkpoint, Epoch, epoch == _best(session, job_id), epoch == _last(session, job_id))
        .join(Epoch, kept.WITH_METRICS)
        .where(col(Checkpoint.job_id) == job_id)
        .order_by(epoch)
    )
    rows = session.execute(query if wanted is None else query.where(wanted)).all()
    return [KeptCheckpoint(row, metrics, is_best, is_last) for row, metrics, is_best, is_last in rows]


def _best(session: Session, job_id: str) -> ScalarSelect[int]:
    return kept.best(job_id, kept.policy(session, job_id).best_by).scalar_subquery()


def _last(_: Session, job_id: str) -> ScalarSelect[int]:
    last = select(func.max(Checkpoint.epoch)).where(col(Checkpoint.job_id) == job_id)
    return last.correlate(None).scalar_subquery()


def newest_succeeded(db: Database, caller: Caller = EVERYBODY) -> str:
    """The job that answers when a prediction names none. Raises NotReady."""
    query = (
        select(col(Job.id))
        .where(col(Job.status) == Status.SUCCEEDED, visible(Job.owner, caller))
        .order_by(col(Job.finished_at).desc(), col(Job.id).desc())
        .limit(1)
    )
    with db.read() as session:
        job_id: str | None = session.execute(query).scalar_one_or_none()
    if job_id is None:
        raise NotReady("No job has succeeded yet; name one with `?job=`, or wait.")
    return job_id


def _finite(result: EpochResult) -> dict[str, Any]:
    """JSON and SQLite know no NaN: such a number is stored as null, and `non_finite` says what it was."""
    numbers = {name: value for name in _MAY_BE_ODD if (value := getattr(result, name)) is not None}
    odd = [str(value) for value in numbers.values() if not math.isfinite(value)]
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return finite | {"non_finite": odd[0] if odd else None}
