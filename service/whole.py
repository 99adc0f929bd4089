"""A job with all that belongs to it, as it is shown."""

from worker.jobs import records, versions
from worker.jobs.db import Database
from worker.jobs.states import DatasetStatus, Status
from worker.jobs.tables import Job

from .bodies.jobs import JobBody


def whole(db: Database, job: Job) -> JobBody:
    attempts, transitions = records.attempts(db, job.id), records.transitions(db, job.id)
    return JobBody.whole(job, attempts, transitions, records.events(db, job.id), _reason(db, job))


def _reason(db: Database, job: Job) -> str | None:
    """What a queued job waits for."""
    if job.status != Status.QUEUED or job.dataset_id is None:
        return None
    dataset = versions.by_id(db, job.dataset_id)
    if dataset.status == DatasetStatus.READY:
        return "All slots or cores are taken, or no worker is running."
    of = f" of {dataset.total}" if dataset.total else ""
    progress = f" ({dataset.step}: {dataset.done}{of})" if dataset.step else ""
    return f"Version {dataset.version} of the dataset {dataset.name} is not ready yet: {dataset.status}{progress}."
