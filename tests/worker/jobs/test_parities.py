"""Parity certificates: who wants one, and what is answered meanwhile."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlmodel import update

from tests.worker.jobs.imported import imported
from tests.worker.jobs.making import claim, finish, record, running, saved
from worker.jobs import control, parities, queue
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, NotFound, NotReady
from worker.jobs.parity import Parity
from worker.jobs.states import DatasetStatus, Outcome, Status
from worker.jobs.tables import Dataset, Job


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
        mae=None,
        loop_mae=None,
        recorded_mae=None,
        passed=True,
        precision="fp32",
        device="cpu",
        seconds=1.5,
        made_at=datetime(2026, 1, 2, tzinfo=UTC),
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


def test_one_that_took_longer_than_an_extension_is_of_a_checkpoint_that_is_no_longer_the_best(db: Database) -> None:
    job = succeeded(db)
    old = parities.wanting(db)
    assert old is not None
    control.extend(db, job.id, 1)
    again = claim(db)
    record(db, again, 4, test_accuracy=0.875)
    finish(db, again, Outcome.SUCCEEDED)
    parities.record(db, old.checkpoint, certificate())
    wanting = parities.wanting(db)
    assert wanting is not None
    assert (wanting.checkpoint.job_id, wanting.checkpoint.epoch) == (job.id, 4)
    parities.record(db, wanting.checkpoint, certificate(4))
    assert parities.find(db, job.id).epoch == 4
    assert parities.wanting(db) is None


def test_one_of_before_an_extension_that_made_nothing_better_is_made_anew(db: Database) -> None:
    job = succeeded(db)
    for _ in range(2):
        wanting = parities.wanting(db)
        assert wanting is not None
        assert wanting.checkpoint.epoch == 2
        parities.record(db, wanting.checkpoint, certificate())
        assert parities.find(db, job.id) == certificate()
        if queue.get(db, job.id).attempt == 1:
            control.extend(db, job.id, 1)
            again = claim(db)
            record(db, again, 4, test_accuracy=0.5)
            finish(db, again, Outcome.SUCCEEDED)
    assert parities.wanting(db) is None


def test_a_job_whose_dataset_is_gone_wants_to_be_told_so(db: Database) -> None:
    job = succeeded(db)
    with db.write() as session:
        session.execute(update(Dataset).values(status=DatasetStatus.DELETED))
    wanting = parities.wanting(db)
    assert wanting is not None
    assert (wanting.checkpoint.job_id, wanting.request) == (job.id, None)


def test_an_imported_job_has_none_and_wants_none(db: Database, tmp_path: Path) -> None:
    job = imported(db, tmp_path)
    assert parities.wanting(db) is None
    with pytest.raises(Conflict, match="imported"):
        parities.find(db, job.id)


def test_a_job_that_goes_while_it_is_asked_for_is_not_found(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = succeeded(db)
    monkeypatch.setattr(queue, "get", lambda *_: job)  # as it was a moment before
    job.status = Status.SUCCEEDED
    control.delete(db, job.id)
    with pytest.raises(NotFound):
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
