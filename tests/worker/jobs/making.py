"""What tests of jobs are made of."""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlmodel import SQLModel

import worker.jobs
from worker.jobs import control, datasets, queue, records, submitting, versions
from worker.jobs.card import Card
from worker.jobs.db import Database
from worker.jobs.failures import Failure
from worker.jobs.records import EpochResult, Progress, SavedCheckpoint, SavedSteps
from worker.jobs.report import Report, report_of
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Phase, Status
from worker.jobs.tables import Job

BACKENDS = ("sqlite", "postgresql")
LEASE_SECONDS = 60.0
EXPIRED = -1.0  # a lease that has run out when it is given


def progress(epoch: int = 1, **changed: Any) -> Progress:
    values: dict[str, Any] = {
        "phase": Phase.TRAINING,
        "batch": 3,
        "batches": 7,
        "samples_per_second": 100.5,
        "eta_seconds": 9.25,
    }
    return Progress(epoch=epoch, **values | changed)


def result(epoch: int = 1, **changed: Any) -> EpochResult:
    values: dict[str, Any] = {
        "train_loss": 2.0 / epoch,
        "test_loss": 2.5 / epoch,
        "gradient_norm": 0.5,
        "peak_memory_bytes": 3 * 2**30,
        "test_accuracy": 1 - 1 / (epoch + 1),
        "test_f1": 1 - 1 / (epoch + 2),
        "learning_rate": 1e-3,
        "samples_per_second": 1000.0,
        "train_seconds": 3.0,
        "test_seconds": 0.5,
    }
    return EpochResult(epoch=epoch, **values | changed)


def saved(epoch: int = 1, attempt: int = 1, **changed: Any) -> SavedCheckpoint:
    values: dict[str, Any] = {
        "path": f"jobs/x/checkpoints/epoch-{epoch:06d}-attempt-{attempt}.safetensors",
        "sha256": f"{epoch:032x}{attempt:032x}",
        "bytes": 2_678_000,
        "weights_sha256": f"{attempt:032x}{epoch:032x}",
        "state_path": f"jobs/x/checkpoints/epoch-{epoch:06d}-attempt-{attempt}.state.pt",
        "state_sha256": f"{attempt:032x}{epoch:032x}",
    }
    return SavedCheckpoint(**values | changed)


def saved_steps(epoch: int = 1, batch: int = 120, attempt: int = 1, **changed: Any) -> SavedSteps:
    values: dict[str, Any] = {
        "path": f"jobs/x/checkpoints/epoch-{epoch:06d}-batch-{batch:06d}-attempt-{attempt}.steps.pt",
        "sha256": f"{epoch:016x}{batch:016x}{attempt:032x}",
        "bytes": 5_357_000,
    }
    return SavedSteps(epoch=epoch, batch=batch, **values | changed)


def report(epoch: int = 1, wrong: int = 3) -> Report:
    """Of two classes; `wrong` of 20 answers are."""
    return report_of({(0, 0): 10 - wrong, (0, 1): wrong, (1, 1): 10}, ["cat", "dog"], epoch)


def claim(db: Database, worker: str = "worker-1", lease_seconds: float = LEASE_SECONDS) -> Job:
    job = queue.claim(db, worker, lease_seconds)
    assert job is not None
    return job


def running(db: Database, worker: str = "worker-1", lease_seconds: float = LEASE_SECONDS, **spec: Any) -> Job:
    """A job that was queued alone and claimed."""
    if not versions.newest(db):
        make_ready(db)
    submitting.enqueue(db, Spec.model_validate(spec))
    return claim(db, worker, lease_seconds)


def record(db: Database, job: Job, epoch: int, **changed: Any) -> None:
    records.record_epoch(
        db,
        job.id,
        job.attempt,
        result(epoch, **changed),
        saved(epoch, job.attempt),
        progress(epoch, phase=Phase.SAVING),
    )


def finish(db: Database, job: Job, outcome: Outcome, *, max_attempts: int = 3) -> Status:
    failing = outcome not in (Outcome.SUCCEEDED, Outcome.CANCELLED, Outcome.RELEASED)
    failure = Failure(code="killed", message=f"It ended as {outcome}.") if failing else None
    return queue.finish(db, job.id, job.attempt, outcome, failure, max_attempts=max_attempts)


def job_with_status(db: Database, status: Status) -> Job:
    """A job that got to `status` as jobs do."""
    if status is Status.QUEUED:
        return submitting.enqueue(db, Spec())
    job = running(db)
    if status in (Status.CANCELLING, Status.CANCELLED):
        control.cancel(db, job.id)
    if status in (Status.PAUSING, Status.PAUSED):
        control.pause(db, job.id)
    outcomes = {
        Status.SUCCEEDED: Outcome.SUCCEEDED,
        Status.FAILED: Outcome.FAILED,
        Status.CANCELLED: Outcome.RELEASED,
        Status.PAUSED: Outcome.RELEASED,
    }
    if status in outcomes:
        finish(db, job, outcomes[status])
    found = queue.get(db, job.id)
    assert found.status == status
    return found


def card(**changed: Any) -> Card:
    values: dict[str, Any] = {
        "name": "fashion-mnist",
        "classes": ["cat", "dog"],
        "channels": 1,
        "height": 28,
        "width": 28,
        "train_count": 500,
        "test_count": 100,
        "mean": [0.25],
        "std": [0.5],
        "sha256": "ab" * 32,
    }
    return Card(**values | changed)


def make_ready(db: Database, dataset_card: Card | None = None) -> str:
    """Has the built-in dataset that an empty spec asks for, as if a worker had prepared it. Returns its id."""
    dataset = datasets.prepare_built_in(db, "fashion-mnist")
    claimed = datasets.claim(db, "preparer", LEASE_SECONDS)
    assert claimed is not None
    assert claimed.id == dataset.id
    datasets.set_ready(db, dataset.id, claimed.attempt, dataset_card or card())
    return dataset.id


def empty(db: Database) -> None:
    """Deletes every row. What is left is a dataset that is ready, for jobs to train on."""
    with db.write() as session:
        for table in reversed(SQLModel.metadata.sorted_tables):
            session.execute(table.delete())
    make_ready(db)


def upgrade(db: Database, revision: str) -> None:
    """As an older epochd would have left an empty database."""
    config = Config()
    config.set_main_option("script_location", str(Path(worker.jobs.__file__).parent / "migrations"))
    with db.write() as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, revision)


def everything(db: Database) -> dict[str, list[str]]:
    """Every row of every table but `turns`, which are of owners and not of jobs, to compare before and after."""
    with db.read() as session:
        return {
            table.name: sorted(map(repr, session.execute(table.select()).all()))
            for table in SQLModel.metadata.sorted_tables
            if table.name != "turns"
        }
