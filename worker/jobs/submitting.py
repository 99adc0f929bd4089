"""How a job comes into the queue: once for each Idempotency-Key, and not beyond what may wait."""

import hashlib
import json
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlmodel import Session, col

from . import datasets, queue
from .db import Database, now, one_at_a_time
from .errors import IdempotencyMismatch, TooManyJobs
from .ids import new_id
from .owners import EVERYBODY, Caller
from .spec import Spec
from .states import Status
from .tables import Job


@dataclass(frozen=True)
class Quota:
    """How many jobs may wait: in all, and of one owner."""

    jobs: int
    jobs_of_owner: int


@dataclass(frozen=True)
class Origin:
    """Where a job comes from."""

    caller: Caller = EVERYBODY
    idempotency_key: str | None = None
    request_id: str | None = None


def enqueue(db: Database, spec: Spec, origin: Origin = Origin(), quota: Quota | None = None) -> Job:
    """Raises SpecRefused, TooManyJobs and IdempotencyMismatch.

    With an Idempotency-Key that the caller has used for the same spec before, it is the job of that time.
    """
    with db.write() as session:
        known = _replayed(session, spec, origin, lock=True)
        if known is not None:
            return known
        if quota is not None:
            _require_room(session, origin.caller.owner, quota)
        dataset = datasets.for_job(session, spec, origin.caller)
        key = origin.idempotency_key
        job = Job(
            id=new_id(),
            owner=origin.caller.owner,
            name=spec.name,
            labels=spec.labels,
            spec=datasets.pinned(spec, dataset).model_dump(mode="json"),
            dataset_id=dataset.id,
            priority=spec.priority,
            created_at=now(session),
            idempotency_key=key,
            request_sha256=_digest(spec) if key is not None else None,
            request_id=origin.request_id,
        )
        session.add(job)
        session.flush()
        queue.label(session, job)
        queue.note(session, job.id, Status.QUEUED, "submitted")
        return job


def replayed(db: Database, spec: Spec, origin: Origin) -> Job | None:
    """The job that this request made when it came before. Raises IdempotencyMismatch."""
    if origin.idempotency_key is None:
        return None
    with db.read() as session:
        return _replayed(session, spec, origin)


def _replayed(session: Session, spec: Spec, origin: Origin, *, lock: bool = False) -> Job | None:
    owner, key = origin.caller.owner, origin.idempotency_key
    if key is None:
        return None
    if lock:
        one_at_a_time(session, f"idempotency {owner} {key}")
    query = select(Job).where(col(Job.owner) == owner, col(Job.idempotency_key) == key)
    job: Job | None = session.execute(query).scalar_one_or_none()
    if job is not None and job.request_sha256 != _digest(spec):
        raise IdempotencyMismatch
    return job


def _require_room(session: Session, owner: str, quota: Quota) -> None:
    """Raises TooManyJobs."""
    one_at_a_time(session, "queue")  # or two at once would both be the last one
    by_owner = select(col(Job.owner), func.count()).where(col(Job.status) == Status.QUEUED).group_by(col(Job.owner))
    waiting = dict(session.execute(by_owner).all())
    own, every = waiting.get(owner, 0), sum(waiting.values())
    for count, most, whose in ((own, quota.jobs_of_owner, " of yours"), (every, quota.jobs, "")):
        if count >= most:
            raise TooManyJobs(
                f"{most} jobs{whose} wait already, which are as many as may; submit this one when some have begun."
            )


def _digest(spec: Spec) -> str:
    """Of what the client said: what it left out may mean something else by the next time."""
    said = spec.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
