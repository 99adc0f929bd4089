"""Parity certificates: which job wants one, and where it is kept. Each function is one transaction."""

from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from . import kept, queue, versions
from .db import Database, now
from .errors import Conflict, NotFound, NotReady
from .parity import Parity
from .states import Status
from .tables import Checkpoint, Dataset, Job, ParityRow
from .wire import ParityRequest

_SENTENCE_CHARACTERS = 300


class Wanting(NamedTuple):
    """A job that has no certificate for its best checkpoint."""

    checkpoint: Checkpoint
    request: ParityRequest | None  # None when its dataset is gone


def wanting(db: Database) -> Wanting | None:
    """The one that succeeded last."""
    with db.read() as session:
        made = aliased(ParityRow)
        jobs = (
            select(Job, made)
            .outerjoin(made, col(made.job_id) == col(Job.id))
            .where(col(Job.status) == Status.SUCCEEDED, col(Job.imported).is_(False))
            .where(col(made.job_id).is_(None) | (col(made.made_at) < col(Job.finished_at)))
            .order_by(col(Job.finished_at).desc())
            .limit(1)
        )
        found = session.execute(jobs).first()
        if found is None:
            return None
        job = found[0]
        row = _best(session, job.id)
        return Wanting(row, _request(session, job, row)) if row is not None else None


def record(db: Database, checkpoint: Checkpoint, found: Parity | str) -> None:
    """The certificate, or why there is none. In place of an older one; nothing when the job has gone meanwhile, or has
    been extended and has a better checkpoint: the next certificate is of that.
    """
    with db.write() as session:
        if session.get(Job, checkpoint.job_id, with_for_update={"key_share": True}) is None:
            return
        at = now(session)  # before the look: a better one that comes after it ends the job later than this
        best = _best(session, checkpoint.job_id)
        if best is None or best.sha256 != checkpoint.sha256:
            return
        row = session.get(ParityRow, checkpoint.job_id) or ParityRow(
            job_id=checkpoint.job_id, epoch=checkpoint.epoch, sha256=checkpoint.sha256, made_at=at, error="-"
        )
        row.epoch, row.sha256, row.made_at = checkpoint.epoch, checkpoint.sha256, at
        row.contents = found.model_dump(mode="json") if isinstance(found, Parity) else None
        row.error = found[:_SENTENCE_CHARACTERS] if isinstance(found, str) else None
        session.add(row)


def find(db: Database, job_id: str) -> Parity:
    """Raises NotFound, NotReady while the job or the certificate is not there, and Conflict when none can be made."""
    job = queue.get(db, job_id)
    if job.imported:
        raise Conflict("The job was imported: its test pictures are elsewhere. Its test vectors were checked then.")
    if job.status != Status.SUCCEEDED:
        raise NotReady(f"The job is {job.status}; the certificate is made when a job has succeeded.")
    with db.read() as session:
        row, best = session.get(ParityRow, job_id), _best(session, job_id)
    if best is None:
        raise NotFound("There is no such job any more.")
    if row is None or row.sha256 != best.sha256:
        raise NotReady("The certificate is being made; ask again in a few seconds.")
    if row.contents is None:
        raise Conflict(f"There is no certificate. {row.error}")
    return Parity.model_validate(row.contents)


def _best(session: Session, job_id: str) -> Checkpoint | None:
    """None only when the job has been deleted: one that has succeeded keeps its best."""
    best = kept.best(job_id, kept.policy(session, job_id).best_by).scalar_subquery()
    query = select(Checkpoint).where(col(Checkpoint.job_id) == job_id, col(Checkpoint.epoch) == best)
    return session.execute(query).scalar_one_or_none()


def _request(session: Session, job: Job, row: Checkpoint) -> ParityRequest | None:
    dataset = versions.prepared(session.get(Dataset, job.dataset_id) if job.dataset_id else None)
    return ParityRequest(path=row.path, sha256=row.sha256, dataset=dataset) if dataset else None
