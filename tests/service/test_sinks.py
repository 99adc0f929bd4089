"""Sinks are kept up with the database: what they hold is what polling gives, whenever they are killed or broken."""

import math
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.bodies.metrics import CSV_HEADER, csv_lines
from service.sinks import pump
from service.sinks.csv_files import CsvFiles
from service.sinks.pump import Pump
from service.sinks.sink import Sink
from tests.worker.jobs.making import claim, finish, record, running
from worker.jobs import control, records, sinks, submitting
from worker.jobs.db import Database
from worker.jobs.records import Resumed
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, SinkKind
from worker.jobs.tables import Job

Log = list[MutableMapping[str, Any]]
CSV = SinkKind.CSV


def turn(db: Database, sink: Sink, kind: SinkKind = CSV) -> Pump:
    """What a process does that has just been started."""
    made = Pump(kind, db, lambda: sink)
    made.turn(Event())
    return made


def rewind(db: Database, job: Job, done: int) -> Job:
    """The job's attempt leaves, and the next one goes on behind an older epoch."""
    finish(db, job, Outcome.RELEASED)
    again = claim(db)
    records.record_start(db, job.id, again.attempt, {}, Resumed(epoch=done, batch=0, differences=[]))
    return again


def wanted(db: Database, job: Job) -> str:
    return CSV_HEADER + csv_lines(records.epochs(db, job.id))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "csv"


@pytest.fixture
def sink(folder: Path) -> CsvFiles:
    return CsvFiles(folder, 0)


def table(folder: Path, job: Job) -> str:
    return (folder / f"{job.id}.csv").read_text()


def test_a_table_follows_its_job_and_is_what_the_address_gives(
    client: TestClient, db: Database, sink: CsvFiles, folder: Path
) -> None:
    job = running(db, epochs=3)
    kept = turn(db, sink)
    assert table(folder, job) == CSV_HEADER
    for epoch in (1, 2, 3):
        record(db, job, epoch, train_loss=1 / epoch if epoch < 3 else math.nan)
        kept.turn(Event())
        assert table(folder, job) == wanted(db, job) == client.get(f"/jobs/{job.id}/metrics.csv").text
    finish(db, job, Outcome.SUCCEEDED)
    kept.turn(Event())
    assert list(sinks.backlog(db, CSV)) == []
    control.extend(db, job.id, 1)
    record(db, claim(db), 4)
    kept.turn(Event())
    assert table(folder, job) == wanted(db, job)


def test_a_job_of_many_epochs_is_written_in_pages(
    db: Database, sink: CsvFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "ROWS", 3)
    job = running(db, epochs=20)
    for epoch in range(1, 8):
        record(db, job, epoch)
    kept = turn(db, sink)
    assert table(folder, job) == wanted(db, job)
    for epoch in range(8, 15):
        record(db, job, epoch)
    kept.turn(Event())
    assert table(folder, job) == wanted(db, job)


def test_epochs_that_are_recorded_again_replace_the_earlier_ones(db: Database, sink: CsvFiles, folder: Path) -> None:
    job = running(db, epochs=9)
    for epoch in (1, 2, 3):
        record(db, job, epoch)
    kept = turn(db, sink)
    again = rewind(db, job, 1)
    kept.turn(Event())
    assert table(folder, job) == wanted(db, job)
    assert len(table(folder, job).splitlines()) == 2
    record(db, again, 2, train_loss=9.0)
    kept.turn(Event())
    record(db, again, 3, train_loss=8.0)
    record(db, again, 2, train_loss=7.0)  # by itself, in the same attempt
    kept.turn(Event())
    assert table(folder, job) == wanted(db, job)


def test_an_epoch_that_is_forgotten_while_it_is_written_is_noticed(
    db: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "ROWS", 2)
    job = running(db, epochs=9)
    for epoch in range(1, 6):
        record(db, job, epoch)

    begun: list[int] = []

    class Slow(CsvFiles):
        def begin(self, job: Job, pages: Iterator[Any], known: Any) -> None:
            begun.append(job.attempt)

            def later() -> Iterator[Any]:
                yield next(pages)
                again = rewind(db, job, 1)
                for epoch in (2, 3, 4, 5, 6, 7):
                    record(db, again, epoch, train_loss=9.0)
                yield from pages

            super().begin(job, later() if job.attempt == 1 else pages, known)

    turn(db, Slow(folder, 0)).turn(Event())
    assert begun == [1, 2]
    assert table(folder, job) == wanted(db, job)


@pytest.mark.parametrize("left", ["", "seq,epoch\n1,1,0.", CSV_HEADER + "1,1,2.0\n1,1,2.0\n"])
def test_whatever_a_killed_process_has_left_is_written_anew(
    db: Database, sink: CsvFiles, folder: Path, left: str
) -> None:
    job = running(db)
    record(db, job, 1)
    turn(db, sink)
    (folder / f"{job.id}.csv").write_text(left)
    record(db, job, 2)
    turn(db, sink)
    assert table(folder, job) == wanted(db, job)


def test_a_table_that_somebody_removes_comes_back_with_the_next_epoch(
    db: Database, sink: CsvFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "_RETRY_SECONDS", 0.0)
    job = running(db)
    record(db, job, 1)
    kept = turn(db, sink)
    (folder / f"{job.id}.csv").unlink()
    record(db, job, 2)
    kept.turn(Event())
    kept.turn(Event())
    assert table(folder, job) == wanted(db, job)


def test_in_a_new_folder_everything_is_written_anew(db: Database, sink: CsvFiles, tmp_path: Path) -> None:
    job = running(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    turn(db, sink)
    other = tmp_path / "other"
    turn(db, CsvFiles(other, 0))
    assert table(other, job) == wanted(db, job)


def test_of_a_job_that_was_never_trained_nothing_is_written(db: Database, sink: CsvFiles, folder: Path) -> None:
    job = submitting.enqueue(db, Spec())
    control.cancel(db, job.id)
    turn(db, sink)
    assert not folder.exists()
    assert list(sinks.backlog(db, CSV)) == []


def test_the_table_of_a_job_that_is_deleted_stays(db: Database, sink: CsvFiles, folder: Path) -> None:
    job = running(db)
    record(db, job, 1)
    kept = turn(db, sink)
    text = wanted(db, job)
    finish(db, job, Outcome.FAILED)
    control.delete(db, job.id)
    kept.turn(Event())
    assert table(folder, job) == text
