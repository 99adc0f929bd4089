"""Health: is the process alive, and can the product do its work."""

import shutil

from fastapi import APIRouter, Response
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from worker.jobs import workers
from worker.jobs.db import Database
from worker.jobs.settings import Settings

from service.bodies.health import Part, Readiness
from service.deps import DatabaseDep, PredictorDep, SettingsDep
from service.predictor import Predictor

_RETRY_AFTER = "5"  # a worker that starts takes a few seconds
router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the service alive?")
async def healthz() -> dict[str, str]:
    """Touches nothing and needs no thread, so that a busy database never gets a living service restarted."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    summary="Can jobs run and predictions be answered?",
    responses={503: {"model": Readiness, "description": "A part is not ready; the body says which"}},
)
def readyz(settings: SettingsDep, db: DatabaseDep, predictor: PredictorDep, response: Response) -> Readiness:
    parts = {
        "database": _database(db),
        "worker": _worker(settings, db),
        "disk": _disk(settings),
        "predictor": _predictor(predictor),
    }
    ready = all(part.ready for part in parts.values())
    if not ready:
        response.status_code = 503
        response.headers["Retry-After"] = _RETRY_AFTER
    return Readiness(ready=ready, parts=parts)


def _database(db: Database) -> Part:
    try:
        with db.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        return Part(ready=False, detail="The database does not answer.")
    return Part(ready=True, detail="The database answers.")


def _worker(settings: Settings, db: Database) -> Part:
    try:
        age = workers.seconds_since_heartbeat(db)
    except SQLAlchemyError:
        return Part(ready=False, detail="Nobody can tell while the database does not answer.")
    if age is None:
        return Part(ready=False, detail="No worker is known: start one with `epochd worker`.")
    alive = age <= settings.lease_seconds
    return Part(ready=alive, detail=f"A worker was last heard {age:.0f} s ago.")


def _disk(settings: Settings) -> Part:
    try:
        free = shutil.disk_usage(settings.data_dir).free
    except OSError:
        return Part(ready=False, detail="The data folder is not there.")
    return Part(ready=free >= settings.min_free_bytes, detail=f"{free // 2**20} MiB are free in the data folder.")


def _predictor(predictor: Predictor) -> Part:
    return Part(
        ready=predictor.ready, detail="The predictor runs." if predictor.ready else "The predictor is being started."
    )
