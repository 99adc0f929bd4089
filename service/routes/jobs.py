"""Jobs: submit, list, look."""

import asyncio
import re
from contextlib import suppress
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field
from worker.jobs import datasets, listing, submitting
from worker.jobs.db import Database
from worker.jobs.errors import (
    CrossSite,
    DatabaseUnavailable,
    DiskFull,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    NotReady,
    PredictorUnavailable,
    SpecRefused,
    TooManyJobs,
    UnsupportedMediaType,
    UrlNotAllowed,
)
from worker.jobs.listing import Filter
from worker.jobs.owners import Caller
from worker.jobs.plan import Plan
from worker.jobs.spec import Spec
from worker.jobs.states import Status
from worker.jobs.submitting import Origin, Quota
from worker.jobs.texts import looks_like_key

from service.bodies.jobs import JobBody, JobPage, JobSummary
from service.deps import CallerDep, DatabaseDep, JobDep, PredictorDep, SettingsDep, require_json, require_space
from service.errors import responses
from service.predictor import Predictor
from service.webhooks import require_allowed
from service.whole import whole

router = APIRouter(prefix="/jobs", tags=["jobs"])

_PLAN_SECONDS: Final = 2.0  # a job does not wait longer for being looked at


_LABEL: Final = "label."
_KEY: Final = r"^[\x21-\x7e]{1,255}$"  # the header's value: printable ASCII, which HTTP can carry

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=_KEY,
        description="Your name for this request. When it comes again with the same spec, the answer is the job of the "
        "first time; with another spec it is refused. It is known as long as its job is there",
        examples=["4d1c7f6e-shoes-1"],
    ),
]


def _rfc_3339(text: object) -> object:
    """Pydantic takes more for a time: a number is one since 1970."""
    if isinstance(text, str) and not re.match(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d", text):
        raise ValueError("should be a time as of RFC 3339, such as 2026-01-31T12:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_rfc_3339)]


def _label(name: str) -> str:
    if not name.startswith(_LABEL) or name == _LABEL:
        raise ValueError("There is no such parameter; a label is asked for as `label.<key>=<value>`")
    return name


class ListQuery(BaseModel, extra="allow"):
    """Beside these, `label.<key>=<value>`: only jobs with this label; several: with all of them."""

    __pydantic_extra__: dict[Annotated[str, AfterValidator(_label)], str]

    status: Status | None = Field(None, description="Only jobs of this status")
    created_after: Moment | None = Field(None, description="Only jobs made later than this (RFC 3339)")
    after: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = Field(
        None, description="`next_cursor` of the page before"
    )
    limit: int = Field(20, ge=1, le=100)

    @property
    def filter(self) -> Filter:
        labels = tuple((name.removeprefix(_LABEL), value) for name, value in self.__pydantic_extra__.items())
        return Filter(self.status, labels, self.created_after)


class SubmitQuery(BaseModel, extra="forbid"):
    dry_run: bool = Field(False, description="Store nothing; answer with 200 what the job would be")


@router.post(
    "",
    operation_id="submit_job",
    status_code=201,
    summary="Launch a training",
    dependencies=[Depends(require_json)],
    response_model=None,
    responses=responses(
        InvalidRequest,
        CrossSite,
        UnsupportedMediaType,
        SpecRefused,
        IdempotencyMismatch,
        UrlNotAllowed,
        TooManyJobs,
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
    caller: CallerDep,
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobBody | Plan:
    """Queues a job. `{}` is a valid spec: the values of PyTorch's tutorial are the defaults.

    A dataset that is not ready yet is no obstacle: the job begins when it is, or fails when it turns out invalid. Only
    a dry run needs one that is (409).
    """
    require_allowed(settings, spec)
    if query.dry_run:
        response.status_code = 200
        return await predictor.plan(*await run_in_threadpool(datasets.ready_for, db, spec, caller))
    if idempotency_key is not None and looks_like_key(idempotency_key):
        raise InvalidRequest("The Idempotency-Key must not be an API key.")
    origin = Origin(caller, idempotency_key, request.state.request_id)
    job = await run_in_threadpool(submitting.replayed, db, spec, origin)
    if job is None:
        await run_in_threadpool(require_space, settings)
        await _refuse_at_once(spec, db, predictor, caller)
        quota = Quota(settings.max_queued_jobs, settings.max_queued_jobs_per_key)
        job = await run_in_threadpool(submitting.enqueue, db, spec, origin, quota)
    response.headers["Location"] = f"/jobs/{job.id}"
    return await run_in_threadpool(whole, db, job)


@router.get("", summary="List jobs, newest first")
def list_jobs(db: DatabaseDep, caller: CallerDep, query: Annotated[ListQuery, Query()]) -> JobPage:
    """Pages neither skip nor repeat a job, whatever is submitted meanwhile. `label.<key>=<value>` as a parameter asks
    for jobs with this label.
    """
    jobs, has_more = listing.jobs(db, query.filter, after=query.after, limit=query.limit, caller=caller)
    cursor = jobs[-1].id if has_more else None
    return JobPage(data=[JobSummary.of(job) for job in jobs], has_more=has_more, next_cursor=cursor)


@router.get("/{job_id}", operation_id="show_job", summary="Look at a job", responses=responses(NotFound))
def show(job: JobDep, db: DatabaseDep) -> JobBody:
    return whole(db, job)


async def _refuse_at_once(spec: Spec, db: Database, predictor: Predictor, caller: Caller) -> None:
    """Raises SpecRefused for a network that cannot be built or cannot fit, where that can be told by now.

    Else the job's attempt finds it out.
    """
    with suppress(NotReady, PredictorUnavailable, TimeoutError):
        ready = await run_in_threadpool(datasets.ready_for, db, spec, caller)
        await asyncio.wait_for(predictor.plan(*ready), _PLAN_SECONDS)
