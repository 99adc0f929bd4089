"""Predictions for many pictures at once: an archive's, or a dataset's. The answer is a stream."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from worker.jobs import errors, versions
from worker.jobs.db import Database
from worker.jobs.ids import new_id
from worker.jobs.owners import Caller
from worker.jobs.wire import BatchRequest, OfDataset

from service.deps import CallerDep, DatabaseDep, PredictorDep, ResolverDep, SettingsDep, require_space
from service.errors import responses
from service.uploads import ARCHIVE, received_file
from service.which import Which, WhoAnswers

router = APIRouter(tags=["predict"])


async def _held() -> AsyncIterator[AsyncExitStack]:
    """What is let go when the answer is sent, or its client has left, even before it began."""
    async with AsyncExitStack() as stack:
        yield stack


HeldDep = Annotated[AsyncExitStack, Depends(_held)]

_MEDIA = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
_FILE = {"type": "string", "format": "binary", "description": "A zip, tar or tar.gz"}
_REQUEST_BODY: dict[str, Any] = {
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {ARCHIVE: _FILE},
                "required": [ARCHIVE],
                "additionalProperties": False,
            },
            "encoding": {ARCHIVE: {"contentType": "application/zip"}},
        },
        "application/zip": {"schema": _FILE},
        "application/x-tar": {"schema": _FILE},
        "application/gzip": {"schema": _FILE},
    },
}


class BatchQuery(WhoAnswers):
    checkpoint: Which | None = None
    top_k: int = Field(5, ge=1, le=1000, description="How many classes to name (NDJSON)")
    auto_fix: bool = Field(False, description="As in `POST /predict`; an archive's pictures only")
    format: Literal["csv", "ndjson"] | None = Field(None, description="Unset: what `Accept` says, else `ndjson`")
    dataset: str | None = Field(None, max_length=64, description="Instead of an archive: a dataset that is ready")
    version: int | None = Field(None, ge=1, lt=2**31, description="Of the dataset; unset: the newest")
    split: Literal["train", "test"] = Field("test", description="Of the dataset")


@router.post(
    "/predict/batch",
    summary="Ask for the classes of many pictures",
    openapi_extra={"requestBody": _REQUEST_BODY},
    response_class=StreamingResponse,
    dependencies=[Depends(require_space)],
    responses=responses(
        errors.InvalidRequest,
        errors.NotFound,
        errors.NotReady,
        errors.Conflict,
        errors.CheckpointCorrupt,
        errors.BadArchive,
        errors.DiskFull,
        errors.PredictorUnavailable,
        errors.CrossSite,
    )
    | {
        200: {
            "description": "A line for each picture. NDJSON begins with `{job, epoch, total}` and ends with `{done, "
            "failed, seconds}` and for a dataset `accuracy`; each line has `number` and `of`. A picture that cannot be "
            "read has `error` instead of a prediction. An answer without its last line broke off; in NDJSON a line "
            "`{error, code}` then says why.",
            "content": {kind: {"schema": {"type": "string"}} for kind in _MEDIA.values()},
        }
    },
)
async def predict_batch(
    request: Request,
    db: DatabaseDep,
    predictor: PredictorDep,
    resolver: ResolverDep,
    settings: SettingsDep,
    caller: CallerDep,
    held: HeldDep,
    query: Annotated[BatchQuery, Query()],
) -> StreamingResponse:
    """Send a zip, tar or tar.gz as the body or in the form field `archive`; or no body, and name a `dataset`.

    Lines come while the pictures are worked on, in the archive's order, as NDJSON or CSV.
    """
    row = await resolver.find(job=query.job, model=query.model, which=query.checkpoint)
    kind = query.format or _accepted(request.headers.get("accept", ""))
    asked = BatchRequest(
        path=row.path,
        sha256=row.sha256,
        format=kind,
        top_k=query.top_k,
        auto_fix=query.auto_fix,
        split=query.split,
        threads=resolver.threads,
    )
    if query.dataset is None:
        archive = f"uploads/{new_id()}.receiving"
        receiving = received_file(request, settings.data_dir / archive, ARCHIVE, spare_bytes=settings.min_free_bytes)
        await held.enter_async_context(receiving)
        # The process removes what it unpacks, unless it is killed.
        held.callback((settings.data_dir / f"{archive}.pictures").unlink, missing_ok=True)
        asked = asked.model_copy(update={"archive": archive})
    else:
        dataset = await run_in_threadpool(_dataset, db, query.dataset, query.version, caller)
        asked = asked.model_copy(update={"dataset": dataset})
    lines = await held.enter_async_context(predictor.errand(asked))
    first = await _first(lines, request)  # what is refused as a whole is refused with its own status
    headers = {"Epochd-Job": row.job_id, "Epochd-Epoch": str(row.epoch), "Epochd-Checkpoint-Sha256": row.sha256}
    headers["Content-Disposition"] = f'attachment; filename="{row.job_id}-epoch-{row.epoch}.{kind}"'
    return StreamingResponse(_stream(first, lines, kind), media_type=_MEDIA[kind], headers=headers)


def _accepted(accept: str) -> Literal["csv", "ndjson"]:
    """What is named first."""
    named = [each.partition(";")[0].strip() for each in accept.lower().split(",")]
    return "csv" if _MEDIA["csv"] in named and _MEDIA["ndjson"] not in named[: named.index(_MEDIA["csv"])] else "ndjson"


async def _first(lines: AsyncIterator[bytes], request: Request) -> bytes:
    """Raises what the errand raises, and InvalidRequest when the client leaves before."""
    first, left = asyncio.ensure_future(anext(lines)), asyncio.create_task(_left(request))
    try:
        await asyncio.wait({first, left}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            raise errors.InvalidRequest("The client has left.")
        return first.result()
    finally:
        first.cancel()
        left.cancel()
        await asyncio.gather(first, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(first: bytes, lines: AsyncIterator[bytes], kind: str) -> AsyncIterator[bytes]:
    """Raises what the errand raises, so that the connection breaks: a status has long been sent. NDJSON says why."""
    yield first
    try:
        async for line in lines:
            yield line
    except errors.EpochdError as error:
        if kind == "ndjson":
            yield json.dumps({"error": error.detail, "code": error.code}).encode() + b"\n"
        raise


def _dataset(db: Database, name: str, version: int | None, caller: Caller) -> OfDataset:
    """Raises NotFound and NotReady."""
    dataset = versions.prepared(versions.get(db, name, version, caller))
    if dataset is None:
        raise errors.NotReady("The dataset is not ready; `GET /datasets/{name}` says why.")
    return dataset
