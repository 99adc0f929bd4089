"""Parity certificates are made by the predictors, in the background, of every job that has succeeded."""

import asyncio

import structlog
from starlette.concurrency import run_in_threadpool
from worker.jobs import parities
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import EpochdError, PredictorUnavailable
from worker.jobs.parities import Wanting
from worker.jobs.parity import Parity

from .predictor import Predictor

_LOOK_SECONDS = 2.0
_AWAY_SECONDS = 10.0
_log = structlog.get_logger()


async def certify(db: Database, predictor: Predictor) -> None:
    """One certificate after the other. Until cancelled."""
    while True:
        pause = _LOOK_SECONDS
        try:
            if (job := await run_in_threadpool(parities.wanting, db)) is not None:
                found = await _made(predictor, job)
                await run_in_threadpool(parities.record, db, job.checkpoint, found)
                pause = 0.0
        except (PredictorUnavailable, *DATABASE_AWAY):
            pause = _AWAY_SECONDS
        except Exception:
            _log.exception("not_certified")
            pause = _AWAY_SECONDS
        await asyncio.sleep(pause)


async def _made(predictor: Predictor, job: Wanting) -> Parity | str:
    """The certificate, or why it cannot be made. Raises PredictorUnavailable."""
    if job.request is None:
        return "The job's dataset is gone."
    try:
        async with predictor.errand(job.request) as parts:
            made = b"".join([part async for part in parts])
    except PredictorUnavailable:
        raise
    except EpochdError as error:
        return error.detail
    found = Parity.model_validate_json(made)
    _log.info("certified", job=job.checkpoint.job_id, passed=found.passed, difference=found.largest_difference)
    return found
