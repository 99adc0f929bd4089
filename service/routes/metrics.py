"""A job's metrics, one row an epoch, read from a cursor: polled, waited for, or as a stream."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import chain
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from worker.jobs import following, records, sinks
from worker.jobs.db import Database
from worker.jobs.errors import NotFound, TooManyStreams
from worker.jobs.following import Mark
from worker.jobs.owners import Caller
from worker.jobs.states import TERMINAL, Status
from worker.jobs.tables import Epoch, Job

from service.bodies.metrics import CSV_HEADER, MetricsPage, csv_lines
from service.deps import CallerDep, DatabaseDep, JobDep
from service.errors import responses
from service.feed import Feed, Follower

router = APIRouter(prefix="/jobs/{job_id}", tags=["metrics"])

_ROWS: Final = 500  # of a stream, read at once
_IDLE_SECONDS: Final = 0.5  # and then looks whether the key is still accepted
_RECONNECT_MS: Final = 1000
_LONGEST_RETRY: Final = 30


class MetricsQuery(BaseModel, extra="forbid"):
    since: int = Field(0, ge=0, lt=2**31, description="`next_since` of the answer before; 0 for all")
    limit: int = Field(1000, ge=1, le=1000, description="At most this many rows")
    wait: float = Field(
        0, ge=0, le=60, description="Where there is nothing new: so many seconds to wait for it before answering"
    )


class StreamQuery(BaseModel, extra="forbid"):
    since: int = Field(
        0, ge=0, lt=2**31, description="`seq` of the last row that is known: the stream begins behind it"
    )


IfNoneMatch = Annotated[str | None, Header(description="`ETag` of the answer before: 304 when nothing has changed")]
LastEventId = Annotated[
    int,
    Header(ge=0, lt=2**31, description="`id` of the last event that came: the stream goes on behind it"),
]


def _feed(request: Request) -> Feed:
    feed: Feed = request.app.state.feed
    return feed


FeedDep = Annotated[Feed, Depends(_feed)]


async def _follower(job: JobDep, feed: FeedDep) -> AsyncIterator[Follower]:
    with feed.follow(job.id) as follower:
        yield follower


FollowerDep = Annotated[Follower, Depends(_follower)]
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "Nothing has changed since that `ETag`"}}
_TABLE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The names of a row's fields, then a line a row",
        "content": {"text/csv": {"schema": {"type": "string"}}},
        "headers": {
            "Content-Disposition": {
                "description": "A name for the file",
                "schema": {"type": "string"},
                "example": 'attachment; filename="18eb6e79fb8ad69c6c8a2500-metrics.csv"',
            }
        },
    }
}


@router.get(
    "/metrics",
    operation_id="read_metrics",
    summary="Poll metrics",
    response_model=MetricsPage,
    responses=responses(NotFound, TooManyStreams) | _NOT_MODIFIED,
)
async def read(
    job_id: Annotated[str, Path(description="The job's id")],
    db: DatabaseDep,
    caller: CallerDep,
    feed: FeedDep,
    request: Request,
    query: Annotated[MetricsQuery, Query()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The rows after `since`. `terminal` is true once the job has ended and its last row is in your hands. Until then
    `Retry-After` says in how many seconds the next row may be expected.

    A job that goes on from an older checkpoint records later epochs again, under new `seq`: keep the newest.
    """
    job, rows = await run_in_threadpool(_page, db, job_id, query, caller)
    if query.wait and not rows and job.status not in TERMINAL:
        with feed.follow(job.id) as follower:
            request.state.work.release()
            await _news(follower, partial(_is_behind, db, job.id, query.since), query.since, query.wait)
        job, rows = await run_in_threadpool(_page, db, job_id, query, caller)
    page = MetricsPage.of(job, rows, query.since, whole=len(rows) < query.limit)
    return _tagged(page, if_none_match, {} if page.terminal else {"Retry-After": str(_next_row(job, rows))})


