"""Models that come as a bundle: a job that was trained elsewhere."""

from typing import Any

from .bundle import Imported
from .columns import HOUSE
from .db import Database, now
from .queue import label, note
from .states import Status
from .tables import Checkpoint, Epoch, Job


def add(db: Database, job_id: str, path: str, found: Imported, owner: str = HOUSE) -> Job:
    """The job, its epoch's metrics and its checkpoint, whose weights lie at `path` of the data folder already."""
    with db.write() as session:
        at = now(session)
        job = Job(
            id=job_id,
            owner=owner,
            name=found.card.name,
            labels=found.card.labels,
            spec=found.spec | {"webhooks": []},  # they were of the instance that trained it
            status=Status.SUCCEEDED,
            created_at=at,
            finished_at=at,
            epoch=found.epoch,
            last_seq=1,
            provenance=_provenance(found),
            imported=True,
        )
        session.add(job)
        session.flush()
        label(session, job)
        note(session, job_id, Status.SUCCEEDED, "imported")
        session.add(
            Epoch(job_id=job_id, epoch=found.epoch, seq=1, attempt=0, recorded_at=at, **found.card.metrics.model_dump())
        )
        session.add(
            Checkpoint(
                job_id=job_id,
                epoch=found.epoch,
                attempt=0,
                created_at=at,
                path=path,
                sha256=found.sha256,
                bytes=found.bytes,
                weights_sha256=found.weights_sha256,
            )
        )
        return job


def _provenance(found: Imported) -> dict[str, Any]:
    """What it was trained with, and where it is from. If it was imported there as well, that stays within."""
    told = dict(found.card.provenance or {})
    card = found.card
    about = {"job": card.job, "created_at": card.created_at.isoformat(), "sha256": found.sha256}
    if "imported" in told:
        about["imported"] = told["imported"]
    return told | {"imported": about}
