"""Lists of jobs: newest first, in pages that neither skip nor repeat while jobs arrive."""

from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import select
from sqlmodel import col

from .db import Database
from .ids import id_of
from .owners import EVERYBODY, Caller, visible
from .states import Status
from .tables import Job, Label

_CLOCKS: Final = timedelta(days=1)  # between that of who makes ids and that of who stores them


_EARLIEST, _LATEST = datetime(1971, 1, 1, tzinfo=UTC), datetime(2500, 1, 1, tzinfo=UTC)


class Filter(NamedTuple):
    status: Status | None = None
    labels: tuple[tuple[str, str], ...] = ()  # all of them
    created_after: datetime | None = None
    sweep: str | None = None  # its trials


EVERY: Final = Filter()


def jobs(
    db: Database,
    wanted: Filter = EVERY,
    *,
    after: str | None = None,
    limit: int = 20,
    caller: Caller = EVERYBODY,
) -> tuple[list[Job], bool]:
    """Up to `limit` jobs, newest first, from behind the job `after`; and whether there are more."""
    query = select(Job).where(visible(Job.owner, caller)).order_by(col(Job.id).desc()).limit(limit + 1)
    if wanted.status is not None:
        query = query.where(col(Job.status) == wanted.status)
    if wanted.sweep is not None:
        query = query.where(col(Job.sweep_id) == wanted.sweep)
    for key, value in wanted.labels:
        query = query.where(
            col(Job.id).in_(select(col(Label.job_id)).where(col(Label.key) == key, col(Label.value) == value))
        )
    if (since := wanted.created_after) is not None:
        # Ids begin with the time: nothing older than that has to be looked at.
        since = min(max(since, _EARLIEST), _LATEST)  # what lies beyond has no name in UTC, or in ids
        query = query.where(col(Job.created_at) > since, col(Job.id) > id_of(since - _CLOCKS))
    if after is not None:
        query = query.where(col(Job.id) < after)
    with db.read() as session:
        found = list(session.execute(query).scalars())
    return found[:limit], len(found) > limit
