"""A job's checkpoints: list them, download their weights."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse
from worker.jobs import records
from worker.jobs.errors import CheckpointCorrupt, NotFound, NotReady

from service.deps import DatabaseDep, JobDep, SettingsDep
from service.errors import responses
from service.schemas import CheckpointBody, CheckpointList
from service.which import Which

router = APIRouter(prefix="/jobs/{job_id}/checkpoints", tags=["checkpoints"])


@router.get("", summary="List checkpoints, oldest first", responses=responses(NotFound))
def list_checkpoints(job: JobDep, db: DatabaseDep) -> CheckpointList:
    return CheckpointList(data=[CheckpointBody.of(kept) for kept in records.checkpoints(db, job.id)])


@router.get(
    "/{which}",
    summary="Download a checkpoint's weights",
    response_class=FileResponse,
    responses=responses(NotFound, NotReady, CheckpointCorrupt),
)
def download(job: JobDep, db: DatabaseDep, settings: SettingsDep, which: Annotated[Which, Path()]) -> FileResponse:
    """Safetensors; the header's metadata holds spec, classes, preprocessing and metrics as JSON."""
    row = records.checkpoint(db, job.id, which).row
    path = settings.data_dir / row.path
    if not path.is_file():
        raise CheckpointCorrupt
    return FileResponse(
        path,
        media_type="application/octet-stream",
        filename=f"{job.id}-epoch-{row.epoch}.safetensors",
        headers={"ETag": f'"{row.sha256}"'},
    )
