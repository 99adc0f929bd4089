"""One attempt at preparing, in a process of its own: it settles its row, or leaves it for the next one."""

import io
import multiprocessing
import os
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from worker.datasets import attempt as preparing
from worker.datasets.decoding import DecoderDied
from worker.jobs import datasets, versions
from worker.jobs.db import Database
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED
from worker.jobs.settings import Settings
from worker.jobs.states import DatasetStatus
from worker.jobs.tables import Dataset


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, max_attempts=2)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    db = Database(settings.resolved_database_url)
    db.migrate()
    yield db
    db.close()


@pytest.fixture
def uploaded(settings: Settings, db: Database) -> Dataset:
    """Forty pictures of two classes, and claimed."""
    dataset_id = new_id()
    archive = settings.data_dir / versions.archive_path(dataset_id)
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as file:
        for number in range(40):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8), number, dtype=np.uint8)).save(picture, "PNG")
            file.writestr(f"class-{number % 2}/{number}.png", picture.getvalue())
    datasets.add_upload(db, dataset_id, Form(name="shades"))
    claimed = datasets.claim(db, "worker-1", 60)
    assert claimed is not None
    return claimed


def attempt(settings: Settings, dataset: Dataset, meanwhile: Callable[[int], None] = lambda _: None) -> int:
    """Forked, as in production, since it changes what a process may do. Returns the exit code."""

    def live() -> None:
        os._exit(preparing.run(settings, dataset.id, dataset.attempt))

    process = multiprocessing.get_context("fork").Process(target=live)
    process.start()
    assert process.pid is not None
    meanwhile(process.pid)
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def left(settings: Settings) -> list[str]:
    return sorted(path.name for name in ("uploads", "datasets") for path in (settings.data_dir / name).glob("*"))


def instead_of_preparing(monkeypatch: pytest.MonkeyPatch, do: Callable[[Any], Any]) -> None:
    monkeypatch.setattr(preparing, "prepare", lambda settings, dataset, watch: do(watch))


def raising(error: BaseException) -> Callable[[Any], Any]:
    def do(_: Any) -> Any:
        raise error

    return do


def test_an_upload_becomes_ready_and_its_archive_goes(settings: Settings, db: Database, uploaded: Dataset) -> None:
    assert attempt(settings, uploaded) == EXIT_DONE
    found = versions.by_id(db, uploaded.id)
    assert found.status == DatasetStatus.READY
    assert (found.card or {})["train_count"] + (found.card or {})["test_count"] == 40
    assert left(settings) == [uploaded.id]


def test_an_upload_whose_file_is_gone_says_so(settings: Settings, db: Database, uploaded: Dataset) -> None:
    (settings.data_dir / versions.archive_path(uploaded.id)).unlink()
    assert attempt(settings, uploaded) == EXIT_DONE
    found = versions.by_id(db, uploaded.id)
    assert (found.status, (found.error or {})["message"]) == (
        DatasetStatus.INVALID,
        "The uploaded file is gone; upload it again.",
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(28, "No space left on device"), "disk_full"),
        (MemoryError(), "dataset_invalid"),
    ],
)
def test_what_another_attempt_would_meet_again_is_final(
    settings: Settings, db: Database, uploaded: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    instead_of_preparing(monkeypatch, raising(error))
    assert attempt(settings, uploaded) == EXIT_DONE
    found = versions.by_id(db, uploaded.id)
    assert (found.status, (found.error or {})["code"]) == (DatasetStatus.INVALID, code)
    assert left(settings) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DecoderDied("A process that decodes pictures died."), "crashed"),
        (ZeroDivisionError(), "internal"),
        (OSError(5, "Input/output error"), "internal"),
    ],
)
def test_what_may_pass_is_tried_again_with_the_same_archive(
    settings: Settings, db: Database, uploaded: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    with monkeypatch.context() as patch:
        instead_of_preparing(patch, raising(error))
        assert attempt(settings, uploaded) == EXIT_DONE
        assert versions.by_id(db, uploaded.id).status == DatasetStatus.UPLOADED
        assert left(settings) == [f"{uploaded.id}.archive"]
        again = datasets.claim(db, "worker-1", 60)
        assert again is not None
        assert attempt(settings, again) == EXIT_DONE
    found = versions.by_id(db, uploaded.id)
    assert (found.status, (found.error or {})["code"]) == (DatasetStatus.INVALID, code)


def test_one_that_does_not_get_on_is_tried_again(
    settings: Settings, db: Database, uploaded: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(watch: Any) -> None:
        watch("decoding", 0, 0)
        time.sleep(60)

    monkeypatch.setattr(preparing, "_STALL_SECONDS", 1)
    instead_of_preparing(monkeypatch, hang)
    started = time.monotonic()
    assert attempt(settings, uploaded) == EXIT_DONE
    assert time.monotonic() - started < 30
    assert versions.by_id(db, uploaded.id).status == DatasetStatus.UPLOADED


def test_a_picture_that_hangs_its_decoder_is_not_waited_for(
    settings: Settings, db: Database, uploaded: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_STALL_SECONDS", 1)
    monkeypatch.setattr("worker.datasets.decoding.read_header", lambda *_, **__: signal.pause())
    started = time.monotonic()
    assert attempt(settings, uploaded) == EXIT_DONE
    assert time.monotonic() - started < 30
    assert versions.by_id(db, uploaded.id).status == DatasetStatus.UPLOADED


def test_one_that_is_asked_to_stop_leaves_and_settles_nothing(
    settings: Settings, db: Database, uploaded: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(watch: Any) -> None:
        while True:
            watch("decoding", 0, 0)
            time.sleep(0.01)

    def stop(pid: int) -> None:
        while versions.by_id(db, uploaded.id).step is None:
            time.sleep(0.01)
        os.kill(pid, signal.SIGTERM)

    instead_of_preparing(monkeypatch, work)
    assert attempt(settings, uploaded, stop) == EXIT_STOPPED
    assert versions.by_id(db, uploaded.id).status == DatasetStatus.PREPARING
    assert left(settings) == [f"{uploaded.id}.archive"]


def test_one_that_lost_its_dataset_leaves_and_writes_nothing(
    settings: Settings, db: Database, uploaded: Dataset
) -> None:
    datasets.rescue(db, max_attempts=3, dead_workers=["worker-1"])
    assert datasets.claim(db, "worker-2", 60) is not None
    assert attempt(settings, uploaded) == EXIT_STALE
    found = versions.by_id(db, uploaded.id)
    assert (found.status, found.attempt) == (DatasetStatus.PREPARING, 2)
    assert left(settings) == [f"{uploaded.id}.archive"]
