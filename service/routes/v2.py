"""The Open Inference Protocol, version 2: for clients that send tensors, such as `tritonclient[http]`.

A model's name is an alias, a job's id, or `default`; a version is the number of an epoch.
"""

import json
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, TypeVar

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from worker.jobs import open_inference, records
from worker.jobs.errors import (
    BodyTooLarge,
    CheckpointCorrupt,
    CrossSite,
    DatabaseUnavailable,
    InvalidRequest,
    NotFound,
    NotReady,
    PredictorUnavailable,
    UnsupportedMediaType,
)
from worker.jobs.tables import Checkpoint
from worker.jobs.wire import InferRequest

from service.bodies.v2 import ModelMetadata, ModelReady, ServerMetadata
from service.deps import DatabaseDep, PredictorDep, ResolverDep, SettingsDep
from service.errors import responses
from service.predictor import Predictor
from service.resolving import DEFAULT, CallerResolver

_JSON_LENGTH: Final = 4  # bytes, before the predictor's answer
_BINARY_HEADER: Final = "Inference-Header-Content-Length"
_MOST_DIGITS: Final = 12  # of what that says
_WINDOW: Final = {"gzip": 31, "deflate": 15}  # zlib's `wbits`
_EXTENSIONS: Final = ["binary_tensor_data", "classification"]
_T = TypeVar("_T")


