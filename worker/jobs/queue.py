"""The life of a job: each function here is one state change in one transaction.

A claimed job carries the number of its attempt. Every later write of a worker names that number (the fence), so
an attempt that lost its lease can change nothing any more.
"""

import re
import secrets
import time
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Select, Update, func, insert, select, update
from sqlmodel import Session, col

from .db import Database, now
from .errors import Conflict, NotFound, StaleAttempt, WorkerLost
from .failures import Failure
from .spec import Spec
from .tables import OWNED, SPENT, TERMINAL, Attempt, Job, Outcome, Status, Transition, Worker

_ID = re.compile(r"[0-9a-f]{24}")


def new_job_id() -> str:
    """An opaque id that sorts by creation: nanoseconds since 1970, then randomness, in hexadecimal."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


def enqueue(db: Database, spec: Spec) -> Job:
    with db.write() as session:
        job = Job(
            id=new_job_id(),
            name=spec.name,
            labels=spec.labels,
            spec=spec.model_dump(mode="json"),
            created_at=now(session),
        )
        session.add(job)
        session.flush()
        _note(session, job.id, Status.QUEUED, "submitted")
        return job


def get(db: Database, job_id: str) -> Job:
    """Raises NotFound."""
    with db.read() as session:
        return _get(session, job_id)


def jobs(
    db: Database, *, status: Status | None = None, after: str | None = None, limit: int = 20
) -> tuple[list[Job], bool]:
    """Up to `limit` jobs, newest first, from behind the job `after`; and whether there are more."""
    query = select(Job).order_by(col(Job.id).desc()).limit(limit + 1)
    if status is not None:
        query = query.where(col(Job.status) == status)
    if after is not None:
        query = query.where(col(Job.id) < after)
    with db.read() as session:
        found = list(session.execute(query).scalars())
    return found[:limit], len(found) > limit


def has_queued(db: Database) -> bool:
    with db.read() as session:
        return session.execute(select(col(Job.id)).where(col(Job.status) == Status.QUEUED).limit(1)).first() is not None


def claim(db: Database, worker_id: str, lease_seconds: float) -> Job | None:
    """Takes the oldest queued job, or returns None. Two workers never get the same attempt."""
    oldest = (
        select(col(Job.id))
        .where(col(Job.status) == Status.QUEUED)
        .order_by(col(Job.id))
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; on SQLite the IMMEDIATE transaction is alone anyway
        .scalar_subquery()
    )
    with db.write() as session:
        at = now(session)
        statement = (
            update(Job)
            .where(col(Job.id) == oldest, col(Job.status) == Status.QUEUED)
            .values(
                status=Status.RUNNING,
                attempt=Job.attempt + 1,
                worker_id=worker_id,
                lease_expires_at=at + timedelta(seconds=lease_seconds),
                started_at=func.coalesce(Job.started_at, at),
            )
            .returning(Job)
        )
        job: Job | None = session.execute(statement).scalar_one_or_none()
        if job is None:
            return None
        session.add(Attempt(job_id=job.id, number=job.attempt, worker_id=worker_id, started_at=at))
        _note(session, job.id, Status.RUNNING, f"attempt {job.attempt}")
        return job


def register(db: Database, worker_id: str, host: str) -> None:
    with db.write() as session:
        at = now(session)
        session.add(Worker(id=worker_id, host=host, started_at=at, heartbeat_at=at))


def deregister(db: Database, worker_id: str) -> None:
    with db.write() as session:
        row = session.get(Worker, worker_id)
        if row is not None:
            session.delete(row)


def heartbeat(db: Database, worker_id: str, lease_seconds: float, job_ids: Collection[str]) -> None:
    """Says that the worker is alive and renews the leases of the jobs that it watches.

    A job that is the worker's by its row but that it does not watch (a claim whose answer got lost) is left to expire.
    """
    with db.write() as session:
        at = now(session)
        session.execute(update(Worker).where(col(Worker.id) == worker_id).values(heartbeat_at=at))
        session.execute(
            update(Job)
            .where(col(Job.worker_id) == worker_id, col(Job.id).in_(job_ids), col(Job.status).in_(OWNED))
            .values(lease_expires_at=at + timedelta(seconds=lease_seconds))
        )


def seconds_since_heartbeat(db: Database) -> float | None:
    """How long ago any worker was last heard; None when none is registered."""
    with db.read() as session:
        newest = session.execute(select(func.max(Worker.heartbeat_at))).scalar_one()
        return (now(session) - newest).total_seconds() if newest else None


def owned(db: Database, worker_id: str) -> dict[str, tuple[int, Status]]:
    """What this worker still owns: job id -> (attempt, status)."""
    query = select(col(Job.id), col(Job.attempt), col(Job.status)).where(col(Job.worker_id) == worker_id)
    with db.read() as session:
        return {row.id: (row.attempt, Status(row.status)) for row in session.execute(query)}


def cancel(db: Database, job_id: str) -> Job:
    """A queued job is cancelled at once, a running one becomes `cancelling`; asking twice is fine.

    Raises NotFound, and Conflict when the job has succeeded or failed.
    """
    with db.write() as session:
        job = _get(session, job_id, lock=True)
        if job.status == Status.QUEUED:
            job.status, job.finished_at = Status.CANCELLED, now(session)
            _note(session, job_id, Status.CANCELLED, "cancelled while queued")
        elif job.status == Status.RUNNING:
            job.status = Status.CANCELLING
            _note(session, job_id, Status.CANCELLING, "cancel requested")
        elif job.status in (Status.SUCCEEDED, Status.FAILED):
            raise Conflict(f"The job has {job.status} and cannot be cancelled any more.")
        return job


def finish(
    db: Database,
    job_id: str,
    attempt: int,
    outcome: Outcome,
    failure: Failure | None = None,
    *,
    max_attempts: int,
) -> Status:
    """Ends an attempt, and gives its job the status that follows from how it ended.

    CANCELLED is not the caller's to say: it is what RELEASED means for a job that is `cancelling`.

    Raises StaleAttempt when the attempt no longer owns the job.
    """
    assert outcome is not Outcome.CANCELLED
    with db.write() as session:
        owner = select(col(Job.status)).where(*_fence(job_id, attempt)).with_for_update()
        return _end_attempt(session, owner, job_id, attempt, outcome, failure, max_attempts)


def rescue(db: Database, *, max_attempts: int, dead_workers: Sequence[str] = ()) -> list[str]:
    """Takes jobs back from workers whose lease ran out, or that are known to be dead. Returns the job ids."""
    with db.write() as session:
        expired = (col(Job.lease_expires_at) < now(session)) | col(Job.worker_id).in_(dead_workers)
        lost = select(col(Job.id), col(Job.attempt)).where(col(Job.status).in_(OWNED), expired)
        rescued = []
        for job_id, attempt in session.execute(lost.with_for_update(skip_locked=True)).all():
            owner = select(col(Job.status)).where(*_fence(job_id, attempt), expired)
            failure = Failure.of(WorkerLost())
            _end_attempt(session, owner, job_id, attempt, Outcome.WORKER_LOST, failure, max_attempts)
            rescued.append(job_id)
        for worker_id in dead_workers:
            row = session.get(Worker, worker_id)
            if row is not None:
                session.delete(row)
        return rescued


def fenced(session: Session, job_id: str, attempt: int, **values: Any) -> None:
    """Updates the job if this attempt still owns it. Raises StaleAttempt."""
    statement: Update = update(Job).where(*_fence(job_id, attempt)).values(**values)
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    if result.rowcount != 1:
        raise StaleAttempt


def _fence(job_id: str, attempt: int) -> tuple[Any, ...]:
    return (col(Job.id) == job_id, col(Job.attempt) == attempt, col(Job.status).in_(OWNED))


def _end_attempt(
    session: Session,
    owner: Select[str],
    job_id: str,
    attempt: int,
    outcome: Outcome,
    failure: Failure | None,
    max_attempts: int,
) -> Status:
    owned_status = session.execute(owner).scalar_one_or_none()
    if owned_status is None:
        raise StaleAttempt
    if owned_status == Status.CANCELLING and outcome is Outcome.RELEASED:
        outcome = Outcome.CANCELLED
    at = now(session)
    error = failure.model_dump(mode="json") if failure else None
    session.execute(
        update(Attempt)
        .where(col(Attempt.job_id) == job_id, col(Attempt.number) == attempt, col(Attempt.outcome).is_(None))
        .values(outcome=outcome, ended_at=at, error=error)
    )
    status = _next_status(session, job_id, Status(owned_status), outcome, max_attempts)
    fenced(
        session,
        job_id,
        attempt,
        status=status,
        phase=None,
        worker_id=None,
        lease_expires_at=None,
        eta_seconds=None,
        finished_at=at if status in TERMINAL else None,
        error=error if status is Status.FAILED else None,
    )
    reason = failure.message if failure else str(outcome)
    _note(session, job_id, status, f"attempt {attempt}: {reason}"[:200])
    return status


def _next_status(session: Session, job_id: str, status: Status, outcome: Outcome, max_attempts: int) -> Status:
    if outcome is Outcome.SUCCEEDED:
        return Status.SUCCEEDED
    if outcome is Outcome.FAILED:
        return Status.FAILED
    if status is Status.CANCELLING:
        return Status.CANCELLED
    if outcome is Outcome.RELEASED:
        return Status.QUEUED
    spent = select(func.count()).where(col(Attempt.job_id) == job_id, col(Attempt.outcome).in_(SPENT))
    return Status.FAILED if session.execute(spent).scalar_one() >= max_attempts else Status.QUEUED


def _get(session: Session, job_id: str, *, lock: bool = False) -> Job:
    # PostgreSQL refuses some texts outright (NUL); what is no id of ours is asked of neither database.
    job = session.get(Job, job_id, with_for_update=lock or None) if _ID.fullmatch(job_id) else None
    if job is None:
        raise NotFound("There is no job with this id.")
    return job


def _note(session: Session, job_id: str, status: Status, reason: str) -> None:
    """Appends to the job's history."""
    seq = select(func.coalesce(func.max(Transition.seq), 0) + 1).where(col(Transition.job_id) == job_id)
    at: datetime = now(session)
    session.execute(
        insert(Transition).values(job_id=job_id, seq=seq.scalar_subquery(), status=status, at=at, reason=reason)
    )
