"""The life of a job: each function here is one state change in one transaction.

How it begins is in `submitting.py`, what its owner asks for in `control.py`; see `leases.py` for claim and fence.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import Select, func, insert, select, update
from sqlmodel import Session, col

from . import deliveries, leases, waiting, workers
from .db import Database, now
from .errors import DatasetInvalid, NotFound, SpecRefused, StaleAttempt, WorkerLost
from .failures import JOB_CODES, Failure
from .ids import is_id
from .owners import EVERYBODY, Caller
from .patches import patched
from .remedies import suggestion
from .spec import Spec
from .states import OWNED, SPENT, TERMINAL, DatasetStatus, Outcome, Status, Wish
from .tables import Attempt, Dataset, Job, Label, Transition

_NOT_RETURNED = {Status.CANCELLING: Status.CANCELLED, Status.PAUSING: Status.PAUSED}  # to the queue
_ASKED_FOR = {Status.CANCELLING: Outcome.CANCELLED, Status.PAUSING: Outcome.PAUSED}


def get(db: Database, job_id: str, caller: Caller = EVERYBODY) -> Job:
    """Raises NotFound, also when it is somebody else's."""
    with db.read() as session:
        return find(session, job_id, caller)


def phase(db: Database, job_id: str) -> str | None:
    """What the job's attempt is doing; None too when somebody has deleted the job."""
    with db.read() as session:
        return session.execute(select(col(Job.phase)).where(col(Job.id) == job_id)).scalar_one_or_none()


def ahead(db: Database, job: Job) -> int:
    """How many queued jobs begin before this one, as things stand."""
    with db.read() as session:
        return waiting.ahead(session, job)


def is_any_owned(db: Database) -> bool:
    """Whether a training is under way anywhere."""
    with db.read() as session:
        return session.execute(select(col(Job.id)).where(col(Job.status).in_(OWNED)).limit(1)).first() is not None


def has_waiting(db: Database, *, cores: int = 1, is_idle: bool = True) -> bool:
    """Whether there is a job for `claim` to take."""
    with db.read() as session:
        first = waiting.first(session)
        return first is not None and (is_idle or (waiting.pinned(first) or 1) <= cores)


def claim(
    db: Database, worker_id: str, lease_seconds: float, *, cores: int = 1, slots: int = 1, is_idle: bool = True
) -> Job | None:
    """Takes the queued job that is next (see `waiting.py`), or returns None. Two workers never get the same attempt.

    `cores` and `slots` are what the worker has left. Its first claim pins a job's threads. One that needs more than
    there are waits, and no other one overtakes it, or it might wait for ever; a worker that `is_idle` takes it.
    """
    with db.write() as session:
        first = waiting.first(session, lock=True)
        if first is None:
            return None
        threads = waiting.pinned(first) or waiting.share(session, cores, slots)
        if threads > cores and not is_idle:
            return None
        if first.threads is None:  # more than there are would wait for one another
            threads = min(threads, max(1, cores))
        at = now(session)
        job = leases.claim(
            session,
            Job,
            select(col(Job.id)).where(col(Job.id) == first.id),
            worker_id,
            lease_seconds,
            status=Status.RUNNING,
            started_at=func.coalesce(Job.started_at, at),
            threads=threads,
        )
        assert job is not None  # its row is locked
        waiting.take_turn(session, job.owner)
        session.add(Attempt(job_id=job.id, number=job.attempt, worker_id=worker_id, started_at=at))
        note(session, job.id, Status.RUNNING, f"attempt {job.attempt}")
        return job


def fail_hopeless(db: Database) -> list[str]:
    """Fails the queued jobs whose dataset turned out to be invalid. Returns their ids."""
    hopeless = (
        select(Job, Dataset)
        .join(Dataset, col(Job.dataset_id) == col(Dataset.id))
        .where(col(Job.status) == Status.QUEUED, col(Dataset.status) == DatasetStatus.INVALID)
    )
    with db.read() as session:
        if session.execute(hopeless.limit(1)).first() is None:  # asked often: reading locks nobody out
            return []
    with db.write() as session:
        found = session.execute(hopeless.with_for_update(skip_locked=True, of=Job)).all()
        for job, dataset in found:
            error = dict(dataset.error or {})
            if error.get("code") not in JOB_CODES:
                error["code"] = DatasetInvalid.code
            job.status, job.finished_at, job.error = Status.FAILED, now(session), error
            note(session, job.id, Status.FAILED, "its dataset is invalid")
        return [job.id for job, _ in found]


def renew(db: Database, worker_id: str, lease_seconds: float, job_ids: Collection[str]) -> None:
    with db.write() as session:
        leases.renew(session, Job, worker_id, lease_seconds, job_ids)


