"""Jobs beside each other."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from worker.jobs import comparing
from worker.jobs.errors import InvalidRequest

from service.bodies.compare import ComparisonBody
from service.deps import CallerDep, DatabaseDep

from .rendering import page

router = APIRouter()
_MOST = 10


@router.get("/ui/compare")
def compare(request: Request, db: DatabaseDep, caller: CallerDep, jobs: Annotated[list[str], Query()] = []) -> Response:  # noqa: B006
    """`jobs` may be repeated, as a form with boxes sends it, or have commas."""
    ids = list(dict.fromkeys(each for text in jobs for each in text.split(",") if each))
    if not 2 <= len(ids) <= _MOST:
        raise InvalidRequest(f"Tick two to {_MOST} jobs in the table of jobs to compare them.")
    results = [comparing.result(db, job_id, caller) for job_id in ids]
    found = ComparisonBody.of(results)
    metrics = list(dict.fromkeys(name for each in found.jobs for name in each.metrics))
    names = {each.id: each.name or each.id[-8:] for each in found.jobs}
    return page(request, "compare.html", found=found, metrics=metrics, names=names)
