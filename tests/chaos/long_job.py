"""A job that lasts long enough to be disturbed: what it gives when nobody does, where it stands, and what it leaves."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.chaos.workplace import Bits, assert_undisturbed, bits, checkpoint_files, submit, wait_finished
from tests.end_to_end.serving import JOB_SECONDS, Epochd
from worker.jobs import records
from worker.jobs.db import Database

# Small steps, and many of them: most instants are inside an epoch.
LONG: Final[dict[str, Any]] = {
    "threads": 1,
    "epochs": 16,
    "batch_size": 4,
    "model": {"hidden": [64], "dropout": 0.2},
    "optimizer": {"lr": 0.01, "momentum": 0.9},
    "augmentation": {"flip": "horizontal"},
    "schedule": {"name": "cosine"},
}
SHORT: Final[dict[str, Any]] = {"threads": 1, "epochs": 1, "batch_size": 100, "model": {"hidden": [8]}}

Place = tuple[int, int]  # epochs that are done, and batches of the next one
_undisturbed: dict[int, Bits] = {}  # by epochs


def undisturbed(server: Epochd, epochs: int = LONG["epochs"]) -> Bits:
    """What the long job gives. Trained once for all tests: on one machine the bits are those of any other server."""
    if epochs not in _undisturbed:
        job_id = submit(server, LONG | {"epochs": epochs})
        wait_finished(server, [job_id])
        assert len(server.job(job_id)["attempts"]) == 1
        _undisturbed[epochs] = bits(server, job_id)
    return _undisturbed[epochs]


def assert_ends_undisturbed(server: Epochd, *job_ids: str) -> None:
    """These long jobs succeed, with the bits that one gives which nobody disturbs."""
    wait_finished(server, list(job_ids))
    for job_id in job_ids:
        assert_undisturbed(server, job_id, undisturbed(server, server.job(job_id)["spec"]["epochs"]))


def place(job: dict[str, Any]) -> Place:
    """How far it has said to be."""
    progress = job["progress"]
    return max(progress["epoch"] - 1, 0), progress["batch"]


def wait_training(server: Epochd, job_id: str) -> None:
    server.wait(job_id, lambda job: job["status"] == "running" and job["attempts"][-1]["first_batch_at"] is not None)


def saved_place(db: Database, job_id: str) -> Place:
    """From where it would go on."""
    inside = records.steps(db, job_id)
    if inside is not None:
        return inside.epoch - 1, inside.batch
    kept = records.checkpoints(db, job_id)
    return (kept[-1].row.epoch, 0) if kept else (0, 0)


def assert_files_are_named(db: Database, data_dir: Path, job_id: str) -> None:
    """Each file of a checkpoint has a row, and each row its file."""
    assert checkpoint_files(data_dir, job_id) == set(records.files(db, job_id))


def until(holds: Callable[[], bool], seconds: float = JOB_SECONDS) -> float:
    """Returns how many seconds it took."""
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < seconds
        time.sleep(0.01)
    return time.monotonic() - started
