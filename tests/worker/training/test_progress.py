import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from worker.jobs import queue, records, submitting
from worker.jobs.db import Database
from worker.jobs.errors import StaleAttempt
from worker.jobs.processes import Stopped
from worker.jobs.records import Progress
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.states import Phase
from worker.training import progress
from worker.training.progress import Reporter

BATCHES: list[Any] = [object()] * 10


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[Progress]:
    """What a reporter records, in place of the database."""
    found: list[Progress] = []
    monkeypatch.setattr(records, "record_first_batch", lambda *a: found.append(a[3]))
    monkeypatch.setattr(Reporter._record, "__defaults__", (lambda *a: found.append(a[3]),))
    return found


@pytest.fixture
def reporter() -> Reporter:
    return Reporter(None, "job", 1, epochs=4)  # type: ignore[arg-type]


def test_a_fast_epoch_reports_its_start_and_its_first_batch_only(reporter: Reporter, written: list[Progress]) -> None:
    assert list(reporter.train(BATCHES, 1, 100)) == BATCHES
    assert [(each.phase, each.epoch, each.batch) for each in written] == [
        (Phase.TRAINING, 1, 0),
        (Phase.TRAINING, 1, 1),
    ]
    list(reporter.test(BATCHES))
    list(reporter.train(BATCHES, 2, 100))
    assert written[2:] == []  # all of it was over within a second


def test_a_phase_that_begins_late_is_told_at_once(
    reporter: Reporter, written: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(reporter.train(BATCHES, 1, 100))
    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0.0)
    reporter.begin(Phase.SAVING)
    assert written[-1].phase is Phase.SAVING


def test_a_slow_epoch_reports_at_most_once_in_the_interval(
    reporter: Reporter, written: list[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_REPORT_SECONDS", 0.04)
    for _ in reporter.train(BATCHES, 1, 100):
        time.sleep(0.01)
    assert 2 <= len(written) <= 6
    assert written[-1].samples_per_second == pytest.approx(1000, rel=0.6)


def test_the_time_left_counts_the_epochs_to_come(reporter: Reporter, written: list[Progress]) -> None:
    for _ in reporter.train(BATCHES, 1, 100):
        time.sleep(0.01)
    done = reporter.epoch_done()
    assert done.eta_seconds == pytest.approx(3 * 0.1, rel=0.6)


def test_sigterm_stops_between_two_batches(reporter: Reporter, written: list[Progress]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    reporter.listen()
    try:
        batches = reporter.train(BATCHES, 1, 100)
        next(batches), next(batches)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            next(batches)
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[tuple[Database, str]]:
    db = Database(Settings(data_dir=tmp_path).resolved_database_url)
    db.migrate()
    job_id = submitting.enqueue(db, Spec()).id
    queue.claim(db, "worker", 30)
    yield db, job_id
    db.close()


def test_a_database_that_is_away_costs_a_report_and_not_the_training(
    owned: tuple[Database, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, job_id = owned
    reporter = Reporter(db, job_id, 1, epochs=4)

    def away() -> Any:
        raise OperationalError("BEGIN IMMEDIATE", {}, Exception("database is locked"))

    monkeypatch.setattr(db, "write", away)
    assert list(reporter.train(BATCHES, 1, 100)) == BATCHES


def test_an_attempt_that_lost_its_job_is_told_at_its_next_report(owned: tuple[Database, str]) -> None:
    db, job_id = owned
    reporter = Reporter(db, job_id, 2, epochs=4)
    with pytest.raises(StaleAttempt):
        reporter.begin(Phase.PREPARING)
