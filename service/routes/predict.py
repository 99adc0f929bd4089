"""Prediction: a picture goes in, its class comes out.

The route is documented as any other, and handled below FastAPI's: `lean` is asked first. What it raises goes through
the one table of errors like everything else.
"""

import asyncio
import time
from functools import lru_cache
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

from fastapi import APIRouter, Query
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from worker.jobs import errors, records
from worker.jobs.tables import Checkpoint

from service import pictures
from service.bodies.predict import EpochsBody, PredictBody
from service.errors import responses
from service.measures import Measures
from service.predictor import Predictor
from service.resolving import CallerResolver
from service.which import WhichOrAll, WhoAnswers

router = APIRouter(tags=["predict"])

_PATH: Final = "/predict"
_TRIES: Final = 5  # while a training replaces its checkpoints faster than they are asked
_REPLACED: Final = "The job's checkpoints are replaced faster than they can be asked; try again in a moment."
_MOST_ANSWERS: Final = 4096  # of `checkpoint=all`: pictures times epochs
_BINARY = {"type": "string", "format": "binary", "minLength": 1}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": pictures.MOST}},
                "required": ["image"],
                "additionalProperties": False,
            }
        },
        "image/*": {"schema": _BINARY},
    },
}


class PredictQuery(WhoAnswers):
    checkpoint: WhichOrAll | None = None
    top_k: int = Field(5, ge=1, le=1000, description="How many classes to name, likeliest first")
    auto_fix: bool = Field(
        False, description="Mend what the warnings say: polarity, orientation, crop; `fixed` says what was done"
    )


@router.post(
    _PATH,
    summary="Ask for the class of a picture",
    openapi_extra={"requestBody": _REQUEST_BODY},
    response_model=PredictBody | EpochsBody,
    responses=responses(
        errors.InvalidRequest,
        errors.NotFound,
        errors.NotReady,
        errors.CheckpointCorrupt,
        errors.ImageTooLarge,
        errors.UnsupportedMediaType,
        errors.BadImage,
        errors.PredictorUnavailable,
        errors.DatabaseUnavailable,
        errors.CrossSite,
    ),
)
async def predict(query: Annotated[PredictQuery, Query()]) -> None:  # noqa: ARG001
    """Multipart with one or more `image` parts, or the picture's file itself as the body (JPEG, PNG, WebP, BMP, GIF).

    The checkpoint's own preprocessing is applied: any size, grey or colour, is fitted to what the network was
    trained on. The header `Server-Timing` says how long reading, looking up and predicting took, in milliseconds.
    """
    raise AssertionError("`lean` is asked first")


def lean(most_bytes: int) -> Route:
    """What handles POST /predict, to be put before all other routes."""
    return Route(_PATH, _Lean(most_bytes), methods=["POST"], include_in_schema=False)


