"""How a job does class by class: its newest epoch's report."""

from fastapi import APIRouter
from worker.jobs import records
from worker.jobs.errors import NotFound, NotReady
from worker.jobs.report import Report

from service.deps import DatabaseDep, JobDep
from service.errors import responses

router = APIRouter(prefix="/jobs/{job_id}/report", tags=["metrics"])


@router.get(
    "",
    operation_id="read_report",
    summary="Confusion matrix and scores of each class",
    responses=responses(NotFound, NotReady),
)
def read(job: JobDep, db: DatabaseDep) -> Report:
    """Of the newest epoch. A regression has none: its metrics say it all."""
    return records.report(db, job.id)
