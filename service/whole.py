"""A job with all that belongs to it, as it is shown."""

from worker.jobs import queue, records, versions
from worker.jobs.db import Database
from worker.jobs.states import DatasetStatus, Status
from worker.jobs.tables import Job

from .bodies.jobs import JobBody, QueueBody


def whole(db: Database, job: Job) -> JobBody:
    attempts, transitions = records.attempts(db, job.id), records.transitions(db, job.id)
    return JobBody.whole(job, attempts, transitions, records.events(db, job.id), _queue(db, job))


def submitted(db: Database, job: Job) -> JobBody:
    """One that has just come: nothing has happened to it yet."""
    return JobBody.whole(job, [], records.transitions(db, job.id), [], _queue(db, job))


def _queue(db: Database, job: Job) -> QueueBody | None:
    """Where a queued job stands, and what it waits for."""
    if job.status != Status.QUEUED or job.dataset_id is None:
        return None
    ahead = queue.ahead(db, job)
    return QueueBody(position=ahead + 1, ahead=ahead, reason=_reason(db, job.dataset_id, ahead))


def _reason(db: Database, dataset_id: str, ahead: int) -> str:
    dataset = versions.by_id(db, dataset_id)
    if dataset.status == DatasetStatus.READY:
        if ahead:
            return f"{ahead} {'job begins' if ahead == 1 else 'jobs begin'} before it."
        return "All slots or cores are taken, or no worker is running."
    of = f" of {dataset.total}" if dataset.total else ""
    progress = f" ({dataset.step}: {dataset.done}{of})" if dataset.step else ""
    return f"Version {dataset.version} of the dataset {dataset.name} is not ready yet: {dataset.status}{progress}."
