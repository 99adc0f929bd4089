"""Aliases: names for checkpoints, so that what answers can be changed without those who ask."""

from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Path, Response
from pydantic import BeforeValidator, Field
from starlette.concurrency import run_in_threadpool
from worker.jobs import aliases, queue, records
from worker.jobs.aliases import Pointed
from worker.jobs.db import Database
from worker.jobs.errors import (
    CheckpointCorrupt,
    Conflict,
    CrossSite,
    DiskFull,
    InvalidRequest,
    NotFound,
    NotReady,
    PredictorUnavailable,
    UnsupportedMediaType,
)
from worker.jobs.owners import Caller
from worker.jobs.spec import Name, Part
from worker.jobs.tables import Checkpoint
from worker.jobs.wire import WarmRequest

from service.bodies.models import AliasBody, AliasList
from service.deps import CallerDep, DatabaseDep, PredictorDep, ResolverDep, require_json, require_json_if_any
from service.errors import responses
from service.predictor import Predictor
from service.routes.control import NoFields
from service.which import Which

router = APIRouter(prefix="/models", tags=["models"])

NamePath = Annotated[str, Path(max_length=64, description="The alias")]
NewNamePath = Annotated[Name, Path(description="The alias; `default` answers when a prediction names nothing")]
_problems = partial(responses, CrossSite, NotFound, DiskFull)
_BODY = (InvalidRequest, UnsupportedMediaType)


_Epoch = Annotated[int, Field(ge=0, lt=10**9)]


def _as_text(which: object) -> object:
    return str(which) if isinstance(which, int) and not isinstance(which, bool) else which


class AliasTarget(Part):
    job: str = Field(max_length=64, description="The job's id")
    checkpoint: Annotated[Which, BeforeValidator(_as_text, json_schema_input_type=_Epoch | Which)] = Field(
        "best", description="`best`, `last` or the number of an epoch, as it is now: the alias stays at that epoch"
    )


def _no_fields(body: Annotated[NoFields | None, Body()] = None) -> None:
    """A body may be sent, but says nothing: a field that is not understood is refused."""


_NEW: dict[int | str, dict[str, Any]] = {201: {"model": AliasBody, "description": "The alias is new"}}


@router.get("", summary="List aliases")
def list_aliases(db: DatabaseDep, caller: CallerDep) -> AliasList:
    return AliasList(data=[AliasBody.of(each) for each in aliases.every(db, caller)])


@router.get("/{name}", operation_id="show_alias", summary="Look at an alias", responses=responses(NotFound))
def show(name: NamePath, db: DatabaseDep, caller: CallerDep) -> AliasBody:
    return AliasBody.of(aliases.look(db, name, caller))


@router.put(
    "/{name}",
    operation_id="put_alias",
    summary="Point an alias at a checkpoint",
    dependencies=[Depends(require_json)],
    responses=_problems(*_BODY, NotReady, CheckpointCorrupt) | _NEW,
)
async def put(
    name: NewNamePath,
    body: AliasTarget,
    db: DatabaseDep,
    predictor: PredictorDep,
    resolver: ResolverDep,
    caller: CallerDep,
    response: Response,
) -> AliasBody:
    """The checkpoint is loaded first, so that the next answer does not wait for it; a damaged one is refused. Requests
    meanwhile are answered by the one or by the other, and none fails. The checkpoint stays, whatever the job's spec
    keeps, as long as an alias points at it or can be rolled back to it."""
    pointed = await _put(db, predictor, name, body, caller)
    resolver.forget()
    if pointed.is_new:
        response.status_code = 201
        response.headers["Location"] = f"/models/{name}"
    return AliasBody.of(pointed)


@router.post(
    "/{name}/rollback",
    operation_id="rollback_alias",
    summary="Point an alias at what it pointed at before",
    dependencies=[Depends(require_json_if_any), Depends(_no_fields)],
    responses=_problems(*_BODY, Conflict, CheckpointCorrupt),
)
async def rollback(
    name: NamePath, db: DatabaseDep, predictor: PredictorDep, resolver: ResolverDep, caller: CallerDep
) -> AliasBody:
    """To roll back twice is to go back to where it was."""
    await _load(predictor, await run_in_threadpool(aliases.before, db, name, caller))
    pointed = await run_in_threadpool(aliases.rollback, db, name, caller)
    resolver.forget()
    return AliasBody.of(pointed)


@router.delete(
    "/{name}", operation_id="delete_alias", status_code=204, summary="Delete an alias", responses=_problems()
)
async def delete(name: NamePath, db: DatabaseDep, resolver: ResolverDep, caller: CallerDep) -> None:
    """What it points at stays, as its job's spec says."""
    await run_in_threadpool(aliases.remove, db, name, caller)
    resolver.forget()


async def _put(db: Database, predictor: Predictor, name: str, target: AliasTarget, caller: Caller) -> Pointed:
    """Raises NotFound, NotReady and CheckpointCorrupt."""
    row = await run_in_threadpool(_find, db, target, caller)
    while True:
        try:
            await _load(predictor, row)
            return await run_in_threadpool(aliases.put, db, name, row.job_id, str(row.epoch), caller)
        except (CheckpointCorrupt, NotFound):
            again = await run_in_threadpool(_find, db, target, caller)
            if again.path == row.path:
                raise
            row = again  # the one before was not kept


def _find(db: Database, target: AliasTarget, caller: Caller) -> Checkpoint:
    """Raises NotFound and NotReady."""
    return records.checkpoint(db, queue.get(db, target.job, caller).id, target.checkpoint).row


async def _load(predictor: Predictor, row: Checkpoint) -> None:
    """Has it ready to answer, where there is a predictor just now. Raises CheckpointCorrupt."""
    with suppress(PredictorUnavailable):
        await predictor.ask(WarmRequest(path=row.path, sha256=row.sha256))
