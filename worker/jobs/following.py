"""Where followed jobs stand: one small row each, in few statements for all of them."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from sqlalchemy import select, tuple_
from sqlmodel import col

from . import queue
from .db import Database
from .owners import EVERYBODY, Caller
from .states import TERMINAL, Phase, Status
from .tables import Epoch, Job

_AT_ONCE: Final = 500  # names in one statement


class Mark(NamedTuple):
    """What a follower hears of. When it is another than before, there is something to tell."""

    last_seq: int
    status: Status
    phase: Phase | None
    epoch: int
    batch: int
    batches: int
    attempt: int

    @property
    def is_terminal(self) -> bool:
        return self.status in TERMINAL


def marks(db: Database, job_ids: Sequence[str]) -> dict[str, Mark]:
    """By job; one that is gone is missing."""
    columns = (col(Job.last_seq), col(Job.status), col(Job.phase), col(Job.epoch), col(Job.batch), col(Job.batches))
    found = {}
    with db.read() as session:
        for start in range(0, len(job_ids), _AT_ONCE):
            some = job_ids[start : start + _AT_ONCE]
            for row in session.execute(select(col(Job.id), *columns, col(Job.attempt)).where(col(Job.id).in_(some))):
                phase = Phase(row.phase) if row.phase else None
                found[row.id] = Mark(
                    row.last_seq, Status(row.status), phase, row.epoch, row.batch, row.batches, row.attempt
                )
    return found


def page(
    db: Database, job_id: str, *, since: int = 0, limit: int, caller: Caller = EVERYBODY
) -> tuple[Job, list[Epoch]]:
    """The job, and up to `limit` rows of its metrics behind `since`, oldest first.

    In this order: when the job has ended, none of its rows is missing. Raises NotFound.
    """
    behind = select(Epoch).where(col(Epoch.job_id) == job_id, col(Epoch.seq) > since)
    with db.read() as session:
        job = queue.find(session, job_id, caller)
        return job, list(session.execute(behind.order_by(col(Epoch.seq)).limit(limit)).scalars())


def newest(db: Database, jobs: Sequence[Job]) -> dict[str, Epoch]:
    """The newest row of each job's metrics; a job that has none yet is missing."""
    last = tuple_(col(Epoch.job_id), col(Epoch.seq)).in_([(job.id, job.last_seq) for job in jobs if job.last_seq])
    with db.read() as session:
        return {row.job_id: row for row in session.execute(select(Epoch).where(last)).scalars()}
