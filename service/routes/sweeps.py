"""Sweeps: many jobs of one spec, some of whose fields vary."""

import asyncio
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from worker.jobs import leftovers, standings, submitting, sweeps, trials
from worker.jobs.db import Database
from worker.jobs.errors import (
    Conflict,
    CrossSite,
    DiskFull,
    IdempotencyMismatch,
    InvalidRequest,
    NotFound,
    PredictorUnavailable,
    SpecRefused,
    TooManyJobs,
    UnsupportedMediaType,
    UrlNotAllowed,
)
from worker.jobs.owners import Caller
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec, SweepForm
from worker.jobs.spec.sweep import VARIED
from worker.jobs.submitting import Origin, Quota
from worker.jobs.sweeps import Planned
from worker.jobs.tables import Sweep
from worker.jobs.texts import looks_like_key

from service.bodies.sweeps import SweepBody, SweepPage, SweepPlan, SweepSummary
from service.deps import (
    CallerDep,
    DatabaseDep,
    PredictorDep,
    ResolverDep,
    SettingsDep,
    require_json,
    require_json_if_any,
    require_space,
)
from service.errors import responses
from service.predictor import Predictor
from service.webhooks import require_allowed

from .control import Cancel
from .jobs import IdempotencyKey

router = APIRouter(prefix="/sweeps", tags=["sweeps"])

_EXAMPLE: Final = "18eb777d067481165fe33af2"
_MOST_NETWORKS: Final = 20  # that are looked at, one after another
_PLAN_SECONDS: Final = 2.0  # for each; who waits for longer waits for something else
_OF_A_NETWORK: Final = set(VARIED)  # the rest is the same for all trials
_NO_PART_OF_A_NETWORK: Final[dict[str, Any]] = {"seed": True, "epochs": True, "shuffle": True, "optimizer": {"lr"}}
_problems = partial(responses, CrossSite, DiskFull)
_MADE: dict[int | str, dict[str, Any]] = {
    200: {"model": SweepPlan, "description": "With `dry_run`: what the sweep would be"},
    201: {
        "model": SweepBody,
        "headers": {
            "Location": {
                "description": "Where to look at it from now on",
                "schema": {"type": "string"},
                "example": f"/sweeps/{_EXAMPLE}",
            }
        },
        "links": {"show_sweep": {"operationId": "show_sweep", "parameters": {"sweep_id": "$response.body#/id"}}},
    },
}
SweepId = Annotated[str, Path(description="The sweep's id")]


class SubmitQuery(BaseModel, extra="forbid"):
    dry_run: bool = Field(False, description="Store nothing; answer with 200 which trials there would be")


class ListQuery(BaseModel, extra="forbid"):
    after: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = Field(
        None, description="`next_cursor` of the page before"
    )
    limit: int = Field(20, ge=1, le=100)


