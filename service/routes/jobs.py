"""Jobs: submit, list, look."""

import asyncio
from contextlib import suppress
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from worker.jobs import datasets, queue
from worker.jobs.db import Database
from worker.jobs.errors import (
    CrossSite,
    DatabaseUnavailable,
    DiskFull,
    InvalidRequest,
    NotFound,
    NotReady,
    PredictorUnavailable,
    SpecRefused,
    UnsupportedMediaType,
)
from worker.jobs.plan import Plan
from worker.jobs.spec import Spec
from worker.jobs.states import Status

from service.bodies.jobs import JobBody, JobPage, JobSummary
from service.deps import DatabaseDep, JobDep, PredictorDep, SettingsDep, require_json, require_space
from service.errors import responses
from service.predictor import Predictor
from service.whole import whole

router = APIRouter(prefix="/jobs", tags=["jobs"])

_PLAN_SECONDS: Final = 2.0  # a job does not wait longer for being looked at


class ListQuery(BaseModel, extra="forbid"):
    status: Status | None = Field(None, description="Only jobs of this status")
    after: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = Field(
        None, description="`next_cursor` of the page before"
    )
    limit: int = Field(20, ge=1, le=100)


class SubmitQuery(BaseModel, extra="forbid"):
    dry_run: bool = Field(False, description="Store nothing; answer with 200 what the job would be")


@router.post(
    "",
    status_code=201,
    summary="Launch a training",
    dependencies=[Depends(require_json)],
    response_model=None,
    responses=responses(
        InvalidRequest,
        CrossSite,
        UnsupportedMediaType,
        SpecRefused,
        NotReady,
        DiskFull,
        PredictorUnavailable,
        DatabaseUnavailable,
    )
    | {201: {"model": JobBody}, 200: {"model": Plan, "description": "With `dry_run`: what the job would be"}},
)
async def submit(
    spec: Spec,
    db: DatabaseDep,
    predictor: PredictorDep,
    settings: SettingsDep,
    query: Annotated[SubmitQuery, Query()],
    response: Response,
) -> JobBody | Plan:
    """Queues a job. `{}` is a valid spec: the values of PyTorch's tutorial are the defaults.

    A dataset that is not ready yet is no obstacle: the job begins when it is, or fails when it turns out invalid. Only
    a dry run needs one that is (409).
    """
    if query.dry_run:
        response.status_code = 200
        return await predictor.plan(*await run_in_threadpool(datasets.ready_for, db, spec))
    await run_in_threadpool(require_space, settings)
    await _refuse_at_once(spec, db, predictor)
    job = await run_in_threadpool(queue.enqueue, db, spec)
    response.headers["Location"] = f"/jobs/{job.id}"
    return await run_in_threadpool(whole, db, job)


@router.get("", summary="List jobs, newest first")
def list_jobs(db: DatabaseDep, query: Annotated[ListQuery, Query()]) -> JobPage:
    jobs, has_more = queue.jobs(db, status=query.status, after=query.after, limit=query.limit)
    cursor = jobs[-1].id if has_more else None
    return JobPage(data=[JobSummary.of(job) for job in jobs], has_more=has_more, next_cursor=cursor)


@router.get("/{job_id}", summary="Look at a job", responses=responses(NotFound))
def show(job: JobDep, db: DatabaseDep) -> JobBody:
    return whole(db, job)


async def _refuse_at_once(spec: Spec, db: Database, predictor: Predictor) -> None:
    """Raises SpecRefused for a network that cannot be built or cannot fit, where that can be told by now.

    Else the job's attempt finds it out.
    """
    with suppress(NotReady, PredictorUnavailable, TimeoutError):
        ready = await run_in_threadpool(datasets.ready_for, db, spec)
        await asyncio.wait_for(predictor.plan(*ready), _PLAN_SECONDS)
