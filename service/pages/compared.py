"""Jobs beside each other."""

from collections import Counter
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
    given = Counter(each.name for each in found.jobs)
    names = {each.id: _called(each.name, each.id, is_shared=given[each.name] > 1) for each in found.jobs}
    return page(request, "compare.html", found=found, metrics=metrics, names=names)


def _called(name: str | None, job_id: str, *, is_shared: bool) -> str:
    """Clones have their original's name."""
    end = job_id[-8:]
    return end if name is None else f"{name} ({end})" if is_shared else name
