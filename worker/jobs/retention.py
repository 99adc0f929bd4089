"""What is let go of by its age: ended jobs, and their checkpoints. Each round is one small transaction."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import delete as delete_rows
from sqlalchemy import func, or_, select
from sqlmodel import Session, col

from . import aliases, kept, queue
from .control import without_trials
from .db import Database, now
from .spec import Checkpoints
from .states import TERMINAL
from .tables import Alias, Checkpoint, Job, Sweep

_AT_ONCE: Final = 100  # jobs of one round of retention: who waits to write does not wait for long


def delete_old(db: Database, days: float) -> list[str]:
    """Deletes the rows of some of the jobs that ended longer ago, the oldest; and what they leave of sweeps. Those
    that an alias points at stay, and the trials of a sweep that has not finished: it may train them on.

    Returns their ids; the caller removes their folders, and comes again until there are none.
    """
    finished = select(col(Sweep.id)).where(col(Sweep.finished_at).is_not(None))
    unnamed = col(Job.id).not_in(select(col(Alias.job_id)))
    with db.write() as session:
        may_go = _ended_before(session, days).where(
            unnamed, or_(col(Job.sweep_id).is_(None), col(Job.sweep_id).in_(finished))
        )
        oldest = may_go.order_by(col(Job.finished_at)).limit(_AT_ONCE).with_for_update(skip_locked=True)
        old = session.execute(oldest).scalars().all()
        # Asked once more: before it was locked, one may have got a name.
        goes = delete_rows(Job).where(col(Job.id).in_(old), unnamed).returning(col(Job.id))
        gone = list(session.execute(goes).scalars())
        aliases.forget_previous(session, gone)
    with db.write() as session:  # others lock a sweep before its jobs
        session.execute(without_trials())
    return gone


def thin_old(db: Database, days: float) -> dict[str, tuple[int, list[str]]]:
    """Forgets all but the best and the last checkpoint of some jobs that ended longer ago, and those that aliases
    need.

    Returns, by the ids of the jobs that had more, their last attempt and the files that stay; the caller comes again
    until there are none.
    """
    after = ""
    while True:
        with db.write() as session:
            looked, thinned = _thin(session, days, after)
        if thinned or len(looked) < _AT_ONCE:
            return thinned
        after = looked[-1]  # all of these are as they are to be


def _thin(session: Session, days: float, after: str) -> tuple[Sequence[str], dict[str, tuple[int, list[str]]]]:
    checkpoints = select(func.count()).where(col(Checkpoint.job_id) == col(Job.id)).scalar_subquery()
    old = _ended_before(session, days).where(checkpoints > 2, col(Job.id) > after).order_by(col(Job.id))
    looked = session.execute(old.limit(_AT_ONCE).with_for_update(skip_locked=True)).scalars().all()
    thinned = {}
    for job_id in looked:
        best_by = kept.policy(session, job_id).best_by
        before = kept.files(session, job_id)
        files = kept.prune(session, job_id, Checkpoints(keep="best", best_by=best_by))
        if len(files) < len(before):
            thinned[job_id] = (queue.find(session, job_id).attempt, files)
    return looked, thinned


def _ended_before(session: Session, days: float) -> Any:
    before = now(session) - timedelta(days=days)
    return select(col(Job.id)).where(col(Job.status).in_(TERMINAL), col(Job.finished_at) < before)
