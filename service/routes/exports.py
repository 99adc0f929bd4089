"""Models for other programs, and from other instances of this one."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path as FilePath
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from worker.jobs import aliases, errors, imports, records, versions
from worker.jobs.bundle import BundleCard, Imported, Metrics
from worker.jobs.db import Database
from worker.jobs.errors import BadBundle, CheckpointCorrupt, NotFound
from worker.jobs.files import remove_folder
from worker.jobs.ids import new_id
from worker.jobs.leftovers import checkpoints_folder, folder
from worker.jobs.records import KeptCheckpoint
from worker.jobs.settings import Settings
from worker.jobs.spec import Name
from worker.jobs.tables import Job
from worker.jobs.wire import ExportRequest, ImportRequest, OfDataset

from service.bodies.jobs import JobBody
from service.deps import CallerDep, DatabaseDep, JobDep, PredictorDep, ResolverDep, SettingsDep, require_space
from service.downloads import OpenFileResponse
from service.errors import responses
from service.predictor import Predictor
from service.routes import checkpoints
from service.uploads import received_file
from service.which import Which
from service.whole import whole

router = APIRouter(tags=["models"])

_FORM_FIELD: Final = "bundle"
_ENDINGS: Final = {"pt2": "pt2", "onnx": "onnx", "bundle": "zip"}
_MEDIA: Final = {"pt2": "application/octet-stream", "onnx": "application/octet-stream", "bundle": "application/zip"}
_TRY_SECONDS: Final = 600  # that a stranger's network may compute; only two errands are under way at a time
_LEFT_SECONDS: Final = 3600  # what a killed export left is younger than one that is under way never is
_FILE = {"type": "string", "format": "binary", "description": "A bundle"}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {_FORM_FIELD: _FILE},
                "required": [_FORM_FIELD],
                "additionalProperties": False,
            },
            "encoding": {_FORM_FIELD: {"contentType": "application/zip"}},
        },
        "application/zip": {"schema": _FILE},
    },
}


class ExportQuery(BaseModel, extra="forbid"):
    format: Literal["safetensors", "pt2", "onnx", "bundle"] = Field(
        description="`safetensors`: the weights, as the address without `/export` gives them; `pt2`: a program of "
        "torch.export; `onnx`; `bundle`: a zip that `POST /models/import` takes"
    )


class ImportQuery(BaseModel, extra="forbid"):
    alias: Name | None = Field(None, description="Have this alias point at the model")


@router.get(
    "/jobs/{job_id}/checkpoints/{which}/export",
    operation_id="export_checkpoint",
    summary="Download a checkpoint for other programs",
    response_class=FileResponse,
    responses=responses(
        NotFound,
        errors.NotReady,
        errors.CheckpointCorrupt,
        errors.NotExportable,
        errors.DatasetChanged,
        errors.DiskFull,
        errors.PredictorUnavailable,
    )
    | {
        200: {
            "description": "The file",
            "content": {kind: {"schema": _FILE | {"description": "The file"}} for kind in sorted(set(_MEDIA.values()))},
        }
    },
)
async def export(
    job: JobDep,
    db: DatabaseDep,
    settings: SettingsDep,
    predictor: PredictorDep,
    which: Annotated[Which, Path()],
    query: Annotated[ExportQuery, Query()],
) -> FileResponse:
    """Programs take uint8 pictures (N x channels x height x width, any N) and give the network's outputs; normalising
    and scaling are inside. What was written is run and compared with the checkpoint before it is sent; large networks
    in ONNX only where `onnxruntime` is installed.
    """
    if query.format == "safetensors":
        return await run_in_threadpool(checkpoints.download, job, db, settings, which)
    await run_in_threadpool(require_space, settings)
    kept = await run_in_threadpool(records.checkpoint, db, job.id, which)
    while True:
        try:
            return await _exported(query.format, job, kept, db, settings, predictor)
        except CheckpointCorrupt:
            again = await run_in_threadpool(records.checkpoint, db, job.id, which)
            if again.row.path == kept.row.path:
                raise
            kept = again  # the one before was not kept: the job trains on


@router.post(
    "/models/import",
    status_code=201,
    summary="Take in a bundle from another instance",
    openapi_extra={"requestBody": _REQUEST_BODY},
    dependencies=[Depends(require_space)],
    responses=responses(
        errors.InvalidRequest,
        errors.CrossSite,
        errors.BadArchive,
        errors.BadBundle,
        errors.DiskFull,
        errors.PredictorUnavailable,
    ),
)
async def import_bundle(
    request: Request,
    response: Response,
    db: DatabaseDep,
    settings: SettingsDep,
    predictor: PredictorDep,
    resolver: ResolverDep,
    caller: CallerDep,
    query: Annotated[ImportQuery, Query()],
) -> JobBody:
    """The bundle's digests are checked, its weights loaded (nothing is unpickled), its test pictures predicted: it is
    taken when the outputs are those that it promises. It becomes a job that has succeeded, and answers like any other.
    """
    job_id = new_id()
    archive = f"uploads/{new_id()}.receiving"
    spare = settings.min_free_bytes
    try:
        async with received_file(request, settings.data_dir / archive, _FORM_FIELD, spare_bytes=spare):
            to = str(checkpoints_folder(job_id) / "imported.safetensors")
            found = await _tried(predictor, ImportRequest(archive=archive, to=to))
    except BaseException:
        await run_in_threadpool(remove_folder, settings.data_dir / folder(job_id))
        raise
    try:
        job = await run_in_threadpool(imports.add, db, job_id, to, found, caller.owner)
    except Exception:  # when this is cancelled, the row may still be written
        await run_in_threadpool(remove_folder, settings.data_dir / folder(job_id))
        raise
    if query.alias is not None:
        await run_in_threadpool(aliases.put, db, query.alias, job_id, "last", caller)
    resolver.forget()
    response.headers["Location"] = f"/jobs/{job_id}"
    return await run_in_threadpool(whole, db, job)


async def _exported(
    kind: Literal["pt2", "onnx", "bundle"],
    job: Job,
    kept: KeptCheckpoint,
    db: Database,
    settings: Settings,
    predictor: Predictor,
) -> FileResponse:
    row = kept.row
    path = FilePath("exports", f"{new_id()}.{_ENDINGS[kind]}")
    asked = ExportRequest(path=row.path, sha256=row.sha256, format=kind, to=str(path))
    if kind == "bundle":
        about, dataset = await run_in_threadpool(_about, db, job, kept)
        asked = asked.model_copy(update={"about": about, "dataset": dataset})
    with _scratch(settings.data_dir / path) as file:
        async with predictor.errand(asked) as parts:
            async for _ in parts:
                pass
        name = f"{job.id}-epoch-{row.epoch}.{_ENDINGS[kind]}"
        return OpenFileResponse(file.open("rb"), media_type=_MEDIA[kind], filename=name)


async def _tried(predictor: Predictor, request: ImportRequest) -> Imported:
    try:
        async with asyncio.timeout(_TRY_SECONDS), predictor.errand(request) as parts:
            return Imported.model_validate_json(b"".join([part async for part in parts]))
    except TimeoutError as error:
        raise BadBundle(f"The bundle's network had not predicted its test pictures after {_TRY_SECONDS} s.") from error


@contextmanager
def _scratch(path: FilePath) -> Iterator[FilePath]:
    """A file that is gone afterwards: whoever has it open can still read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                left.unlink()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _about(db: Database, job: Job, kept: KeptCheckpoint) -> tuple[dict[str, object], OfDataset | None]:
    metrics = Metrics.model_validate({name: getattr(kept.metrics, name) for name in Metrics.model_fields})
    card = BundleCard(
        job=job.id,
        name=job.name,
        labels=job.labels,
        created_at=job.created_at,
        provenance=job.provenance,
        metrics=metrics,
    )
    return card.model_dump(mode="json"), versions.prepared(
        versions.by_id(db, job.dataset_id) if job.dataset_id else None
    )
