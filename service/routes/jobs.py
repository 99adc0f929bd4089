"""Jobs: submit, list, look."""

import asyncio
import re
from contextlib import suppress
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field
from worker.jobs import datasets, listing, submitting
from worker.jobs.card import Card
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
from worker.jobs.plan import Plan
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.states import Status
from worker.jobs.submitting import Origin, Quota
from worker.jobs.tables import Job
from worker.jobs.texts import looks_like_key

from service.bodies.jobs import JobBody, JobPage, JobSummary
from service.deps import CallerDep, DatabaseDep, JobDep, PredictorDep, SettingsDep, require_json, require_space
from service.errors import responses
from service.predictor import Predictor
from service.webhooks import require_allowed
from service.whole import submitted, whole

router = APIRouter(prefix="/jobs", tags=["jobs"])

_NO_PART_OF_A_NETWORK: Final = {"name", "labels", "seed", "priority", "webhooks"}
_MOST_PLANNED: Final = 256
_PLANNED: set[tuple[str, str]] = set()  # what could be built and fitted; on this machine that stays so
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
    sweep: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = Field(
        None, description="Only trials of this sweep"
    )
    after: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = Field(
        None, description="`next_cursor` of the page before"
    )
    limit: int = Field(20, ge=1, le=100)

    @property
    def filter(self) -> Filter:
        labels = tuple((name.removeprefix(_LABEL), value) for name, value in self.__pydantic_extra__.items())
        return Filter(self.status, labels, self.created_after, self.sweep)


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
    work = _Submission(db, settings, spec, origin, can_plan=predictor.ready)
    body = await run_in_threadpool(work.begin)
    if body is None:
        await work.plan(predictor)
        body = await run_in_threadpool(work.enqueue)
    response.headers["Location"] = f"/jobs/{body.id}"
    return body


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


class _Submission:
    """What is to be done for one job, in as few turns of a thread as it takes."""

    def __init__(self, db: Database, settings: Settings, spec: Spec, origin: Origin, *, can_plan: bool) -> None:
        self._db, self._settings, self._spec, self._origin = db, settings, spec, origin
        self._can_plan = can_plan  # else the predictor is about to load torch, and nobody wants to wait for that
        self._planned: tuple[Spec, Card] | None = None
        self._network = ("", "")

    def begin(self) -> JobBody | None:
        """The job, as it was when this request came before, or new. None: its network is to be planned first."""
        job = submitting.replayed(self._db, Job, self._spec, self._origin)
        if job is not None:
            return whole(self._db, job)
        require_space(self._settings)
        if self._can_plan:
            with suppress(NotReady):
                self._planned = spec, card = datasets.ready_for(self._db, self._spec, self._origin.caller)
                self._network = spec.model_dump_json(exclude=_NO_PART_OF_A_NETWORK), card.sha256
                if self._network not in _PLANNED:
                    return None
        return self.enqueue()

    async def plan(self, predictor: Predictor) -> None:
        """Raises SpecRefused for a network that cannot be built or cannot fit, where that can be told by now.

        Else the job's attempt finds it out.
        """
        assert self._planned is not None
        with suppress(PredictorUnavailable, TimeoutError):
            await asyncio.wait_for(predictor.plan(*self._planned), _PLAN_SECONDS)
            if len(_PLANNED) >= _MOST_PLANNED:
                _PLANNED.clear()
            _PLANNED.add(self._network)

    def enqueue(self) -> JobBody:
        quota = Quota(self._settings.max_queued_jobs, self._settings.max_queued_jobs_per_key)
        return submitted(self._db, submitting.enqueue(self._db, self._spec, self._origin, quota))
