"""The first page: jobs, newest first, as they are now."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field, field_validator
from worker.jobs import following, listing
from worker.jobs.db import Database
from worker.jobs.listing import Filter
from worker.jobs.owners import Caller
from worker.jobs.states import Status

from service.deps import CallerDep, DatabaseDep

from .rendering import fragment, page

router = APIRouter()


class HomeQuery(BaseModel):
    status: Status | None = None
    label: str = Field("", max_length=201, description="`key=value`")
    after: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = None
    limit: int = Field(50, ge=1, le=100)

    @field_validator("status", "after", mode="before")
    @classmethod
    def _left_out(cls, value: object) -> object:
        """A form sends every field that it has."""
        return value or None

    @property
    def filter(self) -> Filter:
        key, _, value = self.label.partition("=")
        return Filter(self.status, ((key.strip(), value.strip()),) if key.strip() else ())


def _shown(db: Database, caller: Caller, query: HomeQuery) -> dict[str, Any]:
    jobs, has_more = listing.jobs(db, query.filter, after=query.after, limit=query.limit, caller=caller)
    return {"jobs": jobs, "newest": following.newest(db, jobs), "has_more": has_more, "query": query}


@router.get("/")
def home(request: Request, db: DatabaseDep, caller: CallerDep, query: Annotated[HomeQuery, Query()]) -> Response:
    return page(request, "home.html", statuses=list(Status), seen="", **_shown(db, caller, query))


@router.get("/ui/jobs")
def table(request: Request, db: DatabaseDep, caller: CallerDep, query: Annotated[HomeQuery, Query()]) -> Response:
    return fragment(request, "jobs_table.html", **_shown(db, caller, query))
