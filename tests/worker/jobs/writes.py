"""Every write of an attempt: what an attempt that lost its job, or its dataset, must not be able to do any more."""

import inspect
from collections.abc import Callable
from types import ModuleType

from tests.worker.jobs.making import card, progress, report, result, saved, saved_steps
from worker.jobs import datasets, queue, records
from worker.jobs.db import Database
from worker.jobs.errors import DatasetInvalid
from worker.jobs.failures import Failure
from worker.jobs.records import Resumed
from worker.jobs.states import EventKind, Outcome

Write = Callable[[Database, str, int], object]  # of a job or a dataset, by an attempt of it

OF_JOBS: dict[str, Write] = {
    "record_start": lambda db, job_id, attempt: records.record_start(
        db, job_id, attempt, {"seed": 1}, Resumed(3, 120, ["other threads"])
    ),
    "record_first_batch": lambda db, job_id, attempt: records.record_first_batch(db, job_id, attempt, progress()),
    "record_progress": lambda db, job_id, attempt: records.record_progress(db, job_id, attempt, progress()),
    "record_steps": lambda db, job_id, attempt: records.record_steps(db, job_id, attempt, saved_steps()),
    "record_epoch": lambda db, job_id, attempt: records.record_epoch(
        db, job_id, attempt, result(), saved(), progress(), report()
    ),
    "record_event": lambda db, job_id, attempt: records.record_event(
        db, job_id, attempt, 1, EventKind.DIVERGED, "The loss became nan."
    ),
    "finish": lambda db, job_id, attempt: queue.finish(db, job_id, attempt, Outcome.SUCCEEDED, max_attempts=3),
}
OF_DATASETS: dict[str, Write] = {
    "record_progress": lambda db, dataset_id, attempt: datasets.record_progress(
        db, dataset_id, attempt, "decoding", 1, 2
    ),
    "set_ready": lambda db, dataset_id, attempt: datasets.set_ready(db, dataset_id, attempt, card()),
    "set_invalid": lambda db, dataset_id, attempt: datasets.set_invalid(
        db, dataset_id, attempt, Failure.of(DatasetInvalid())
    ),
    "finish": lambda db, dataset_id, attempt: datasets.finish(
        db, dataset_id, attempt, Outcome.RELEASED, max_attempts=3
    ),
}


def of_attempts(*modules: ModuleType) -> set[str]:
    """The names of the functions of these modules that write for an attempt: they take its number."""
    return {
        name
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and {"db", "attempt"} <= set(inspect.signature(function).parameters)
    }
