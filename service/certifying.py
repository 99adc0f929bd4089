"""Parity certificates are made by the predictors, in the background, of every job that has succeeded."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import structlog
from starlette.concurrency import run_in_threadpool
from worker.jobs import parities
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import EpochdError, Internal, PredictorUnavailable
from worker.jobs.parities import Wanting
from worker.jobs.parity import Parity

from .predictor import Predictor

_LOOK_SECONDS = 2.0
_AWAY_SECONDS = 10.0
_MOST_FAILURES = 3  # of one certificate: the next job is not kept waiting for ever
_log = structlog.get_logger()


async def certify(db: Database, predictor: Predictor) -> None:
    """One certificate after the other. Until cancelled."""
    failures = Counter[str]()  # of each checkpoint's certificate
    while True:
        pause = _LOOK_SECONDS
        try:
            if (job := await run_in_threadpool(parities.wanting, db)) is not None:
                found = await _made(predictor, job, failures)
                await run_in_threadpool(parities.record, db, job.checkpoint, found)
                pause = 0.0
        except (PredictorUnavailable, *DATABASE_AWAY):
            pause = _AWAY_SECONDS
        except Exception:
            _log.exception("not_certified")
            pause = _AWAY_SECONDS
        await asyncio.sleep(pause)


async def _made(predictor: Predictor, job: Wanting, failures: Counter[str]) -> Parity | str:
    """The certificate, or why it cannot be made. Raises PredictorUnavailable when it is worth another try."""
    if job.request is None:
        return "The job's dataset is gone."
    try:
        async with predictor.errand(job.request) as parts:
            made = await _whole(parts, job, failures)
    except PredictorUnavailable:
        raise
    except EpochdError as error:
        return error.detail
    if made is None:
        return f"The process that makes it died {_MOST_FAILURES} times; the service's log says more."
    found = Parity.model_validate_json(made)
    _log.info("certified", job=job.checkpoint.job_id, passed=found.passed, difference=found.largest_difference)
    return found


async def _whole(parts: AsyncIterator[bytes], job: Wanting, failures: Counter[str]) -> bytes | None:
    """None when its process died too often. Raises what the errand raised."""
    sha256 = job.checkpoint.sha256
    try:
        made = b"".join([part async for part in parts])
    except (PredictorUnavailable, Internal) as error:
        failures[sha256] += 1
        _log.warning("certificate_failed", job=job.checkpoint.job_id, times=failures[sha256], reason=error.detail)
        if failures[sha256] < _MOST_FAILURES:
            raise PredictorUnavailable from error
        made = None
    del failures[sha256]
    return made
