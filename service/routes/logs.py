"""What a job's attempts logged."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from worker.jobs import attempt_logs, records
from worker.jobs.errors import NotFound
from worker.jobs.states import TERMINAL

from service.deps import DatabaseDep, JobDep, SettingsDep
from service.errors import responses

router = APIRouter(prefix="/jobs/{job_id}/logs", tags=["jobs"])


class LogsQuery(BaseModel, extra="forbid"):
    since: int = Field(0, ge=0, lt=2**53, description="`next_since` of the answer before; 0 for all")
    attempt: int | None = Field(None, ge=1, lt=2**31, description="Unset: the newest")
    limit: int = Field(1000, ge=1, le=1000, description="At most this many lines; they may be fewer, if they are long")


class LogsPage(BaseModel):
    attempt: int = Field(description="Whose log this is; 0 before the first")
    data: list[str] = Field(description="Lines, oldest first, as they were written: most of them are JSON")
    next_since: int = Field(description="Give this as `since` to get only what is new, with the same `attempt`")
    terminal: bool = Field(description="Whether the attempt has ended and its last line is in your hands")


@router.get("", operation_id="read_logs", summary="Read an attempt's log", responses=responses(NotFound))
def read(job: JobDep, db: DatabaseDep, settings: SettingsDep, query: Annotated[LogsQuery, Query()]) -> LogsPage:
    number = query.attempt or job.attempt
    if number == 0:
        return LogsPage(attempt=0, data=[], next_since=0, terminal=job.status in TERMINAL)
    attempt = next((each for each in records.attempts(db, job.id) if each.number == number), None)
    if attempt is None:
        raise NotFound(f"The job has no attempt {number}.")
    has_ended = attempt.outcome is not None
    path = settings.data_dir / attempt_logs.training_log(job.id, number)
    page = attempt_logs.read(path, query.since, query.limit, is_whole=has_ended)
    return LogsPage(attempt=number, data=page.lines, next_since=page.next_since, terminal=has_ended and page.is_end)
