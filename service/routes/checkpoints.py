"""A job's checkpoints: list them, download their weights."""

import hashlib
from contextlib import ExitStack, suppress
from pathlib import Path as FilePath
from typing import IO, Annotated

from fastapi import APIRouter, Path
from fastapi.responses import FileResponse
from worker.jobs import queue, records
from worker.jobs.db import Database
from worker.jobs.errors import CheckpointCorrupt, NotFound, NotReady
from worker.jobs.tables import Checkpoint

from service.bodies.checkpoints import CheckpointBody, CheckpointList
from service.deps import DatabaseDep, JobDep, SettingsDep
from service.downloads import OpenFileResponse
from service.errors import responses
from service.which import Which

router = APIRouter(prefix="/jobs/{job_id}/checkpoints", tags=["checkpoints"])


@router.get("", summary="List checkpoints, oldest first", responses=responses(NotFound))
def list_checkpoints(job: JobDep, db: DatabaseDep) -> CheckpointList:
    return CheckpointList(data=[CheckpointBody.of(kept) for kept in records.checkpoints(db, job.id)])


@router.get(
    "/{which}",
    operation_id="download_checkpoint",
    summary="Download a checkpoint's weights",
    response_class=FileResponse,
    responses=responses(NotFound, NotReady, CheckpointCorrupt)
    | {
        200: {
            "description": "The file",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
def download(job: JobDep, db: DatabaseDep, settings: SettingsDep, which: Annotated[Which, Path()]) -> FileResponse:
    """Safetensors; the header's metadata holds spec, classes, preprocessing and metrics as JSON."""
    row, file = _opened(db, settings.data_dir, job.id, which)
    return OpenFileResponse(
        file,
        media_type="application/octet-stream",
        filename=f"{job.id}-epoch-{row.epoch}.safetensors",
        headers={"ETag": f'"{row.sha256}"'},
    )


def _opened(db: Database, data_dir: FilePath, job_id: str, which: str) -> tuple[Checkpoint, IO[bytes]]:
    """Raises CheckpointCorrupt when the file is not what was written, and what `records.checkpoint` raises."""
    row = records.checkpoint(db, job_id, which).row
    while (file := _whole(data_dir / row.path, row.sha256)) is None:
        queue.get(db, job_id)  # it may have been deleted meanwhile
        again = records.checkpoint(db, job_id, which).row
        if again.path == row.path:
            raise CheckpointCorrupt
        row = again  # the one before was not kept
    return row, file


def _whole(path: FilePath, sha256: str) -> IO[bytes] | None:
    """The file, open; None when it is gone or is not what was written."""
    with suppress(OSError), ExitStack() as opened:
        file = opened.enter_context(path.open("rb"))
        if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
            opened.pop_all()
            return file
    return None