class _Lean:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.perf_counter()
        measures: Measures = scope["app"].state.measures
        try:
            await self._answer(begun, scope, receive, send)
        except Exception as error:
            measures.predict_failed(error)
            raise
        measures.predict_seconds.observe(time.perf_counter() - begun)

    async def _answer(self, begun: float, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        query = _query(scope["query_string"])
        body = await pictures.read(receive, headers, self._most_bytes)
        images = pictures.pictures(headers.get("content-type", ""), body)
        read = time.perf_counter()
        state = scope["app"].state
        resolver = CallerResolver(state.resolver, scope["state"]["caller"])
        asked = _Asked(resolver, state.predictor, query, images)
        answer, found = await (asked.all() if query.checkpoint == "all" else asked.one())
        done = time.perf_counter()
        timing = f"read;dur={_ms(begun, read)}, find;dur={_ms(read, found)}, predict;dur={_ms(found, done)}"
        sent = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(answer)).encode()),
            (b"server-timing", timing.encode()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        await send({"type": "http.response.body", "body": answer})


class _Asked:
    """One request's question. The answers come as JSON from the predictor and are put together as they are."""

    def __init__(
        self, resolver: CallerResolver, predictor: Predictor, query: PredictQuery, images: list[bytes]
    ) -> None:
        self._resolver, self._predictor, self._query, self._images = resolver, predictor, query, images

    async def one(self) -> tuple[bytes, float]:
        """The body, and when it was known who answers."""
        row = await self._find()
        found = time.perf_counter()
        for _ in range(_TRIES):
            try:
                predictions = await self._predictions(row)
            except errors.CheckpointCorrupt:
                self._resolver.forget()
                again = await self._find()
                if again.path == row.path:
                    raise
                row = again  # the one before was not kept
            else:
                return b'{"job":"%b",%b}' % (row.job_id.encode(), _by(row, predictions)), found
        raise errors.PredictorUnavailable(_REPLACED)

    async def all(self) -> tuple[bytes, float]:
        row = await self._find("best")
        kept = await run_in_threadpool(records.checkpoints, self._resolver.resolver.db, row.job_id)
        found = time.perf_counter()
        if len(kept) * len(self._images) > _MOST_ANSWERS:
            raise errors.InvalidRequest(
                f"The job has {len(kept)} checkpoints, so that would be more than {_MOST_ANSWERS} answers: "
                "send fewer pictures."
            )
        told = []
        for each in kept:
            try:
                predictions = await self._predictions(each.row)
            except errors.CheckpointCorrupt:
                now = await run_in_threadpool(records.checkpoints, self._resolver.resolver.db, row.job_id)
                if any(other.row.path == each.row.path for other in now):
                    raise
                continue  # it was not kept
            told.append(b"{%b}" % _by(each.row, predictions))
        if kept and not told:
            raise errors.PredictorUnavailable(_REPLACED)
        return b'{"job":"%b","epochs":[%b]}' % (row.job_id.encode(), b",".join(told)), found

    async def _find(self, which: str | None = None) -> Checkpoint:
        query = self._query
        return await self._resolver.find(job=query.job, model=query.model, which=which or query.checkpoint)

    async def _predictions(self, row: Checkpoint) -> list[bytes]:
        if len(self._images) == 1:
            return [await self._predict(row, self._images[0])]
        self._predictor.require_room(len(self._images))
        tasks = [asyncio.ensure_future(self._predict(row, image)) for image in self._images]
        try:
            return [await self._numbered(number, task) for number, task in enumerate(tasks, start=1)]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _predict(self, row: Checkpoint, image: bytes) -> bytes:
        return await self._predictor.predict(
            path=row.path,
            sha256=row.sha256,
            image=image,
            top_k=self._query.top_k,
            auto_fix=self._query.auto_fix,
            threads=self._resolver.threads,
        )

    async def _numbered(self, number: int, task: asyncio.Future[bytes]) -> bytes:
        try:
            return await task
        except (errors.BadImage, errors.ImageTooLarge) as error:
            raise type(error)(f"Picture {number} of {len(self._images)}: {error.detail}") from error


def _by(row: Checkpoint, predictions: list[bytes]) -> bytes:
    who = f'"checkpoint":{{"epoch":{row.epoch},"sha256":"{row.sha256}"}}'
    return b'%b,"predictions":[%b]' % (who.encode(), b",".join(predictions))


def _ms(begun: float, ended: float) -> str:
    return f"{1000 * (ended - begun):.2f}"


@lru_cache(maxsize=256)
def _query(text: bytes) -> PredictQuery:
    """Raises RequestValidationError."""
    try:
        pairs = parse_qsl(text.decode("latin-1"), keep_blank_values=True, max_num_fields=20)
    except ValueError as error:
        raise errors.InvalidRequest("The address has too many parameters.") from error
    try:
        return PredictQuery.model_validate(dict(pairs))
    except ValidationError as error:
        found = [
            each | {"loc": ("query", *each["loc"])} for each in error.errors(include_url=False, include_input=False)
        ]
        raise RequestValidationError(found) from error
