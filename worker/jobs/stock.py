"""What there is just now, counted for whoever watches the service: a few questions, each of which an index answers."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import func, select
from sqlmodel import Session, col

from .db import Database, now
from .states import OWNED, TERMINAL, DatasetStatus, DeliveryStatus, Status
from .tables import Dataset, Delivery, Job, Worker

_OPEN: Final = tuple(status for status in Status if status not in TERMINAL)
_AT_ONCE: Final = 500  # ids in one question


@dataclass(frozen=True)
class Stock:
    jobs: dict[str, int]  # by status; every status is there
    datasets: dict[str, int]
    deliveries: dict[str, int]
    oldest_queued_seconds: float  # how long the oldest queued job has been there; 0 without any
    samples_per_second: float  # of all trainings that run
    workers: int
    heartbeat_age_seconds: float | None  # since any worker was heard; None without workers
    open_jobs: frozenset[str]  # those that have not ended


def take(db: Database) -> Stock:
    """Counts. With 100,000 jobs that takes some hundredths of a second."""
    with db.read() as session:
        at = now(session)
        oldest = select(col(Job.created_at)).where(col(Job.status) == Status.QUEUED).order_by(col(Job.id)).limit(1)
        created_at = session.execute(oldest).scalar_one_or_none()
        speeds = select(func.sum(Job.samples_per_second)).where(col(Job.status).in_(OWNED))
        workers, heard_at = session.execute(select(func.count(col(Worker.id)), func.max(Worker.heartbeat_at))).one()
        unfinished = select(col(Job.id)).where(col(Job.status).in_(_OPEN))
        return Stock(
            jobs=_by_status(session, Job, Status),
            datasets=_by_status(session, Dataset, DatasetStatus),
            deliveries=_by_status(session, Delivery, DeliveryStatus),
            oldest_queued_seconds=max(0.0, (at - created_at).total_seconds()) if created_at else 0.0,
            samples_per_second=session.execute(speeds).scalar_one() or 0.0,
            workers=workers,
            heartbeat_age_seconds=max(0.0, (at - heard_at).total_seconds()) if heard_at else None,
            open_jobs=frozenset(session.execute(unfinished).scalars()),
        )


def ended(db: Database, job_ids: Collection[str]) -> list[tuple[str, float]]:
    """How those of these jobs ended that have, and the seconds from their first start to their end.

    Without those that never started, and without those that are gone.
    """
    ids, found = sorted(job_ids), []
    columns = (col(Job.status), col(Job.started_at), col(Job.finished_at))
    is_over = (col(Job.started_at).is_not(None), col(Job.finished_at).is_not(None))
    with db.read() as session:
        for first in range(0, len(ids), _AT_ONCE):
            some = ids[first : first + _AT_ONCE]
            for status, started_at, finished_at in session.execute(
                select(*columns).where(col(Job.id).in_(some), *is_over)
            ):
                found.append((status, max(0.0, (finished_at - started_at).total_seconds())))
    return found


def _by_status(session: Session, table: type[Job | Dataset | Delivery], known: type[StrEnum]) -> dict[str, int]:
    status: Any = table.status
    counted = session.execute(select(status, func.count()).group_by(status))
    return {str(each): 0 for each in known} | {row[0]: row[1] for row in counted}
