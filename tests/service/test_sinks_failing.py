"""What a sink cannot write holds up nothing else, and is written later."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from service.sinks.csv_files import CsvFiles
from service.sinks.pump import Pump
from service.sinks.sink import Sink
from tests.service.test_sinks import CSV, Log, table, turn, wanted
from tests.worker.jobs.making import finish, record, running
from worker.jobs import sinks
from worker.jobs.db import Database
from worker.jobs.states import Outcome
from worker.jobs.tables import Job


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "csv"


class Broken(CsvFiles):
    """Cannot write some jobs, or any."""

    def __init__(self, folder: Path, broken: Iterable[str] = (), *, is_away: bool = False) -> None:
        super().__init__(folder, 0)
        self.broken, self.is_away, self.tries = set(broken), is_away, 0

    def begin(self, job: Job, pages: Iterator[Any], known: Any) -> None:
        self.tries += 1
        if self.is_away or job.id in self.broken:
            raise ConnectionError("the server is away")
        super().begin(job, pages, known)


def jobs(db: Database, count: int) -> list[Job]:
    made = []
    for _ in range(count):
        job = running(db)
        record(db, job, 1)
        finish(db, job, Outcome.SUCCEEDED)
        made.append(job)
    return made


def test_a_job_that_cannot_be_written_holds_up_no_other_and_is_tried_again(
    db: Database, folder: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = jobs(db, 5)
    sink = Broken(folder, [first.id])
    kept = turn(db, sink)
    for job in others:
        assert table(folder, job) == wanted(db, job)
    tries = sink.tries
    kept.turn(Event())
    assert sink.tries == tries  # not yet
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    sink.broken.clear()
    kept.turn(Event())
    assert table(folder, first) == wanted(db, first)
    said = [(line["event"], line["sink"]) for line in log if line["event"].startswith("sink_")]
    assert said == [("sink_failed", "csv"), ("sink_works_again", "csv")]


def test_a_sink_that_is_away_is_left_alone_for_a_while_and_said_once(db: Database, folder: Path, log: Log) -> None:
    jobs(db, 10)
    sink = Broken(folder, is_away=True)
    kept = Pump(CSV, db, lambda: sink)
    with pytest.raises(ConnectionError):
        kept.turn(Event())
    assert sink.tries == 3
    waited = []

    class Stop(Event):
        def wait(self, seconds: float | None = None) -> bool:
            waited.append(seconds)
            sink.is_away = len(waited) < 2
            if len(waited) == 3:
                self.set()
            return True

    kept.run(Stop())
    assert waited == [1.0, 2.0, 1.0]
    said = [line for line in log if line["event"] == "sink_failed"]
    assert len(said) == 1
    assert "the server is away" in said[0]["reason"]
    assert set(sinks.backlog(db, CSV)) <= set(kept._delays)


def test_a_sink_that_cannot_even_be_opened_is_opened_later(db: Database, folder: Path, log: Log) -> None:
    (job,) = jobs(db, 1)
    opened: list[int] = []

    def open_sink() -> Sink:
        opened.append(1)
        if len(opened) < 3:
            raise ConnectionError("the server is away")
        return CsvFiles(folder, 0)

    class Stop(Event):
        def wait(self, seconds: float | None = None) -> bool:
            if len(opened) == 3:
                self.set()
            return True

    Pump(CSV, db, open_sink).run(Stop())
    assert table(folder, job) == wanted(db, job)


def test_a_full_disk_is_said_and_leaves_the_table_as_it_was(
    db: Database, folder: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(db)
    record(db, job, 1)
    kept = turn(db, CsvFiles(folder, 0))
    before = table(folder, job)
    kept._sink = CsvFiles(folder, 2**62)
    record(db, job, 2)
    kept.turn(Event())
    assert table(folder, job) == before
    assert "less free in the data folder" in log[-1]["reason"]
    kept._sink = CsvFiles(folder, 0)
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    kept.turn(Event())
    assert table(folder, job) == wanted(db, job)


def test_jobs_that_are_done_are_not_remembered(db: Database, folder: Path) -> None:
    jobs(db, 4)
    job = running(db)
    kept = turn(db, CsvFiles(folder, 0))
    assert list(kept._held) == [job.id]
    finish(db, job, Outcome.SUCCEEDED)
    kept.turn(Event())
    assert not kept._held
    assert not [path for path in Path("/proc/self/fd").iterdir() if str(folder) in _target(path)]


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def test_what_is_trained_comes_before_what_was_missed_long_ago_which_goes_on_in_the_next_turn(
    db: Database, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs(db, 3)
    job = running(db)
    begun: list[str] = []
    clock = [0.0]

    class Noted(CsvFiles):
        def begin(self, job: Job, pages: Iterator[Any], known: Any) -> None:
            begun.append(job.id)
            clock[0] += 0.6  # it takes so long
            super().begin(job, pages, known)

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    kept = turn(db, Noted(folder, 0))
    assert begun[0] == job.id
    assert len(begun) == 3
    record(db, job, 1)
    kept.turn(Event())
    assert len(begun) == 4
    assert table(folder, job) == wanted(db, job)
