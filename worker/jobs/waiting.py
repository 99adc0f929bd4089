"""Which of the queued jobs is next, and how many threads it gets."""

from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlmodel import Session, col

from .states import DatasetStatus, Status
from .tables import Dataset, Job


def oldest() -> Select[Any]:
    """The queued job that is next, as far as its threads depend on it."""
    return _trainable().add_columns(col(Job.spec), col(Job.threads)).order_by(col(Job.id)).limit(1)


def pinned(job: Row[Any]) -> int | None:
    """The threads that this one must have; None while that is open."""
    threads: int | None = job.threads or job.spec.get("threads")
    return threads


def share(session: Session, cores: int, slots: int) -> int:
    """Threads for the next one: all that wait share the cores, as far as there are slots for them."""
    most = max(1, min(cores, slots))
    query = select(func.count()).select_from(_trainable().limit(most).subquery())
    count: int = session.execute(query).scalar_one()
    return max(1, cores // count)


def _trainable() -> Select[str]:
    """The ids of queued jobs whose dataset is ready."""
    ready = col(Dataset.status) == DatasetStatus.READY
    return (
        select(col(Job.id))
        .join(Dataset, col(Job.dataset_id) == col(Dataset.id))
        .where(col(Job.status) == Status.QUEUED, ready)
    )
