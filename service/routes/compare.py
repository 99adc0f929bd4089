"""Compare jobs: what differs in their specs, and whether it made a difference."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import AfterValidator, BaseModel, Field
from worker.jobs import comparing
from worker.jobs.errors import NotFound

from service.bodies.compare import ComparisonBody
from service.deps import CallerDep, DatabaseDep
from service.errors import responses

router = APIRouter(tags=["metrics"])

_MOST: Final = 10
_SCHEMA: Final[dict[str, Any]] = {"pattern": rf"^[0-9a-f]{{24}}(,[0-9a-f]{{24}}){{1,{_MOST - 1}}}$"}


def _ids(text: str) -> str:
    ids = text.split(",")
    if not 2 <= len(ids) <= _MOST or len(set(ids)) < len(ids):
        raise ValueError(f"Name 2 to {_MOST} different jobs, with commas between them")
    return text


class CompareQuery(BaseModel, extra="forbid"):
    jobs: Annotated[str, AfterValidator(_ids)] = Field(
        description=f"Ids of 2 to {_MOST} different jobs, with commas between them; changes are against the first",
        json_schema_extra=_SCHEMA,
    )


@router.get("/compare", operation_id="compare_jobs", summary="Compare jobs", responses=responses(NotFound))
def compare(db: DatabaseDep, caller: CallerDep, query: Annotated[CompareQuery, Query()]) -> ComparisonBody:
    """Where their specs differ, their best and newest metrics, their scores class by class, and of each pair whether
    one is better than chance explains on the same test pictures.

    Classes and pairs are of each job's newest epoch. The test is of the two networks as they are: another seed would
    have given others.
    """
    return ComparisonBody.of([comparing.result(db, job_id, caller) for job_id in query.jobs.split(",")])