def owned(db: Database, worker_id: str) -> dict[str, tuple[int, Wish]]:
    """What this worker still owns: job id -> (attempt, what is to become of it)."""
    columns = (col(Job.id), col(Job.attempt), col(Job.status), col(Job.stop_now))
    query = select(*columns).where(col(Job.worker_id) == worker_id)
    with db.read() as session:
        return {row.id: (row.attempt, _wish(row.status, row.stop_now)) for row in session.execute(query)}


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

    CANCELLED and PAUSED are not the caller's to say: they are what RELEASED means for a job that is `cancelling` or
    `pausing`.

    Raises StaleAttempt when the attempt no longer owns the job.
    """
    assert outcome not in _ASKED_FOR.values()
    with db.write() as session:
        owner = select(col(Job.status)).where(*leases.fence(Job, job_id, attempt)).with_for_update()
        return _end_attempt(session, owner, job_id, attempt, outcome, failure, max_attempts)


def rescue(db: Database, *, max_attempts: int, dead_workers: Sequence[str] = (), expired: bool = True) -> list[str]:
    """Takes jobs back from workers that are known to be dead, or whose lease has `expired`. Returns the job ids."""
    with db.write() as session:
        lost = leases.lost(session, Job, dead_workers, expired=expired)
        for job_id, attempt in lost:
            owner = select(col(Job.status)).where(*leases.fence(Job, job_id, attempt))
            failure = Failure.of(WorkerLost())
            _end_attempt(session, owner, job_id, attempt, Outcome.WORKER_LOST, failure, max_attempts)
        workers.forget(session, dead_workers)
        return [job_id for job_id, _ in lost]


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
    if outcome is Outcome.RELEASED:
        outcome = _ASKED_FOR.get(Status(owned_status), outcome)
    at = now(session)
    error = _told(session, job_id, failure) if failure else None
    session.execute(
        update(Attempt)
        .where(col(Attempt.job_id) == job_id, col(Attempt.number) == attempt, col(Attempt.outcome).is_(None))
        .values(outcome=outcome, ended_at=at, error=error)
    )
    status = _next_status(session, job_id, Status(owned_status), outcome, max_attempts)
    leases.update_fenced(
        session,
        Job,
        job_id,
        attempt,
        status=status,
        phase=None,
        worker_id=None,
        lease_expires_at=None,
        eta_seconds=None,
        stop_now=False,
        finished_at=at if status in TERMINAL else None,
        error=error if status is Status.FAILED else None,
    )
    reason = failure.message if failure else str(outcome)
    note(session, job_id, status, f"attempt {attempt}: {reason}"[:200])
    return status


def _told(session: Session, job_id: str, failure: Failure) -> dict[str, Any]:
    spec = session.execute(select(col(Job.spec)).where(col(Job.id) == job_id)).scalar_one()
    with suppress(ValidationError, SpecRefused):  # a spec of another epochd, or nothing that a spec could say
        patch = suggestion(failure, Spec.model_validate(spec))
        Spec.model_validate(patched(spec, patch or {}))
        failure = failure.model_copy(update={"suggestion": patch})
    return failure.model_dump(mode="json")


def _next_status(session: Session, job_id: str, status: Status, outcome: Outcome, max_attempts: int) -> Status:
    if outcome is Outcome.SUCCEEDED:
        return Status.SUCCEEDED
    if outcome is Outcome.FAILED:
        return Status.FAILED
    if status in _NOT_RETURNED:
        return _NOT_RETURNED[status]
    if outcome is Outcome.RELEASED:
        return Status.QUEUED
    forgiven = select(col(Job.forgiven)).where(col(Job.id) == job_id).scalar_subquery()
    spent = select(func.count()).where(
        col(Attempt.job_id) == job_id, col(Attempt.outcome).in_(SPENT), col(Attempt.number) > forgiven
    )
    return Status.FAILED if session.execute(spent).scalar_one() >= max_attempts else Status.QUEUED


def _wish(status: str, stop_now: bool) -> Wish:
    if status == Status.RUNNING:
        return Wish.GO_ON
    return Wish.STOP_NOW if stop_now else Wish.STOP


def find(session: Session, job_id: str, caller: Caller = EVERYBODY, *, lock: bool = False) -> Job:
    """Raises NotFound, also when it is somebody else's."""
    job = session.get(Job, job_id, with_for_update=lock or None) if is_id(job_id) else None
    if job is None or not caller.may_see(job.owner):
        raise NotFound("There is no job with this id.")
    return job


def label(session: Session, job: Job) -> None:
    """Makes a job be found by its labels."""
    if job.labels:
        session.execute(
            insert(Label), [{"job_id": job.id, "key": key, "value": value} for key, value in job.labels.items()]
        )


def note(session: Session, job_id: str, status: Status, reason: str) -> None:
    """Appends to the job's history."""
    seq = select(func.coalesce(func.max(Transition.seq), 0) + 1).where(col(Transition.job_id) == job_id)
    at: datetime = now(session)
    session.execute(
        insert(Transition).values(job_id=job_id, seq=seq.scalar_subquery(), status=status, at=at, reason=reason)
    )
    deliveries.note(session, job_id, status)
