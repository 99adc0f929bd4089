"""A job's metrics, one row an epoch, read from a cursor."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from worker.jobs import records
from worker.jobs.errors import NotFound

from service.bodies.metrics import MetricsPage
from service.deps import DatabaseDep, JobDep
from service.errors import responses

router = APIRouter(prefix="/jobs/{job_id}/metrics", tags=["metrics"])


class MetricsQuery(BaseModel, extra="forbid"):
    since: int = Field(0, ge=0, lt=2**31, description="`next_since` of the answer before; 0 for all")
    limit: int = Field(1000, ge=1, le=1000, description="At most this many rows")


@router.get("", summary="Poll metrics", responses=responses(NotFound))
def read(job: JobDep, db: DatabaseDep, query: Annotated[MetricsQuery, Query()]) -> MetricsPage:
    """The rows after `since`. `terminal` is true once the job has ended and its last row is in your hands.

    A job that goes on from an older checkpoint records later epochs again, under new `seq`: keep the newest.
    """
    rows = records.epochs(db, job.id, since=query.since, limit=query.limit)
    return MetricsPage.of(job, rows, query.since, whole=len(rows) < query.limit)