@router.get(
    "/metrics.csv",
    operation_id="read_metrics_csv",
    summary="Download metrics as a table",
    response_class=StreamingResponse,
    responses=responses(NotFound) | _TABLE,
)
def read_csv(job: JobDep, db: DatabaseDep) -> StreamingResponse:
    """All rows there are, oldest first, with the fields that polling gives: numbers to their last digit, times in RFC
    3339, null as nothing.
    """
    pages = sinks.pages(db, job.id, until=job.last_seq)
    first = next(pages, [])  # now: when the database is away, there can still be another answer
    return StreamingResponse(
        chain([CSV_HEADER, csv_lines(first)], map(csv_lines, pages)),
        media_type="text/csv",
        headers={"Content-Disposition": f'attachment; filename="{job.id}-metrics.csv"'},
    )


@router.get(
    "/stream",
    operation_id="stream_job",
    summary="Follow a job as server-sent events",
    response_class=EventSourceResponse,
    responses=responses(NotFound, TooManyStreams),
)
async def stream(
    request: Request, follower: FollowerDep, query: Annotated[StreamQuery, Query()], last_event_id: LastEventId = 0
) -> AsyncIterator[ServerSentEvent]:
    """`metrics`: a row of the metrics, with its `seq` as the event's id, so that a client that lost the connection goes
    on where it was (`Last-Event-ID`, which browsers send by themselves). `status`: the job's status, phase and
    progress, whenever one has changed. `end`: nothing more will come; close the connection, or a browser opens it anew.
    """
    keys, known = request.app.state.keys, request.state.known
    since, mark = max(last_event_id, query.since), None
    yield ServerSentEvent(retry=_RECONNECT_MS, comment="follows")
    while not follower.is_over and keys.accepts(known):
        news = await follower.news(since, _ROWS)
        for row in news:
            yield ServerSentEvent(event="metrics", id=str(row.seq), raw_data=row.json)
            since = row.seq
        if len(news) == _ROWS:
            continue
        if mark is not None and mark.is_terminal:  # when it was asked for the rows it had ended
            yield ServerSentEvent(event="end", data={"status": mark.status})
            return
        change = await follower.change(mark, _IDLE_SECONDS)
        if change is not None:
            mark = change
            yield ServerSentEvent(event="status", data=_told(mark))


async def _news(follower: Follower, is_behind: Callable[[], bool], since: int, seconds: float) -> None:
    """Until there is a row behind `since`, or the job has ended; so long at most.

    That the newest `seq` is behind `since` says nothing: its row may have been forgotten. So only a newer one does,
    and the rows are asked for once more, since one may have come before that was known.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    mark = await follower.change(None, seconds)
    if mark is None or mark.is_terminal or await run_in_threadpool(is_behind):
        return
    newest = max(since, mark.last_seq)
    while (left := deadline - asyncio.get_running_loop().time()) > 0:
        mark = await follower.change(mark, left)
        if mark is None or mark.last_seq > newest or mark.is_terminal:
            return


def _is_behind(db: Database, job_id: str, since: int) -> bool:
    return bool(records.epochs(db, job_id, since=since, limit=1))


def _page(db: Database, job_id: str, query: MetricsQuery, caller: Caller) -> tuple[Job, list[Epoch]]:
    return following.page(db, job_id, since=query.since, limit=query.limit, caller=caller)


def _tagged(body: BaseModel, known: str | None, headers: dict[str, str]) -> Response:
    content = body.model_dump_json().encode()
    tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
    headers |= {"ETag": tag, "Cache-Control": "no-cache"}
    if known is not None and tag in (each.strip().removeprefix("W/") for each in known.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")


def _next_row(job: Job, rows: list[Epoch]) -> int:
    """About when the next epoch will be over, in seconds."""
    if job.status != Status.RUNNING or not rows:
        return 1
    return min(max(math.ceil(rows[-1].train_seconds + rows[-1].test_seconds), 1), _LONGEST_RETRY)


def _told(mark: Mark) -> dict[str, Any]:
    progress = {"epoch": mark.epoch, "batch": mark.batch, "batches": mark.batches}
    return {"status": mark.status, "phase": mark.phase, "attempt": mark.attempt, "progress": progress}
