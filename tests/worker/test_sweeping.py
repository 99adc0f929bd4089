"""What a kill at a bad moment leaves behind goes; what a row speaks for, or might, stays."""

import fcntl
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.worker.jobs.making import card, finish, make_ready, progress, result, running, saved
from worker.jobs import control, datasets, queue, records, retention, versions
from worker.jobs.db import Database
from worker.jobs.errors import BadArchive, NotFound
from worker.jobs.failures import Failure
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.settings import Settings
from worker.jobs.states import DatasetStatus, Outcome
from worker.jobs.tables import Dataset, Job
from worker.sweeping import retain, sweep

STRANGER = "0" * 24


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(Settings(data_dir=tmp_path).resolved_database_url)
    db.migrate()
    yield db
    db.close()


def with_status(db: Database, status: DatasetStatus) -> Dataset:
    """An upload that got there as uploads do."""
    dataset = datasets.add_upload(db, new_id(), Form(name=f"is-{status}"))
    if status is not DatasetStatus.UPLOADED:
        claimed = datasets.claim(db, "worker-1", 60)
        assert claimed is not None
    if status is DatasetStatus.READY:
        datasets.set_ready(db, dataset.id, 1, card())
    if status is DatasetStatus.INVALID:
        datasets.set_invalid(db, dataset.id, 1, Failure.of(BadArchive()))
    if status is DatasetStatus.DELETED:
        datasets.delete(db, dataset.name)
    return dataset


def files_of(data_dir: Path, dataset_id: str) -> dict[str, Path]:
    """All that there could be of a dataset."""
    paths = {
        "archive": data_dir / versions.archive_path(dataset_id),
        "scratch": data_dir / "datasets" / f".preparing-{dataset_id}-abc" / "pictures",
        "folder": data_dir / "datasets" / dataset_id / "card.json",
        "log": data_dir / "datasets" / f"{dataset_id}.attempt-1.log",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return paths


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        (DatasetStatus.UPLOADED, {"archive", "folder", "log"}),
        (DatasetStatus.PREPARING, {"archive", "scratch", "folder", "log"}),
        (DatasetStatus.READY, {"folder", "log"}),
        (DatasetStatus.INVALID, {"log"}),
        (DatasetStatus.DELETED, set()),
    ],
)
def test_what_stays_of_an_upload_follows_from_its_status(
    db: Database, tmp_path: Path, status: DatasetStatus, kept: set[str]
) -> None:
    paths = files_of(tmp_path, with_status(db, status).id)
    for _ in range(2):
        sweep(db, tmp_path)
        assert {name for name, path in paths.items() if path.exists()} == kept


def test_prepared_files_that_no_row_knows_are_left_alone(db: Database, tmp_path: Path) -> None:
    paths = files_of(tmp_path, STRANGER)
    sweep(db, tmp_path)
    assert {name for name, path in paths.items() if path.exists()} == {"archive", "folder", "log"}


@pytest.mark.parametrize(("name", "seconds"), [(f"{STRANGER}.archive", 24 * 3600), (f"{STRANGER}.receiving", 10)])
def test_an_upload_that_broke_off_goes_after_a_while(db: Database, tmp_path: Path, name: str, seconds: float) -> None:
    path = tmp_path / "uploads" / name
    path.parent.mkdir()
    path.write_text("x")
    sweep(db, tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - seconds - 1,) * 2)
    sweep(db, tmp_path)
    assert not path.exists()


def test_an_upload_that_is_being_received_stays_however_slow_it_is(db: Database, tmp_path: Path) -> None:
    path = tmp_path / "uploads" / f"{STRANGER}.receiving"
    path.parent.mkdir()
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(path, (time.time() - 100_000,) * 2)
        sweep(db, tmp_path)
        assert path.exists()
    sweep(db, tmp_path)
    assert not path.exists()


def test_a_built_in_datasets_folder_stays_and_its_scratch_goes(db: Database, tmp_path: Path) -> None:
    make_ready(db)
    paths = files_of(tmp_path, "fashion-mnist-v1")
    sweep(db, tmp_path)
    assert paths["folder"].exists()
    assert not paths["scratch"].exists()


def test_the_scratch_of_a_built_in_dataset_stays_while_it_is_prepared(db: Database, tmp_path: Path) -> None:
    datasets.prepare_built_in(db, "emnist-mnist")
    assert datasets.claim(db, "worker-1", 60) is not None
    paths = files_of(tmp_path, "emnist-mnist-v1")
    others = files_of(tmp_path, "mnist-v1")
    sweep(db, tmp_path)
    assert paths["scratch"].exists()
    assert not others["scratch"].exists()


