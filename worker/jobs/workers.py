"""The workers that there are: each says from time to time that it is alive."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlmodel import Session, col

from .db import Database, now
from .tables import Worker


def register(db: Database, worker_id: str, host: str) -> None:
    with db.write() as session:
        at = now(session)
        session.add(Worker(id=worker_id, host=host, started_at=at, heartbeat_at=at))


def deregister(db: Database, worker_id: str) -> None:
    with db.write() as session:
        forget(session, [worker_id])


def heartbeat(db: Database, worker_id: str) -> None:
    """Says that the worker is alive."""
    with db.write() as session:
        session.execute(update(Worker).where(col(Worker.id) == worker_id).values(heartbeat_at=now(session)))


def seconds_since_heartbeat(db: Database) -> float | None:
    """How long ago any worker was last heard; None when none is registered."""
    with db.read() as session:
        newest = session.execute(select(func.max(Worker.heartbeat_at))).scalar_one()
        return (now(session) - newest).total_seconds() if newest else None


def forget(session: Session, worker_ids: Sequence[str]) -> None:
    """Those that are known to be dead."""
    session.execute(delete(Worker).where(col(Worker.id).in_(worker_ids)))
