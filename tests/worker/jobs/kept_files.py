"""Jobs and datasets whose rows name files that are there."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from tests.worker.jobs.making import claim, make_ready, progress, result, running, saved
from worker.jobs import datasets, queue, records, submitting, versions
from worker.jobs.attempt_logs import training_log
from worker.jobs.card import FILES
from worker.jobs.db import Database
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.records import SavedSteps
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome
from worker.jobs.tables import Job


def put(data_dir: Path, path: str, contents: bytes = b"x") -> str:
    """Returns its SHA-256."""
    (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
    (data_dir / path).write_bytes(contents)
    return hashlib.sha256(contents).hexdigest()


def record_with_files(db: Database, data_dir: Path, job: Job, epoch: int) -> list[str]:
    stem = checkpoints_folder(job.id) / f"epoch-{epoch:06d}-attempt-{job.attempt}"
    path, state_path = f"{stem}.safetensors", f"{stem}.state.pt"
    weights, state = b"weights %d" % epoch * 100, b"state %d" % epoch * 50
    kept: dict[str, Any] = {
        "path": path,
        "sha256": put(data_dir, path, weights),
        "bytes": len(weights),
        "state_path": state_path,
        "state_sha256": put(data_dir, state_path, state),
    }
    return records.record_epoch(
        db, job.id, job.attempt, result(epoch), saved(epoch, job.attempt, **kept), progress(epoch)
    )


def filled(db: Database, data_dir: Path) -> Job:
    """A dataset that is ready and one that was uploaded, a job that succeeded, one that waits, and one that trains."""
    make_ready(db)
    for file in ("card.json", *FILES):
        put(data_dir, f"datasets/fashion-mnist-v1/{file}", file.encode())
    upload = datasets.add_upload(db, new_id(), Form(name="shoes"))
    put(data_dir, versions.archive_path(upload.id), b"PK" * 1000)
    ended = running(db, epochs=2)
    for epoch in (1, 2):
        record_with_files(db, data_dir, ended, epoch)
    put(data_dir, training_log(ended.id, 1), b"one\ntwo\n")
    queue.finish(db, ended.id, 1, Outcome.SUCCEEDED, max_attempts=3)
    submitting.enqueue(db, Spec(epochs=9))
    job = claim(db)
    record_with_files(db, data_dir, job, 1)
    steps = str(checkpoints_folder(job.id) / f"epoch-000002-batch-000004-attempt-{job.attempt}.steps.pt")
    records.record_steps(db, job.id, job.attempt, SavedSteps(2, 4, steps, put(data_dir, steps, b"steps"), 5))
    submitting.enqueue(db, Spec())
    put(data_dir, "weights/mine.safetensors", b"weights to begin with")
    return job


def make_old(data_dir: Path) -> None:
    """All files seem to be an hour old: nobody is just making them."""
    then = time.time() - 3600
    for path in data_dir.rglob("*"):
        os.utime(path, (then, then))


def contents(data_dir: Path) -> dict[str, bytes]:
    """Of the files that a backup is to bring back."""
    return {
        str(path.relative_to(data_dir)): path.read_bytes()
        for name in ("jobs", "datasets", "uploads", "weights")
        for path in (data_dir / name).rglob("*")
        if path.is_file()
    }