def test_a_fresh_data_folder_has_nothing_to_sweep(db: Database, tmp_path: Path) -> None:
    sweep(db, tmp_path / "new")
    assert not (tmp_path / "new").exists()


# Retention


def ended(db: Database, data_dir: Path, days_ago: float, epochs: int = 4) -> Job:
    """A job that succeeded, with the files that its rows name. The second epoch was the best."""
    job = running(db, epochs=epochs)
    for epoch in range(1, epochs + 1):
        paths: dict[str, Any] = {
            name: str(checkpoints_folder(job.id) / f"epoch-{epoch:06d}-attempt-1.{ending}")
            for name, ending in (("path", "safetensors"), ("state_path", "state.pt"))
        }
        for path in paths.values():
            (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
            (data_dir / path).touch()
        accuracy = 0.9 if epoch == 2 else 0.5
        scores, kept = result(epoch, test_accuracy=accuracy), saved(epoch, **paths)
        records.record_epoch(db, job.id, 1, scores, kept, progress(epoch))
    finish(db, job, Outcome.SUCCEEDED)
    with db.write() as session:
        row = session.get_one(Job, job.id)
        row.finished_at = datetime.now(UTC) - timedelta(days=days_ago)
    return job


def on_disk(data_dir: Path, job: Job) -> set[str]:
    folder = data_dir / checkpoints_folder(job.id)
    return {str(path.relative_to(data_dir)) for path in folder.glob("*")}


def test_without_a_policy_everything_stays(db: Database, tmp_path: Path) -> None:
    job = ended(db, tmp_path, days_ago=1000)
    retain(db, Settings(data_dir=tmp_path))
    assert len(records.checkpoints(db, job.id)) == 4
    assert len(on_disk(tmp_path, job)) == 8


def test_an_old_job_keeps_its_best_and_its_last_checkpoint(db: Database, tmp_path: Path) -> None:
    old, young = ended(db, tmp_path, days_ago=8), ended(db, tmp_path, days_ago=6)
    retain(db, Settings(data_dir=tmp_path, retain_checkpoints_days=7))
    assert [kept.row.epoch for kept in records.checkpoints(db, old.id)] == [2, 4]
    assert on_disk(tmp_path, old) == set(records.files(db, old.id))
    assert len(records.epochs(db, old.id)) == 4  # metrics are no checkpoints
    assert len(on_disk(tmp_path, young)) == 8


def test_an_old_job_is_deleted_with_its_files(db: Database, tmp_path: Path) -> None:
    old, young = ended(db, tmp_path, days_ago=8), ended(db, tmp_path, days_ago=6)
    retain(db, Settings(data_dir=tmp_path, retain_jobs_days=7))
    with pytest.raises(NotFound):
        queue.get(db, old.id)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == [young.id]


def test_it_is_said_when_there_may_be_more_to_let_go_of(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 1)
    jobs = [ended(db, tmp_path, days_ago=8) for _ in range(2)]
    thinning = Settings(data_dir=tmp_path, retain_checkpoints_days=7)
    assert [retain(db, thinning) for _ in range(3)] == [True, True, False]
    assert [len(on_disk(tmp_path, job)) for job in jobs] == [4, 4]
    deleting = Settings(data_dir=tmp_path, retain_jobs_days=7)
    assert [retain(db, deleting) for _ in range(3)] == [True, True, False]
    assert list((tmp_path / "jobs").iterdir()) == []


def test_an_old_job_that_was_retried_is_left_alone(db: Database, tmp_path: Path) -> None:
    job = ended(db, tmp_path, days_ago=8)
    control.extend(db, job.id, 1)
    retain(db, Settings(data_dir=tmp_path, retain_jobs_days=7, retain_checkpoints_days=7))
    assert len(records.checkpoints(db, job.id)) == 4


def test_what_a_deletion_that_broke_off_has_left_goes(db: Database, tmp_path: Path) -> None:
    doomed = tmp_path / "jobs" / f".deleted-{STRANGER}" / "checkpoints"
    doomed.mkdir(parents=True)
    retain(db, Settings(data_dir=tmp_path))
    assert list((tmp_path / "jobs").iterdir()) == []
