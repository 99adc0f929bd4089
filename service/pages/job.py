"""A job's page: what it does now, its curves, what it takes for what, and what it was made of."""

from typing import Any

from fastapi import APIRouter, Request, Response
from worker.jobs import attempt_logs, following, records
from worker.jobs.db import Database
from worker.jobs.errors import NotFound, NotReady
from worker.jobs.report import Report
from worker.jobs.states import OWNED, TERMINAL, Status
from worker.jobs.tables import Job

from service.bodies.jobs import JobBody
from service.deps import DatabaseDep, JobDep, SettingsDep
from service.whole import whole

from .rendering import fragment, page

router = APIRouter(prefix="/ui/jobs/{job_id}")

_CHECKPOINTS = 6  # the newest, and the best
_MATRIX_CLASSES = 40  # a larger one cannot be read; the table of classes has them all
_LOG_LINES = 200


def actions(job: Job) -> dict[str, bool]:
    """What can be asked of a job as it is now."""
    status = Status(job.status)
    return {
        "pause": status in (Status.QUEUED, Status.RUNNING),
        "resume": status in (Status.PAUSED, Status.PAUSING),
        "cancel": status not in (*TERMINAL, Status.CANCELLING),
        "retry": status in (Status.FAILED, Status.CANCELLED) and not job.imported,
        "extend": status is Status.SUCCEEDED and not job.imported,
        "delete": status in TERMINAL,
        "predict": job.last_seq > 0,
    }


@router.get("")
def show(request: Request, job: JobDep, db: DatabaseDep) -> Response:
    body = whole(db, job)
    parts = _now(db, job, body) | _kept(db, job, body) | _classes(db, job)
    return page(request, "job.html", seen="", **parts)


@router.get("/now")
def now(request: Request, job: JobDep, db: DatabaseDep) -> Response:
    return fragment(request, "job_now.html", **_now(db, job, whole(db, job)))


@router.get("/kept")
def kept(request: Request, job: JobDep, db: DatabaseDep) -> Response:
    return fragment(request, "job_kept.html", **_kept(db, job, whole(db, job)))


@router.get("/classes")
def classes(request: Request, job: JobDep, db: DatabaseDep) -> Response:
    return fragment(request, "job_classes.html", **_classes(db, job))


@router.get("/made")
def made(request: Request, job: JobDep) -> Response:
    return fragment(request, "job_made.html", job=job)


@router.get("/log")
def log(request: Request, job: JobDep, settings: SettingsDep) -> Response:
    """The newest lines of the newest attempt's log."""
    path = settings.data_dir / attempt_logs.training_log(job.id, job.attempt)
    lines = attempt_logs.newest(path, _LOG_LINES) if job.attempt else []
    return fragment(request, "job_log.html", job=job, lines=lines)


def _now(db: Database, job: Job, body: JobBody) -> dict[str, Any]:
    return {
        "job": job,
        "body": body,
        "can": actions(job),
        "is_live": job.status in (Status.QUEUED, *OWNED),
        "newest": following.newest(db, [job]).get(job.id),
    }


def _kept(db: Database, job: Job, body: JobBody) -> dict[str, Any]:
    """Its newest checkpoints and the best, and what happened to it."""
    checkpoints, count = records.shown_checkpoints(db, job.id, _CHECKPOINTS)
    return {"job": job, "body": body, "checkpoints": checkpoints, "checkpoint_count": count}


def _classes(db: Database, job: Job) -> dict[str, Any]:
    try:
        report: Report | None = records.report(db, job.id)
    except (NotFound, NotReady):
        report = None
    matrix = report.confusion_matrix if report and len(report.classes) <= _MATRIX_CLASSES else None
    return {"job": job, "report": report, "matrix": matrix, "shades": [_shades(row) for row in matrix or []]}


def _shades(row: list[int]) -> list[int]:
    """How dark each cell of a row is, 0 to 10: its share of the pictures of that class."""
    every = sum(row) or 1
    return [min(10, round(10 * (count / every) ** 0.5)) if count else 0 for count in row]
