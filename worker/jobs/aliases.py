"""Names that point at one checkpoint of one job, and remember the one before. Each function is one transaction.

Locks are taken in one order: the name, then the job to be pointed at, then the alias's row. Whoever deletes a job, or
has it forget checkpoints, has that job locked (`control.py`, `kept.py`) and sees every alias there is.
"""

import re
from collections.abc import Collection
from datetime import datetime
from typing import NamedTuple, TypeVarTuple

from sqlalchemy import Select, select, update
from sqlmodel import Session, col

from . import queue, records
from .db import Database, now, one_at_a_time
from .errors import CheckpointCorrupt, Conflict, NotFound
from .owners import EVERYBODY, Caller, own_first, visible
from .spec import NAME_PATTERN
from .tables import Alias, Checkpoint, Job

Ts = TypeVarTuple("Ts")


class Pointed(NamedTuple):
    alias: Alias
    checkpoint: Checkpoint | None  # none: it was forgotten, see `target`
    is_new: bool = False


def put(db: Database, name: str, job_id: str, which: str, caller: Caller = EVERYBODY) -> Pointed:
    """Points the caller's name (a `spec.Name`) at what `best`, `last` or the number of an epoch is now.

    It stays at that epoch. Raises NotFound and NotReady.
    """
    with db.write() as session:
        one_at_a_time(session, f"alias {name}")
        queue.find(session, job_id, caller, lock=True)
        checkpoint = records.find_checkpoint(session, job_id, which).row
        alias = session.get(Alias, (caller.owner, name), with_for_update=True)
        at = now(session)
        if alias is None:
            alias = Alias(
                owner=caller.owner,
                name=name,
                job_id=job_id,
                epoch=checkpoint.epoch,
                created_at=at,
                updated_at=at,
            )
            session.add(alias)
            return Pointed(alias, checkpoint, is_new=True)
        if (alias.job_id, alias.epoch) != (job_id, checkpoint.epoch):
            _move(alias, checkpoint, at)
        return Pointed(alias, checkpoint)


def rollback(db: Database, name: str, caller: Caller = EVERYBODY) -> Pointed:
    """Points the alias at what it pointed at before, and remembers what it points at now.

    Raises NotFound, and Conflict when it has not pointed at anything else, or that is gone.
    """
    with db.write() as session:
        alias = _find(session, name, caller, lock=True)
        session.execute(select(col(Job.id)).where(col(Job.id) == alias.previous_job_id).with_for_update())
        session.refresh(alias, with_for_update=True)  # that job may have been deleted by now
        checkpoint = _before(session, alias)
        _move(alias, checkpoint, now(session))
        return Pointed(alias, checkpoint)


def before(db: Database, name: str, caller: Caller = EVERYBODY) -> Checkpoint:
    """What `rollback` would point the alias at. Raises what that does."""
    with db.read() as session:
        return _before(session, _find(session, name, caller))


def remove(db: Database, name: str, caller: Caller = EVERYBODY) -> None:
    """Raises NotFound."""
    with db.write() as session:
        session.delete(_find(session, name, caller, lock=True))


def get(db: Database, name: str, caller: Caller = EVERYBODY) -> Alias:
    """Raises NotFound."""
    return look(db, name, caller).alias


def look(db: Database, name: str, caller: Caller = EVERYBODY) -> Pointed:
    """Raises NotFound."""
    found = _pointed(db, _of(_with_checkpoints(), name, caller)) if _is_name(name) else []
    if not found:
        raise _no_alias()
    return found[0]


def every(db: Database, caller: Caller = EVERYBODY) -> list[Pointed]:
    """By name."""
    seen = _with_checkpoints().where(visible(Alias.owner, caller))
    return _pointed(db, seen.order_by(col(Alias.name), *own_first(Alias.owner, caller)))


def target(db: Database, name: str, caller: Caller = EVERYBODY) -> Checkpoint:
    """What the alias points at.

    Raises NotFound, and CheckpointCorrupt when that is gone: an attempt could not go on from it and forgot it. It is
    there again when the job has trained that epoch again.
    """
    alias, checkpoint, _ = look(db, name, caller)
    if checkpoint is None:
        raise CheckpointCorrupt(
            f"The alias points at epoch {alias.epoch} of job {alias.job_id}, whose checkpoint is gone: it was damaged "
            "and is there again when the job has trained that epoch again. Until then point the alias elsewhere."
        )
    return checkpoint


def let_go(session: Session, job_id: str) -> None:
    """Before what a job has trained is deleted: no alias can be rolled back to it any more. The job is locked.

    Raises Conflict when an alias points at it now.
    """
    pointing = select(col(Alias.name)).where(col(Alias.job_id) == job_id).order_by(col(Alias.name)).limit(1)
    if (name := session.execute(pointing).scalar_one_or_none()) is not None:
        raise Conflict(f"The alias {name} points at this job; point it elsewhere or delete it first.")
    forget_previous(session, [job_id])


def forget_previous(session: Session, job_ids: Collection[str]) -> None:
    before = update(Alias).where(col(Alias.previous_job_id).in_(job_ids))
    session.execute(before.values(previous_job_id=None, previous_epoch=None))


def _move(alias: Alias, checkpoint: Checkpoint, at: datetime) -> None:
    alias.previous_job_id, alias.previous_epoch = alias.job_id, alias.epoch
    alias.job_id, alias.epoch = checkpoint.job_id, checkpoint.epoch
    alias.version += 1
    alias.updated_at = at


def _find(session: Session, name: str, caller: Caller, *, lock: bool = False) -> Alias:
    """Raises NotFound. `lock`: until the transaction ends, nobody else moves it."""
    if not _is_name(name):
        raise _no_alias()
    if lock:
        one_at_a_time(session, f"alias {name}")
    alias: Alias | None = session.execute(_of(select(Alias), name, caller)).scalar_one_or_none()
    if alias is None:
        raise _no_alias()
    return alias


def _before(session: Session, alias: Alias) -> Checkpoint:
    """Raises Conflict."""
    if alias.previous_job_id is None:
        raise Conflict("The alias has pointed at nothing else that is still there; point it where you want it.")
    checkpoint = session.get(Checkpoint, (alias.previous_job_id, alias.previous_epoch))
    if checkpoint is None:
        raise Conflict(
            f"The alias pointed at epoch {alias.previous_epoch} of job {alias.previous_job_id} before, whose "
            "checkpoint is gone; point it where you want it."
        )
    return checkpoint


def _of(query: Select[*Ts], name: str, caller: Caller) -> Select[*Ts]:
    """The alias of this name: the caller's own, else another's that the caller may see."""
    named = query.where(col(Alias.name) == name, visible(Alias.owner, caller))
    return named.order_by(*own_first(Alias.owner, caller)).limit(1)


def _with_checkpoints() -> Select[Alias, Checkpoint]:
    """In one statement: between two, an alias may move and a checkpoint go."""
    whole = (col(Checkpoint.job_id) == col(Alias.job_id)) & (col(Checkpoint.epoch) == col(Alias.epoch))
    return select(Alias, Checkpoint).outerjoin(Checkpoint, whole)


def _pointed(db: Database, query: Select[Alias, Checkpoint]) -> list[Pointed]:
    with db.read() as session:
        return [Pointed(alias, checkpoint) for alias, checkpoint in session.execute(query)]


def _is_name(name: str) -> bool:
    return re.fullmatch(NAME_PATTERN, name) is not None


def _no_alias() -> NotFound:
    return NotFound("There is no alias of this name; GET /models lists those that there are.")
