"""Parity certificates: who wants one, and what is answered meanwhile."""

import pytest

from tests.worker.jobs.making import finish, record, running, saved
from worker.jobs import control, parities
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, NotReady
from worker.jobs.parity import Parity
from worker.jobs.states import Outcome
from worker.jobs.tables import Job


def succeeded(db: Database) -> Job:
    job = running(db, epochs=3)
    for epoch, accuracy in enumerate((0.25, 0.75, 0.5), start=1):
        record(db, job, epoch, test_accuracy=accuracy)
    finish(db, job, Outcome.SUCCEEDED)
    return job


def certificate(epoch: int = 2) -> Parity:
    return Parity(
        pictures=10,
        epoch=epoch,
        sha256=saved(epoch).sha256,
        largest_difference=0.25,
        largest_output=2.0,
        tolerance=0.5,
        agree=1.0,
        accuracy=0.75,
        loop_accuracy=0.75,
        recorded_accuracy=0.75,
        passed=True,
        precision="fp32",
        seconds=1.5,
    )


def test_a_job_that_succeeded_wants_one_for_its_best_checkpoint_once(db: Database) -> None:
    assert parities.wanting(db) is None
    running(db)
    job = succeeded(db)
    wanting = parities.wanting(db)
    assert wanting is not None
    assert (wanting.checkpoint.job_id, wanting.checkpoint.epoch) == (job.id, 2)
    assert wanting.request is not None
    assert (wanting.request.sha256, wanting.request.dataset.folder) == (saved(2).sha256, "datasets/fashion-mnist-v1")
    with pytest.raises(NotReady, match="being made"):
        parities.find(db, job.id)
    parities.record(db, wanting.checkpoint, certificate())
    assert parities.find(db, job.id) == certificate()
    assert parities.wanting(db) is None


def test_the_newest_job_comes_first(db: Database) -> None:
    older, newer = succeeded(db), succeeded(db)
    order = []
    while (wanting := parities.wanting(db)) is not None:
        order.append(wanting.checkpoint.job_id)
        parities.record(db, wanting.checkpoint, certificate())
    assert order == [newer.id, older.id]


def test_a_job_that_is_extended_wants_another(db: Database) -> None:
    job = succeeded(db)
    wanting = parities.wanting(db)
    assert wanting is not None
    parities.record(db, wanting.checkpoint, certificate())
    control.extend(db, job.id, 5)
    with pytest.raises(NotReady, match="queued"):
        parities.find(db, job.id)


def test_why_there_is_none_is_said_and_not_tried_again(db: Database) -> None:
    job = succeeded(db)
    wanting = parities.wanting(db)
    assert wanting is not None
    parities.record(db, wanting.checkpoint, "The job's dataset is gone. " * 50)
    assert parities.wanting(db) is None
    with pytest.raises(Conflict, match="dataset is gone"):
        parities.find(db, job.id)


def test_a_job_that_is_deleted_meanwhile_leaves_nothing(db: Database) -> None:
    job = succeeded(db)
    wanting = parities.wanting(db)
    assert wanting is not None
    control.delete(db, job.id)
    parities.record(db, wanting.checkpoint, certificate())
    assert parities.wanting(db) is None


def test_one_that_has_not_succeeded_has_none(db: Database) -> None:
    job = running(db)
    with pytest.raises(NotReady, match="running"):
        parities.find(db, job.id)
