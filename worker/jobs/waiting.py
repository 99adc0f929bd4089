"""Which of the queued jobs is next, and how many threads it gets.

Owners take turns: next is the owner with the fewest jobs under way; of equals, whose last job began longest ago. Of
an owner's jobs, the one with the highest priority is next; of equals, the oldest.
"""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlmodel import Session, col

from .db import now
from .states import OWNED, DatasetStatus, Status
from .tables import Dataset, Job, Turn


class Share(NamedTuple):
    """What an owner has in the queue, and of the workers."""

    owner: str
    waiting: int
    running: int
    last: datetime | None  # when a job of the owner last began
    oldest: str  # the id of the job that has waited longest

    @property
    def order(self) -> tuple[int, float, str]:
        """Who sorts first is next."""
        return self.running, self.last.timestamp() if self.last else 0.0, self.oldest


def shares(session: Session) -> list[Share]:
    """Of every owner of a queued job, in the order of their turns."""
    queued = (
        select(col(Job.owner), func.count(), func.min(Job.id))
        .where(col(Job.status) == Status.QUEUED)
        .group_by(col(Job.owner))
    )
    found = session.execute(queued).all()
    if not found:
        return []
    under_way = select(col(Job.owner), func.count()).where(col(Job.status).in_(OWNED)).group_by(col(Job.owner))
    running: dict[str, int] = dict(session.execute(under_way).all())
    turns = select(col(Turn.owner), col(Turn.at)).where(col(Turn.owner).in_([row[0] for row in found]))
    last: dict[str, datetime] = dict(session.execute(turns).all())
    each = [Share(owner, count, running.get(owner, 0), last.get(owner), oldest) for owner, count, oldest in found]
    return sorted(each, key=lambda share: share.order)


def first(session: Session, *, lock: bool = False) -> Row[Any] | None:
    """The queued job that is next, as far as its threads depend on it; none when no dataset of one is ready."""
    for share in shares(session):
        query = (
            _trainable()
            .add_columns(col(Job.owner), col(Job.spec), col(Job.threads))
            .where(col(Job.owner) == share.owner)
            .order_by(col(Job.priority).desc(), col(Job.id))
            .limit(1)
        )
        if lock:
            query = query.with_for_update(skip_locked=True, of=Job)
        found = session.execute(query).first()
        if found is not None:
            return found
    return None


def take_turn(session: Session, owner: str) -> None:
    at = now(session)
    insert = sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgresql_insert
    turn = insert(Turn).values(owner=owner, at=at)
    session.execute(turn.on_conflict_do_update(index_elements=["owner"], set_={"at": at}))


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


def ahead(session: Session, job: Job) -> int:
    """How many queued jobs will begin before this queued one, if none comes and none ends meanwhile."""
    sooner = (col(Job.priority) > job.priority) | ((col(Job.priority) == job.priority) & (col(Job.id) < job.id))
    own = select(func.count()).where(col(Job.status) == Status.QUEUED, col(Job.owner) == job.owner, sooner)
    before: int = session.execute(own).scalar_one()
    every = {share.owner: share for share in shares(session)}
    mine = every.pop(job.owner, None)
    if mine is None:  # it has just been taken
        return 0
    # Each job that begins raises its owner's number under way by one: who has fewer by then goes first.
    level = mine.running + before
    for other in every.values():
        # Where both have as many, it is the turn of who has not just caught up.
        goes_first = (-other.running, *other.order[1:]) < (-mine.running, *mine.order[1:])
        before += min(max(level - other.running + int(goes_first), 0), other.waiting)
    return before


def _trainable() -> Select[str]:
    """The ids of queued jobs whose dataset is ready."""
    ready = col(Dataset.status) == DatasetStatus.READY
    return (
        select(col(Job.id))
        .join(Dataset, col(Job.dataset_id) == col(Dataset.id))
        .where(col(Job.status) == Status.QUEUED, ready)
    )
