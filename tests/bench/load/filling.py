"""A database with a history: jobs that ended, some of them with many epochs, and a queue."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import insert
from sqlmodel import SQLModel

from worker.jobs import versions
from worker.jobs.db import Database
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Status
from worker.jobs.tables import Attempt, Checkpoint, Epoch, Job, Label, Transition

EPOCHS: Final = 200  # of a job that has any
LABEL: Final = ("team", "team-3")
RARE_LABEL: Final = ("run", "run-7")
_SPEC: Final = Spec().model_dump(mode="json")
_TEAMS: Final = 50
_AT_ONCE: Final = 5_000
_QUEUED_EVERY: Final = 100
_PAUSED: Final = 3  # the oldest


@dataclass(frozen=True)
class Filled:
    rows: int
    seconds: float
    long: str  # a job with all its epochs
    middle: str
    queued: str


def fill(db: Database, jobs: int, rows: int) -> Filled:
    """So many jobs, and so many rows of epochs spread over some of them."""
    started, trained = time.monotonic(), max(1, rows // EPOCHS)
    every = max(1, jobs // trained)
    (dataset,) = versions.newest(db)
    began = datetime.now(UTC) - timedelta(seconds=jobs)
    ids = [f"{int((began + timedelta(seconds=number)).timestamp()) * 10**9:016x}{number:08x}" for number in range(jobs)]
    statuses = [_status(number, every) for number in range(jobs)]
    long = [job_id for job_id, status in zip(ids, statuses, strict=True) if status is Status.SUCCEEDED]
    _store(db, Job, (_job(*each, dataset.id, began) for each in zip(ids, range(jobs), statuses, strict=True)))
    _store(db, Label, itertools.chain.from_iterable(_labels(job_id, number) for number, job_id in enumerate(ids)))
    _store(db, Transition, itertools.chain.from_iterable(map(_transitions, ids, statuses)))
    _store(db, Attempt, (_attempt(job_id, began) for job_id in long))
    _store(db, Checkpoint, (_checkpoint(job_id, began) for job_id in long))
    _store(db, Epoch, (_epoch(job_id, seq, began) for job_id in long for seq in range(1, EPOCHS + 1)))
    queued = next(job_id for job_id, status in zip(ids, statuses, strict=True) if status is Status.QUEUED)
    seconds = time.monotonic() - started
    return Filled(len(long) * EPOCHS, seconds, long[len(long) // 2], ids[jobs // 2], queued)


def _store(db: Database, into: type[SQLModel], rows: Iterator[dict[str, Any]]) -> None:
    while some := list(itertools.islice(rows, _AT_ONCE)):
        with db.write() as session:
            session.execute(insert(into), some)


def _status(number: int, every: int) -> Status:
    if number < _PAUSED:
        return Status.PAUSED
    if number % every == every - 1:
        return Status.SUCCEEDED
    if number % _QUEUED_EVERY == _PAUSED:
        return Status.QUEUED
    return Status.CANCELLED if number % 2 else Status.FAILED


def _job(job_id: str, number: int, status: Status, dataset_id: str, began: datetime) -> dict[str, Any]:
    at = began + timedelta(seconds=number)
    has_trained = status is Status.SUCCEEDED
    return {
        "id": job_id,
        "owner": "",
        "labels": dict(_pairs(number)),
        "spec": _SPEC,
        "dataset_id": dataset_id,
        "status": status,
        "created_at": at,
        "started_at": at if has_trained else None,
        "finished_at": None if status in (Status.QUEUED, Status.PAUSED) else at,
        "attempt": int(has_trained),
        "last_seq": EPOCHS if has_trained else 0,
    }


def _pairs(number: int) -> list[tuple[str, str]]:
    return [(LABEL[0], f"team-{number % _TEAMS}"), (RARE_LABEL[0], f"run-{number}")]


def _labels(job_id: str, number: int) -> Iterator[dict[str, Any]]:
    return ({"job_id": job_id, "key": key, "value": value} for key, value in _pairs(number))


def _transitions(job_id: str, status: Status) -> Iterator[dict[str, Any]]:
    at = datetime.now(UTC)
    for seq, each in enumerate(dict.fromkeys((Status.QUEUED, status)), 1):
        yield {"job_id": job_id, "seq": seq, "status": each, "at": at, "reason": "filled"}


def _attempt(job_id: str, at: datetime) -> dict[str, Any]:
    ended = {"started_at": at, "ended_at": at, "outcome": Outcome.SUCCEEDED}
    return {"job_id": job_id, "number": 1, "worker_id": "filled"} | ended


def _checkpoint(job_id: str, at: datetime) -> dict[str, Any]:
    path = f"jobs/{job_id}/checkpoints/epoch-{EPOCHS:06d}-attempt-1"
    named = {"path": f"{path}.safetensors", "sha256": "0" * 64, "state_path": f"{path}.state.pt"}
    more = {"attempt": 1, "created_at": at, "bytes": 1, "weights_sha256": "0" * 64, "state_sha256": "0" * 64}
    return {"job_id": job_id, "epoch": EPOCHS} | named | more


def _epoch(job_id: str, seq: int, at: datetime) -> dict[str, Any]:
    losses = {"train_loss": 2 / seq, "test_loss": 2.5 / seq, "test_accuracy": 1 - 1 / (seq + 1), "gradient_norm": 0.5}
    speed = {"learning_rate": 1e-3, "samples_per_second": 1e4, "train_seconds": 3.0, "test_seconds": 0.5}
    return {"job_id": job_id, "epoch": seq, "seq": seq, "attempt": 1, "recorded_at": at} | losses | speed