@router.post(
    "",
    operation_id="submit_sweep",
    status_code=201,
    summary="Launch many trainings of one spec",
    dependencies=[Depends(require_json)],
    response_model=None,
    responses=_problems(
        InvalidRequest, UnsupportedMediaType, SpecRefused, IdempotencyMismatch, UrlNotAllowed, TooManyJobs
    )
    | _MADE,
)
async def submit(
    form: SweepForm,
    db: DatabaseDep,
    predictor: PredictorDep,
    settings: SettingsDep,
    caller: CallerDep,
    query: Annotated[SubmitQuery, Query()],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SweepBody | SweepPlan:
    """Queues one job for each trial, all of them or none. `grid` tries every combination of the values, `random` some
    of them, and `halving` trains many for a few epochs and the best of them on: to the same bits as if they had been
    submitted with all of their epochs.

    The same form has the same trials, whenever and wherever it is sent. Up to 20 different networks are built and
    measured first, as that of a job is.
    """
    require_allowed(settings, form.spec)
    if query.dry_run:
        planned = await run_in_threadpool(sweeps.plan, db, form, caller)
        await _require_networks(predictor, form, planned)
        response.status_code = 200
        return SweepPlan.of(planned)
    if idempotency_key is not None and looks_like_key(idempotency_key):
        raise InvalidRequest("The Idempotency-Key must not be an API key.")
    origin = Origin(caller, idempotency_key, request.state.request_id)
    body = await run_in_threadpool(_known, db, form, origin)
    if body is None:
        await _require_networks(predictor, form, await run_in_threadpool(_planned, db, settings, form, caller))
        body = await run_in_threadpool(_made, db, settings, form, origin)
    response.headers["Location"] = f"/sweeps/{body.id}"
    return body


def _known(db: Database, form: SweepForm, origin: Origin) -> SweepBody | None:
    """The sweep, as it is now, that was made when this request came before."""
    made = submitting.replayed(db, Sweep, form, origin)
    return _whole(db, made.id, origin.caller) if made is not None else None


def _planned(db: Database, settings: Settings, form: SweepForm, caller: Caller) -> Planned:
    require_space(settings)
    return sweeps.plan(db, form, caller)


async def _require_networks(predictor: Predictor, form: SweepForm, planned: Planned) -> None:
    """Raises SpecRefused for a network that cannot be built or cannot fit, where that can be told by now: of some of
    the trials, and while the predictor answers. Else the job's attempt finds it out.
    """
    if planned.card is None or not predictor.ready:
        return
    networks: dict[str, Spec] = {}
    for each in planned.trials:
        key = each.spec.model_dump_json(include=_OF_A_NETWORK, exclude=_NO_PART_OF_A_NETWORK)
        networks.setdefault(key, each.spec)
    with suppress(PredictorUnavailable, TimeoutError):
        for spec in islice(networks.values(), _MOST_NETWORKS):
            try:
                await asyncio.wait_for(predictor.plan(spec, planned.card), _PLAN_SECONDS)
            except SpecRefused as refused:
                raise trials.placed(form, refused) from refused


def _made(db: Database, settings: Settings, form: SweepForm, origin: Origin) -> SweepBody:
    quota = Quota(settings.max_queued_jobs, settings.max_queued_jobs_per_key)
    return _whole(db, sweeps.create(db, form, origin, quota).id, origin.caller)


def _whole(db: Database, sweep_id: str, caller: Caller) -> SweepBody:
    return SweepBody.whole(standings.get(db, sweep_id, caller))


@router.get("", summary="List sweeps, newest first")
def list_sweeps(db: DatabaseDep, caller: CallerDep, query: Annotated[ListQuery, Query()]) -> SweepPage:
    """Without their trials. Pages neither skip nor repeat a sweep, whatever is submitted meanwhile."""
    found, has_more = standings.listed(db, after=query.after, limit=query.limit, caller=caller)
    cursor = found[-1].row.id if has_more else None
    return SweepPage(data=[SweepSummary.of(each) for each in found], has_more=has_more, next_cursor=cursor)


@router.get("/{sweep_id}", operation_id="show_sweep", summary="Look at a sweep", responses=responses(NotFound))
def show(sweep_id: SweepId, db: DatabaseDep, caller: CallerDep) -> SweepBody:
    """How each trial does, and which is the best so far."""
    return _whole(db, sweep_id, caller)


@router.post(
    "/{sweep_id}/cancel",
    operation_id="cancel_sweep",
    summary="Cancel a sweep",
    dependencies=[Depends(require_json_if_any)],
    responses=_problems(NotFound, Conflict, InvalidRequest, UnsupportedMediaType)
    | {202: {"model": SweepBody, "description": "Trials are saving, and leave"}},
)
def cancel(
    sweep_id: SweepId,
    db: DatabaseDep,
    caller: CallerDep,
    response: Response,
    body: Annotated[Cancel | None, Body()] = None,
) -> SweepBody:
    """Cancels every trial that has not ended, as `POST /jobs/{id}/cancel` does; nothing is trained on. 200 when all
    have ended, 202 while some are still leaving."""
    is_leaving = sweeps.cancel(db, sweep_id, caller, at_once=(body or Cancel()).mode == "now")
    response.status_code = 202 if is_leaving else 200
    return _whole(db, sweep_id, caller)


@router.delete(
    "/{sweep_id}",
    operation_id="delete_sweep",
    status_code=204,
    summary="Delete a sweep whose trials have ended",
    responses=_problems(NotFound, Conflict),
)
def delete(sweep_id: SweepId, db: DatabaseDep, settings: SettingsDep, caller: CallerDep, resolver: ResolverDep) -> None:
    """With all its jobs, their metrics, checkpoints and logs. Not while an alias points at one of them."""
    jobs = sweeps.delete(db, sweep_id, caller)
    resolver.forget()
    for job_id in jobs:
        leftovers.remove_job(settings.data_dir, job_id)