class _Route(APIRoute):
    """Problems, made as everywhere, have the protocol's field `error` too: its clients show nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except Exception as error:
                handlers = request.app.exception_handlers
                kind = next(each for each in type(error).__mro__ if each in handlers or each is Exception)
                if kind is Exception:  # of nobody's making; the app's own handler is asked
                    raise
                return _with_error(handlers[kind](request, error))

        return handled


def _with_error(problem: Response) -> Response:
    body = json.loads(bytes(problem.body))
    headers = {name: value for name, value in problem.headers.items() if name != "content-length"}
    return JSONResponse(body | {"error": body["detail"]}, problem.status_code, headers)


router = APIRouter(
    prefix="/v2",
    tags=["open inference protocol"],
    route_class=_Route,
    generate_unique_id_function=lambda route: f"v2_{route.name}",
)

NamePath = Annotated[str, Path(max_length=64, description="An alias, a job's id, or `default`")]
VersionPath = Annotated[int, Path(ge=1, lt=10**9, description="The number of an epoch")]
_problems = responses(NotFound, NotReady, CheckpointCorrupt)
_READY = _problems | responses(PredictorUnavailable, DatabaseUnavailable)


@router.get("", summary="Say who serves")
async def server() -> ServerMetadata:
    return ServerMetadata(name="epochd", version=version_of("epochd"), extensions=_EXTENSIONS)


@router.get("/health/live", summary="Say that the service lives")
async def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", summary="Say whether pictures are answered", responses=responses(PredictorUnavailable))
async def ready(predictor: PredictorDep) -> dict[str, bool]:
    _require_ready(predictor)
    return {"ready": True}


@router.get("/models/{name}", summary="Look at a model's tensors", responses=_problems)
async def model(name: NamePath, resolver: ResolverDep, db: DatabaseDep, settings: SettingsDep) -> ModelMetadata:
    row, tensors = await _of_checkpoint(resolver, name, None, partial(_tensors, settings.data_dir))
    kept = await run_in_threadpool(records.checkpoints, db, row.job_id)
    versions = [str(each.row.epoch) for each in kept]
    return ModelMetadata.model_validate({"name": name, "versions": versions, "platform": "pytorch", **tensors})


@router.get("/models/{name}/versions/{version}", summary="Look at a version's tensors", responses=_problems)
async def model_version(
    name: NamePath, version: VersionPath, resolver: ResolverDep, settings: SettingsDep
) -> ModelMetadata:
    _, tensors = await _of_checkpoint(resolver, name, version, partial(_tensors, settings.data_dir))
    return ModelMetadata.model_validate({"name": name, "versions": [str(version)], "platform": "pytorch", **tensors})


@router.get("/models/{name}/ready", summary="Say whether a model answers", responses=_READY)
async def model_ready(name: NamePath, resolver: ResolverDep, predictor: PredictorDep) -> ModelReady:
    await _found(resolver, name, None)
    _require_ready(predictor)
    return ModelReady(name=name, ready=True)


@router.get("/models/{name}/versions/{version}/ready", summary="Say whether a version answers", responses=_READY)
async def version_ready(
    name: NamePath, version: VersionPath, resolver: ResolverDep, predictor: PredictorDep
) -> ModelReady:
    await _found(resolver, name, version)
    _require_ready(predictor)
    return ModelReady(name=name, ready=True)


_INFER: dict[str, Any] = {
    "responses": _READY
    | responses(InvalidRequest, BodyTooLarge, UnsupportedMediaType, CrossSite)
    | {
        200: {
            "description": "The outputs: as JSON, or where binary ones are asked for, JSON and the tensors behind it",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferBody"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
    "response_class": Response,
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequestBody"}},
                "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}


@router.post("/models/{name}/infer", summary="Have tensors computed", **_INFER)
async def infer(
    request: Request, name: NamePath, resolver: ResolverDep, predictor: PredictorDep, settings: SettingsDep
) -> Response:
    """The input `pixels` is N x channels x height x width of the pictures that the network was trained on, as FP32 in
    0..1 (what ToTensor gives) or as UINT8; the checkpoint's normalisation and scaling follow. As JSON, or as binary
    tensors behind it with the header `Inference-Header-Content-Length`.
    """
    return await _inferred(request, name, None, resolver, predictor, settings)


@router.post("/models/{name}/versions/{version}/infer", summary="Have tensors computed by a version", **_INFER)
async def infer_version(
    request: Request,
    name: NamePath,
    version: VersionPath,
    resolver: ResolverDep,
    predictor: PredictorDep,
    settings: SettingsDep,
) -> Response:
    return await _inferred(request, name, version, resolver, predictor, settings)


async def _inferred(
    request: Request,
    name: str,
    version: int | None,
    resolver: ResolverDep,
    predictor: PredictorDep,
    settings: SettingsDep,
) -> Response:
    body = await request.body()
    if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) != "identity":
        body = await run_in_threadpool(_unpacked, encoding, body, settings.max_image_bytes)
    json_bytes = _json_bytes(request, body)

    async def ask(row: Checkpoint) -> bytes:
        asked = InferRequest(
            path=row.path,
            sha256=row.sha256,
            json_bytes=json_bytes,
            model_name=name,
            model_version=str(row.epoch),
            threads=resolver.threads,
        )
        return await predictor.ask(asked, body)

    _, answer = await _of_checkpoint(resolver, name, version, ask)
    length = int.from_bytes(answer[:_JSON_LENGTH], "big")
    contents = answer[_JSON_LENGTH:]
    if len(contents) == length:
        return Response(contents, media_type="application/json")
    return Response(contents, media_type="application/octet-stream", headers={_BINARY_HEADER: str(length)})


async def _of_checkpoint(
    resolver: CallerResolver, name: str, version: int | None, find: Callable[[Checkpoint], Awaitable[_T]]
) -> tuple[Checkpoint, _T]:
    """What `find` finds, and of which checkpoint. Raises NotFound, NotReady and CheckpointCorrupt."""
    row = await _found(resolver, name, version)
    try:
        return row, await find(row)
    except CheckpointCorrupt:
        resolver.forget()
        again = await _found(resolver, name, version)
        if again.path == row.path:
            raise
        return again, await find(again)  # the one before was not kept


async def _found(resolver: CallerResolver, name: str, version: int | None) -> Checkpoint:
    which = None if version is None else str(version)
    if name == DEFAULT:
        return await resolver.find(which=which)
    try:
        return await resolver.find(model=name, which=which)
    except NotFound:
        with suppress(NotFound):
            return await resolver.find(job=name, which=which)
    raise NotFound(
        "No alias and no job has this name, or it did not keep this version: GET /v2/models/{name} lists them."
    )


async def _tensors(data_dir: FilePath, row: Checkpoint) -> dict[str, Any]:
    return await run_in_threadpool(open_inference.tensors, data_dir / row.path)


def _require_ready(predictor: Predictor) -> None:
    if not predictor.ready:
        raise PredictorUnavailable


def _json_bytes(request: Request, body: bytes) -> int:
    said = request.headers.get(_BINARY_HEADER)
    if said is None:
        return len(body)
    if not said.isdecimal() or len(said) > _MOST_DIGITS or int(said) > len(body):
        raise InvalidRequest(f"{_BINARY_HEADER} is the length of the JSON at the beginning of the body, in bytes.")
    return int(said)


def _unpacked(encoding: str, body: bytes, most_bytes: int) -> bytes:
    """Raises BodyTooLarge, InvalidRequest and UnsupportedMediaType."""
    if encoding not in _WINDOW:
        raise UnsupportedMediaType(f"A body may be packed as {' or '.join(_WINDOW)}.")
    inflating = zlib.decompressobj(_WINDOW[encoding])
    try:
        unpacked = inflating.decompress(body, most_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest("The body is not packed as its header says.") from error
    if len(unpacked) > most_bytes:
        raise BodyTooLarge
    if not inflating.eof:
        raise InvalidRequest("The body is cut off.")
    return unpacked
