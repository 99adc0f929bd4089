"""What routes depend on, as annotated types: a look-up is a dependency, so no route repeats one."""

from typing import Annotated

from fastapi import Depends, Path, Request
from worker.jobs import files, queue
from worker.jobs.db import Database
from worker.jobs.errors import UnsupportedMediaType
from worker.jobs.owners import Caller
from worker.jobs.settings import Settings
from worker.jobs.tables import Job

from .predictor import Predictor
from .resolving import CallerResolver


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _database(request: Request) -> Database:
    db: Database = request.app.state.db
    return db


def _predictor(request: Request) -> Predictor:
    predictor: Predictor = request.app.state.predictor
    return predictor


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller  # RequireKey has put it there
    return caller


CallerDep = Annotated[Caller, Depends(_caller)]


def _resolver(request: Request, caller: CallerDep) -> CallerResolver:
    return CallerResolver(request.app.state.resolver, caller)


SettingsDep = Annotated[Settings, Depends(_settings)]
DatabaseDep = Annotated[Database, Depends(_database)]
PredictorDep = Annotated[Predictor, Depends(_predictor)]
ResolverDep = Annotated[CallerResolver, Depends(_resolver)]


def _job(db: DatabaseDep, caller: CallerDep, job_id: Annotated[str, Path(description="The job's id")]) -> Job:
    return queue.get(db, job_id, caller)


JobDep = Annotated[Job, Depends(_job)]


def require_space(settings: SettingsDep) -> None:
    """Work that would fail for want of space is refused. Raises DiskFull."""
    files.require_space(settings.data_dir, settings.min_free_bytes)


async def require_json_if_any(request: Request) -> None:
    """Of a body that may be left out."""
    if await request.body():
        require_json(request)


def require_json(request: Request) -> None:
    """curl's `-d` alone sends a form; say so instead of refusing every field."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType("Send JSON with the header `Content-Type: application/json` (curl: --json).")
