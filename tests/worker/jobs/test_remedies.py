"""What a failed job suggests to change: always a spec that is valid, and nothing where nothing is likely to help."""

from typing import Any

import pytest

from tests.worker.jobs.making import claim, running
from worker.jobs import errors, queue, records
from worker.jobs.db import Database
from worker.jobs.failures import Failure
from worker.jobs.remedies import suggestion
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Status
from worker.jobs.tables import Job

KILLED = Failure(code="killed", message="", signal="SIGKILL")


def failure(error: type[errors.EpochdError]) -> Failure:
    return Failure.of(error())


@pytest.mark.parametrize(
    ("failure", "spec", "patch"),
    [
        (failure(errors.OutOfMemory), {}, {"batch_size": 32}),
        (failure(errors.OutOfMemory), {"batch_size": 7}, {"batch_size": 3}),
        (failure(errors.OutOfMemory), {"batch_size": 1}, None),
        (failure(errors.OutOfMemory), {"batch_size": 64, "accumulation": 64}, None),
        (failure(errors.OutOfMemory), {"memory_limit_mb": 100}, {"memory_limit_mb": 200}),
        (KILLED, {}, {"accumulation": 2}),
        (KILLED, {"accumulation": 32}, {"accumulation": 64}),
        (KILLED, {"accumulation": 33}, None),
        (KILLED, {"batch_size": 1}, None),
        (KILLED.model_copy(update={"signal": "SIGSEGV"}), {}, None),
        (failure(errors.Diverged), {}, {"optimizer": {"lr": 1e-4}}),
        (failure(errors.Diverged), {"optimizer": {"lr": 0.3}}, {"optimizer": {"lr": 0.03}}),
        (failure(errors.Diverged), {"precision": "fp16"}, {"precision": "bf16"}),
        (failure(errors.DiskFull), {}, {"checkpoints": {"keep": "last"}}),
        (failure(errors.DiskFull), {"checkpoints": {"keep": "last"}}, None),
        (failure(errors.DeviceUnavailable), {"device": "cuda:3"}, {"device": "auto"}),
        (failure(errors.Crashed), {}, None),
        (failure(errors.WorkerLost), {}, None),
        (failure(errors.DatasetMissing), {}, None),
        (failure(errors.Internal), {}, None),
    ],
)
def test_what_may_help_is_suggested(failure: Failure, spec: dict[str, Any], patch: dict[str, Any] | None) -> None:
    assert suggestion(failure, Spec.model_validate(spec)) == patch


@pytest.mark.parametrize(
    ("failure", "spec"),
    [
        (failure(errors.OutOfMemory), {"batch_size": 3, "accumulation": 2}),
        (failure(errors.OutOfMemory), {"memory_limit_mb": 2**24}),
        (failure(errors.Diverged), {"schedule": {"name": "cosine", "min_lr": 5e-4}}),
        (failure(errors.Diverged), {"schedule": {"name": "plateau", "min_lr": 1e-3}}),
        (failure(errors.Diverged), {"optimizer": {"lr": 5e-324}}),
    ],
)
def test_no_job_suggests_a_spec_that_would_be_refused(db: Database, failure: Failure, spec: dict[str, Any]) -> None:
    job = running(db, **spec)
    assert queue.finish(db, job.id, 1, Outcome.FAILED, failure, max_attempts=3) is Status.FAILED
    assert (queue.get(db, job.id).error or {})["suggestion"] is None


def test_a_failed_job_and_its_attempt_carry_the_suggestion(db: Database) -> None:
    job = running(db, batch_size=10)
    assert queue.finish(db, job.id, 1, Outcome.KILLED, KILLED, max_attempts=2) is Status.QUEUED
    assert (records.attempts(db, job.id)[0].error or {})["suggestion"] == {"accumulation": 2}
    claim(db)
    queue.finish(db, job.id, 2, Outcome.FAILED, failure(errors.OutOfMemory), max_attempts=2)
    assert (queue.get(db, job.id).error or {})["suggestion"] == {"batch_size": 5}


@pytest.mark.parametrize("spec", [{"model": {"name": "forgotten"}}, {"batch_size": 8, "accumulation": 9}], ids=str)
def test_a_job_of_another_time_ends_all_the_same(db: Database, spec: dict[str, Any]) -> None:
    """Its stored spec may be one that this version refuses."""
    job = running(db)
    with db.write() as session:
        session.get_one(Job, job.id).spec = spec
    assert queue.finish(db, job.id, 1, Outcome.KILLED, KILLED, max_attempts=1) is Status.FAILED
    assert (queue.get(db, job.id).error or {})["suggestion"] is None
