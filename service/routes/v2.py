"""The Open Inference Protocol, version 2: for clients that send tensors, such as `tritonclient[http]`.

A model's name is an alias, a job's id, or `default`; a version is the number of an epoch.
"""

import json
import zlib
from collections.abc import Callable, Coroutine
from importlib.metadata import version as version_of
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from worker.jobs import open_inference, records
from worker.jobs.errors import (
    BodyTooLarge,
    CheckpointCorrupt,
    CrossSite,
    EpochdError,
    InvalidRequest,
    NotFound,
    NotReady,
    PredictorUnavailable,
    UnsupportedMediaType,
)
from worker.jobs.tables import Checkpoint
from worker.jobs.wire import InferRequest

from service.deps import DatabaseDep, PredictorDep, ResolverDep, SettingsDep
from service.errors import request_id, response_to, responses
from service.resolving import DEFAULT, Resolver

_JSON_LENGTH: Final = 4  # bytes, before the predictor's answer
_BINARY_HEADER: Final = "Inference-Header-Content-Length"
_WINDOW: Final = {"gzip": 31, "deflate": 15}  # zlib's `wbits`


class _Route(APIRoute):
    """Problems have the protocol's field `error` too: its clients show nothing else."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except EpochdError as error:
                problem = response_to(error, request_id(request))
                body = json.loads(bytes(problem.body))
                kept = {name: problem.headers[name] for name in ("retry-after",) if name in problem.headers}
                return JSONResponse(body | {"error": body["detail"]}, problem.status_code, kept)

        return handled


router = APIRouter(prefix="/v2", tags=["open inference protocol"], route_class=_Route)

NamePath = Annotated[str, Path(max_length=64, description="An alias, a job's id, or `default`")]
VersionPath = Annotated[int, Path(ge=1, lt=10**9, description="The number of an epoch")]
_problems = responses(NotFound, NotReady, CheckpointCorrupt)


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any number of pictures")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="The epochs whose checkpoints are kept")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


@router.get("", summary="Say who serves")
def server() -> ServerMetadata:
    return ServerMetadata(name="epochd", version=version_of("epochd"), extensions=["binary_tensor_data"])


@router.get("/health/live", summary="Say that the service lives")
def live() -> dict[str, bool]:
    return {"live": True}


@router.get("/health/ready", summary="Say whether pictures are answered", responses=responses(PredictorUnavailable))
def ready(predictor: PredictorDep) -> dict[str, bool]:
    if not predictor.ready:
        raise PredictorUnavailable
    return {"ready": True}


@router.get("/models/{name}", summary="Look at a model's tensors", responses=_problems)
async def model(name: NamePath, resolver: ResolverDep, db: DatabaseDep, settings: SettingsDep) -> ModelMetadata:
    row = await _found(resolver, name, None)
    kept = await run_in_threadpool(records.checkpoints, db, row.job_id)
    tensors = await run_in_threadpool(open_inference.tensors, settings.data_dir / row.path)
    versions = [str(each.row.epoch) for each in kept]
    return ModelMetadata.model_validate({"name": name, "versions": versions, "platform": "pytorch", **tensors})


@router.get("/models/{name}/versions/{version}", summary="Look at a version's tensors", responses=_problems)
async def model_version(
    name: NamePath, version: VersionPath, resolver: ResolverDep, settings: SettingsDep
) -> ModelMetadata:
    row = await _found(resolver, name, version)
    tensors = await run_in_threadpool(open_inference.tensors, settings.data_dir / row.path)
    return ModelMetadata.model_validate({"name": name, "versions": [str(version)], "platform": "pytorch", **tensors})


@router.get("/models/{name}/ready", summary="Say whether a model answers", responses=_problems)
async def model_ready(name: NamePath, resolver: ResolverDep) -> dict[str, bool]:
    await _found(resolver, name, None)
    return {"ready": True}


@router.get("/models/{name}/versions/{version}/ready", summary="Say whether a version answers", responses=_problems)
async def version_ready(name: NamePath, version: VersionPath, resolver: ResolverDep) -> dict[str, bool]:
    await _found(resolver, name, version)
    return {"ready": True}


_INFER: dict[str, Any] = {
    "responses": _problems | responses(InvalidRequest, UnsupportedMediaType, PredictorUnavailable, CrossSite),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"type": "object"}},
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
    body = _unpacked(request, await request.body(), settings.max_image_bytes)
    json_bytes = _json_bytes(request, body)
    row = await _found(resolver, name, version)
    asked = InferRequest(
        path=row.path,
        sha256=row.sha256,
        json_bytes=json_bytes,
        model_name=name,
        model_version=str(row.epoch),
        threads=resolver.threads,
    )
    answer = await predictor.ask(asked, body)
    length = int.from_bytes(answer[:_JSON_LENGTH], "big")
    contents = answer[_JSON_LENGTH:]
    if len(contents) == length:
        return Response(contents, media_type="application/json")
    return Response(contents, media_type="application/octet-stream", headers={_BINARY_HEADER: str(length)})


async def _found(resolver: Resolver, name: str, version: int | None) -> Checkpoint:
    which = None if version is None else str(version)
    if name == DEFAULT:
        return await resolver.find(which=which)
    try:
        return await resolver.find(model=name, which=which)
    except NotFound:
        return await resolver.find(job=name, which=which)


def _json_bytes(request: Request, body: bytes) -> int:
    said = request.headers.get(_BINARY_HEADER)
    if said is None:
        return len(body)
    if not said.isdecimal() or int(said) > len(body):
        raise InvalidRequest(f"{_BINARY_HEADER} is the length of the JSON at the beginning of the body, in bytes.")
    return int(said)


def _unpacked(request: Request, body: bytes, most_bytes: int) -> bytes:
    """Raises BodyTooLarge and UnsupportedMediaType."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
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
