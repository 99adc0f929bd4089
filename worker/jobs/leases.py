"""Claim, lease, fence: one statement each, the same for every table whose rows a worker may own.

A claimed row carries the number of its attempt. Every later write of a worker names that number (the fence), so an
attempt that lost its lease can change nothing any more.
"""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, CursorResult, Select, select, update
from sqlmodel import Session, col

from .db import now
from .errors import StaleAttempt
from .tables import Dataset, Job

Row = TypeVar("Row", Job, Dataset)


def claim(
    session: Session, table: type[Row], waiting: Select[str], worker_id: str, lease_seconds: float, **values: Any
) -> Row | None:
    """Gives the first row whose id `waiting` selects to the worker, as its next attempt. Two workers never get one."""
    first = waiting.limit(1).with_for_update(skip_locked=True, of=table)  # on SQLite, IMMEDIATE is alone anyway
    statement = (
        update(table)
        .where(col(table.id) == first.scalar_subquery(), col(table.worker_id).is_(None))
        .values(
            attempt=table.attempt + 1,
            worker_id=worker_id,
            lease_expires_at=now(session) + timedelta(seconds=lease_seconds),
            **values,
        )
        .returning(table)
    )
    claimed: Row | None = session.execute(statement).scalar_one_or_none()
    return claimed


def renew(session: Session, table: type[Row], worker_id: str, lease_seconds: float, ids: Collection[str]) -> None:
    """A row that is the worker's but that it does not watch (a claim whose answer got lost) is left to expire."""
    session.execute(
        update(table)
        .where(col(table.worker_id) == worker_id, col(table.id).in_(ids))
        .values(lease_expires_at=now(session) + timedelta(seconds=lease_seconds))
    )


def lost(
    session: Session, table: type[Row], dead_workers: Sequence[str], *, expired: bool = True
) -> list[tuple[str, int]]:
    """The rows, and their attempts, of workers that are known to be dead, or whose lease has `expired`. Locks them."""
    is_lost: ColumnElement[bool] = col(table.worker_id).in_(dead_workers)
    if expired:
        is_lost |= col(table.lease_expires_at) < now(session)
    found = select(col(table.id), col(table.attempt)).where(is_lost).with_for_update(skip_locked=True)
    return [(row.id, row.attempt) for row in session.execute(found)]


def update_fenced(session: Session, table: type[Row], row_id: str, attempt: int, **values: Any) -> None:
    """Updates the row if this attempt still owns it. Raises StaleAttempt."""
    result = session.execute(update(table).where(*fence(table, row_id, attempt)).values(**values))
    assert isinstance(result, CursorResult)
    if result.rowcount != 1:
        raise StaleAttempt


def hold(session: Session, table: type[Row], row_id: str, attempt: int) -> None:
    """Locks the row until the transaction ends, if this attempt still owns it. Raises StaleAttempt."""
    owned = select(col(table.id)).where(*fence(table, row_id, attempt)).with_for_update()
    if session.execute(owned).first() is None:
        raise StaleAttempt


def fence(table: type[Row], row_id: str, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (col(table.id) == row_id, col(table.attempt) == attempt, col(table.worker_id).is_not(None))
