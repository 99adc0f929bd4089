"""A picture is put before a job or an alias, and what it is taken for is shown."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Request, Response
from worker.jobs import aliases, listing, queue
from worker.jobs.db import Database
from worker.jobs.errors import NotFound
from worker.jobs.listing import Filter
from worker.jobs.owners import Caller
from worker.jobs.states import Status
from worker.jobs.tables import Job

from service.deps import CallerDep, DatabaseDep
from service.which import Which, WhoAnswers

from .rendering import page

router = APIRouter()

_MOST: Final = 50  # jobs to choose from, beside the one that the address names
_DEFAULT: Final = "default"  # the alias that answers predictions which name nothing


class TryQuery(WhoAnswers):
    checkpoint: Which | None = None


@router.get("/ui/try")
def show(request: Request, db: DatabaseDep, caller: CallerDep, query: Annotated[TryQuery, Query()]) -> Response:
    named = queue.get(db, query.job, caller) if query.job else None
    pointed = [each.alias for each in aliases.every(db, caller)]
    jobs = _jobs(db, caller, named)
    names = [each.name for each in pointed]
    if query.model is not None and query.model not in names:
        raise NotFound("There is no alias of this name.")
    chosen = f"job:{jobs[0].id}" if jobs else ""
    if named is not None:
        chosen = f"job:{named.id}"
    elif query.model is not None or _DEFAULT in names:
        chosen = f"model:{query.model or _DEFAULT}"
    about: dict[str, Any] = {each.job_id: queue.get(db, each.job_id, caller) for each in pointed}
    return page(
        request, "try.html", aliases=pointed, about=about, jobs=jobs, chosen=chosen, checkpoint=query.checkpoint or ""
    )


def _jobs(db: Database, caller: Caller, named: Job | None) -> list[Job]:
    """Those that can answer: the newest that have succeeded, and the newest that have a checkpoint by now."""
    succeeded, _ = listing.jobs(db, Filter(Status.SUCCEEDED), limit=_MOST, caller=caller)
    newest, _ = listing.jobs(db, limit=_MOST, caller=caller)
    found = {each.id: each for each in (*succeeded, *newest) if each.last_seq > 0}
    if named is not None:
        found[named.id] = named
    return sorted(found.values(), key=lambda job: (job.status != Status.SUCCEEDED, -int(job.id, 16)))
