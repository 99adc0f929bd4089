"""How far each sink has got with each job's metrics: where it is behind, what there is to be written, what has been.

A job's rows are only ever forgotten from the newest on, and no `seq` is used again. So whoever has a job's rows up to
one that is still there has nothing that is not.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, func, literal, or_, select
from sqlmodel import col

from . import records
from .db import Database, now
from .states import OWNED, TERMINAL, SinkKind, Status
from .tables import Epoch, Job, SinkRow

ROWS: Final = 500  # of metrics, read at once
_JOBS: Final = 200  # named at once
_LATE: Final = timedelta(minutes=1)  # a job may have ended this long before others can read that it has
_WAITING: Final = tuple(status for status in Status if status not in OWNED and status not in TERMINAL)


class Look(NamedTuple):
    """What a sink is to have of a job, and what it has."""

    job: Job
    newest: int  # the `seq` of its newest row; 0 when there is none
    known: SinkRow | None  # None: it has never heard of the job

    @property
    def has_ended(self) -> bool:
        return self.job.status in TERMINAL

    @property
    def is_behind(self) -> bool:
        known = self.known
        return known is None or known.seq != self.newest or known.is_done != self.has_ended


def under_way(db: Database, kind: SinkKind, since: datetime | None) -> tuple[list[str], datetime]:
    """The jobs that the sink is behind with, among those that are trained and those that have ended `since`.

    Also the time to give as `since` the next time; None, the first time, leaves those that have ended to `backlog`.
    """
    with db.read() as session:
        at = now(session)
        ids = session.execute(_behind(kind).where(col(Job.status).in_(OWNED))).scalars().all()
        ended = _behind(kind).where(col(Job.status).in_(TERMINAL))
        if since is not None:
            ended = ended.where(col(Job.finished_at) >= since - _LATE)
            ids = [*ids, *session.execute(ended).scalars()]
        return list(ids), at


def backlog(db: Database, kind: SinkKind) -> Iterator[str]:
    """All jobs that the sink is behind with, read in pages: whatever was missed while nobody looked."""
    for status in (*OWNED, *_WAITING, *TERMINAL):
        after = ""
        while True:
            page = _behind(kind).where(col(Job.status) == status, col(Job.id) > after).order_by(col(Job.id))
            with db.read() as session:
                ids = session.execute(page.limit(_JOBS)).scalars().all()
            yield from ids
            if len(ids) < _JOBS:
                break
            after = ids[-1]


def look(db: Database, kind: SinkKind, job_id: str) -> Look | None:
    """None: the job is gone."""
    newest = select(func.coalesce(func.max(Epoch.seq), 0)).where(col(Epoch.job_id) == job_id).scalar_subquery()
    with db.read() as session:
        row = session.execute(select(Job, newest).where(col(Job.id) == job_id)).one_or_none()
        return Look(row[0], row[1], session.get(SinkRow, (job_id, kind))) if row is not None else None


def pages(db: Database, job_id: str, *, until: int, since: int = 0) -> Iterator[list[Epoch]]:
    """The rows behind `since`, up to the one whose `seq` is `until`, oldest first, some at a time.

    What a later attempt records is not among them. So whatever happens meanwhile: no epoch comes twice, and what comes
    are the first of the rows of now, of which the last may have been forgotten.
    """
    while True:
        rows = [row for row in records.epochs(db, job_id, since=since, limit=ROWS) if row.seq <= until]
        if rows:
            yield rows
        if len(rows) < ROWS:
            return
        since = rows[-1].seq


def begin(db: Database, job_id: str, kind: SinkKind) -> None:
    """Before anything is written of a job that the sink has never heard of: whoever comes next looks for it there."""
    with db.write() as session:
        if session.execute(select(col(Job.id)).where(col(Job.id) == job_id)).first() is not None:
            session.merge(SinkRow(job_id=job_id, kind=kind))


def record(db: Database, job: Job, kind: SinkKind, seq: int, run_id: str | None = None) -> bool:
    """That the rows up to `seq` are written, and how the job ended, if it has. Returns whether that is all.

    `job`: as it was when that was read. One that goes on since then is not done; of one that is gone nothing is kept.
    """
    with db.write() as session:
        ended = select(col(Job.finished_at)).where(col(Job.id) == job.id).with_for_update(read=True)
        row = session.execute(ended).one_or_none()
        if row is None:
            return True
        is_done = job.status in TERMINAL and row[0] == job.finished_at
        session.merge(SinkRow(job_id=job.id, kind=kind, seq=seq, is_done=is_done, run_id=run_id))
        return is_done


def forget(db: Database, kind: SinkKind) -> None:
    """The sink is empty: everything is written anew."""
    with db.write() as session:
        session.execute(delete(SinkRow).where(col(SinkRow.kind) == kind))


def _behind(kind: SinkKind) -> Select[str]:
    """Asks the indexes alone for what a job's own row need not tell: there may be very many of them."""
    newest = select(func.max(Epoch.seq)).where(col(Epoch.job_id) == col(Job.id)).scalar_subquery()
    of_sink = and_(col(SinkRow.job_id) == col(Job.id), col(SinkRow.kind) == kind)
    has_ended: ColumnElement[bool] = col(Job.status).in_(TERMINAL)
    return (
        select(col(Job.id))
        .outerjoin(SinkRow, of_sink)
        .where(
            or_(
                and_(col(SinkRow.job_id).is_(None), col(Job.status).not_in(_WAITING)),  # not even begun
                func.coalesce(col(SinkRow.seq), 0) != func.coalesce(newest, 0),
                func.coalesce(col(SinkRow.is_done), literal(False)) != has_ended,
            )
        )
    )
