"""Prediction: a picture goes in, its class comes out."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from worker.jobs import errors, queue, records
from worker.jobs.db import Database
from worker.jobs.errors import InvalidRequest
from worker.jobs.records import KeptCheckpoint
from worker.jobs.tables import Checkpoint

from service.bodies.predict import AnsweredBy, PredictBody
from service.deps import DatabaseDep, PredictorDep
from service.errors import responses
from service.predictor import Predictor
from service.which import Which

router = APIRouter(tags=["predict"])

_MAX_IMAGES = 64
_BINARY = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": _BINARY, "maxItems": _MAX_IMAGES}},
                "required": ["image"],
            }
        },
        "image/*": {"schema": _BINARY},
    },
}


class PredictQuery(BaseModel, extra="forbid"):
    job: str | None = Field(None, max_length=64, description="Which job answers; unset: the newest that succeeded")
    checkpoint: Which = "best"
    top_k: int = Field(5, ge=1, le=1000, description="How many classes to name, likeliest first")


@router.post(
    "/predict",
    summary="Ask for the class of a picture",
    openapi_extra={"requestBody": _REQUEST_BODY},
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
async def predict(
    request: Request, db: DatabaseDep, predictor: PredictorDep, query: Annotated[PredictQuery, Query()]
) -> PredictBody:
    """Multipart with one or more `image` parts, or the picture's file itself as the body (JPEG, PNG, WebP, BMP, GIF).

    The checkpoint's own preprocessing is applied: any size, grey or colour, is fitted to what the network was
    trained on.
    """
    images = await _images(request)
    row = (await run_in_threadpool(_find, db, query)).row
    try:
        return await _answer(predictor, row, images, query.top_k)
    except errors.CheckpointCorrupt:
        again = (await run_in_threadpool(_find, db, query)).row
        if again.path == row.path:
            raise
        return await _answer(predictor, again, images, query.top_k)  # the one before was not kept


async def _answer(predictor: Predictor, row: Checkpoint, images: list[bytes], top_k: int) -> PredictBody:
    predictions = []
    for number, image in enumerate(images, start=1):
        try:
            answer = await predictor.predict(path=row.path, sha256=row.sha256, top_k=top_k, image=image)
        except (errors.BadImage, errors.ImageTooLarge) as error:
            which = f"Picture {number} of {len(images)}: " if len(images) > 1 else ""
            raise type(error)(which + error.detail) from error
        predictions.append(answer)
    answered_by = AnsweredBy(epoch=row.epoch, sha256=row.sha256)
    return PredictBody(job=row.job_id, checkpoint=answered_by, predictions=predictions)


def _find(db: Database, query: PredictQuery) -> KeptCheckpoint:
    job_id = query.job or records.newest_succeeded(db)
    return records.checkpoint(db, queue.get(db, job_id).id, query.checkpoint)


async def _images(request: Request) -> list[bytes]:
    """The pictures' files in the request. Raises InvalidRequest and UnsupportedMediaType."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=_MAX_IMAGES, max_fields=_MAX_IMAGES) as form:
            parts = form.getlist("image")
            images = [await part.read() for part in parts if isinstance(part, UploadFile)]
        if len(images) < max(len(parts), 1) or set(form) != {"image"}:
            raise InvalidRequest("Send the picture as a file in the form field `image` (curl: -F image=@shoe.png).")
    elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
        images = [await request.body()]
    else:
        raise errors.UnsupportedMediaType(
            "Send a form with an `image` file (curl: -F image=@shoe.png), or the picture itself as image/png."
        )
    if not all(images):
        raise InvalidRequest("The picture is empty.")
    return images
