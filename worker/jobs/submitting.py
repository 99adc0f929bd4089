"""How a job comes into the queue: once for each Idempotency-Key, and not beyond what may wait."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import func, insert, select
from sqlmodel import Session, col

from . import datasets
from .db import Database, now, one_at_a_time
from .errors import IdempotencyMismatch, TooManyJobs
from .ids import new_id
from .owners import EVERYBODY, Caller
from .spec import Part, Spec
from .states import Status
from .tables import Dataset, Job, Label, Sweep, Transition

Row = TypeVar("Row", Job, Sweep)


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
        known = made_before(session, Job, spec, origin, lock=True)
        if known is not None:
            return known
        if quota is not None:
            require_room(session, origin.caller.owner, quota)
        dataset = datasets.for_job(session, spec, origin.caller)
        job = new_job(new_id(), spec, dataset, origin, created_at=now(session), **named(spec, origin))
        add(session, [job])
        return job


def new_job(job_id: str, spec: Spec, dataset: Dataset, origin: Origin, **more: Any) -> Job:
    """A job that nobody knows of yet."""
    return Job(
        id=job_id,
        owner=origin.caller.owner,
        name=spec.name,
        labels=spec.labels,
        spec=datasets.pinned(spec, dataset).model_dump(mode="json"),
        dataset_id=dataset.id,
        priority=spec.priority,
        request_id=origin.request_id,
        **more,
    )


def add(session: Session, jobs: Sequence[Job]) -> None:
    """Puts them into the queue, a thousand in as few statements as one."""
    session.add_all(jobs)
    session.flush()
    labels = [{"job_id": job.id, "key": key, "value": value} for job in jobs for key, value in job.labels.items()]
    if labels:
        session.execute(insert(Label), labels)
    first = {"seq": 1, "status": Status.QUEUED, "reason": "submitted"}
    session.execute(insert(Transition), [first | {"job_id": job.id, "at": job.created_at} for job in jobs])


def replayed(db: Database, table: type[Row], said: Part, origin: Origin) -> Row | None:
    """The job or sweep that this request made when it came before. Raises IdempotencyMismatch."""
    if origin.idempotency_key is None:
        return None
    with db.read() as session:
        return made_before(session, table, said, origin)


def made_before(session: Session, table: type[Row], said: Part, origin: Origin, *, lock: bool = False) -> Row | None:
    """As `replayed`, inside a transaction; with `lock`, no equal request is past here at the same time."""
    owner, key = origin.caller.owner, origin.idempotency_key
    if key is None:
        return None
    if lock:
        one_at_a_time(session, f"idempotency {owner} {key}")
    query = select(table).where(col(table.owner) == owner, col(table.idempotency_key) == key)
    row: Row | None = session.execute(query).scalar_one_or_none()
    if row is not None and row.request_sha256 != _digest(said):
        raise IdempotencyMismatch
    return row


def named(said: Part, origin: Origin) -> dict[str, Any]:
    """The columns by which `made_before` finds it."""
    key = origin.idempotency_key
    return {"idempotency_key": key, "request_sha256": _digest(said) if key is not None else None}


def require_room(session: Session, owner: str, quota: Quota, count: int = 1) -> None:
    """For so many more. Raises TooManyJobs."""
    one_at_a_time(session, "queue")  # or two at once would both be the last one
    by_owner = select(col(Job.owner), func.count()).where(col(Job.status) == Status.QUEUED).group_by(col(Job.owner))
    waiting = dict(session.execute(by_owner).all())
    own, every = waiting.get(owner, 0), sum(waiting.values())
    for there, most, whose in ((own, quota.jobs_of_owner, " of yours"), (every, quota.jobs, "")):
        if there >= most:
            raise TooManyJobs(
                f"{most} jobs{whose} wait already, which are as many as may; submit this one when some have begun."
            )
        if there + count > most:
            raise TooManyJobs(
                f"At most {most} jobs{whose} may wait, and {there} do already: there is no room for {count} more. Ask "
                "for fewer trials, or submit them when some have begun."
            )


def _digest(said: Part) -> str:
    """Of what the client said: what it left out may mean something else by the next time."""
    body = said.model_dump(mode="json", exclude_unset=True)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
