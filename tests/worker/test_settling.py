"""The supervisor has sweeps settled, also those whose last trial another worker saw end."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import worker.jobs.settings
import worker.lanes
import worker.supervisor
from tests.worker.jobs.making import claim, finish, make_ready, record
from tests.worker.test_supervisor import FakeLauncher, running_supervisor, until
from worker.jobs import queue, standings, sweeps
from worker.jobs.db import Database
from worker.jobs.processes import EXIT_DONE
from worker.jobs.settings import Settings
from worker.jobs.spec import SweepForm
from worker.jobs.states import Outcome
from worker.jobs.submitting import Origin

HALVING: dict[str, Any] = {
    "spec": {"epochs": 2},
    "parameters": {"seed": {"values": [0, 1]}},
    "search": {"name": "halving", "trials": 2, "factor": 2},
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for module in (worker.lanes, worker.jobs.settings):
        monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(worker.jobs.settings, "_DEVICES", tmp_path)
    monkeypatch.setattr(
        worker.supervisor, "wait_any", lambda _, seconds: time.sleep(seconds)
    )  # attempts are no processes
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # only a main thread may
    return Settings(data_dir=tmp_path, heartbeat_seconds=5, lease_seconds=60, poll_seconds=0.005, cancel_seconds=0.2)


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    db = Database(settings.resolved_database_url)
    db.migrate()
    make_ready(db)
    yield db
    db.close()


def test_a_rung_begins_as_soon_as_the_last_trial_has_left(settings: Settings, db: Database) -> None:
    sweep = sweeps.create(db, SweepForm.model_validate(HALVING), Origin()).id
    launcher = FakeLauncher()
    with running_supervisor(settings, db, launcher):
        until(lambda: len(launcher.started) == 2)
        for accuracy, (job_id, attempt) in zip((0.2, 0.1), list(launcher.started), strict=True):
            record(db, queue.get(db, job_id), 1, test_accuracy=accuracy)
            queue.finish(db, job_id, attempt, Outcome.SUCCEEDED, max_attempts=3)
            launcher.started[job_id, attempt].exit_code = EXIT_DONE
        until(lambda: len(launcher.started) == 3, seconds=4)  # no heartbeat comes before that
        (job_id, attempt) = list(launcher.started)[2]
        assert standings.get(db, sweep).trials[0].job == job_id
        record(db, queue.get(db, job_id), 2)
        queue.finish(db, job_id, attempt, Outcome.SUCCEEDED, max_attempts=3)
        launcher.started[job_id, attempt].exit_code = EXIT_DONE
        until(lambda: standings.get(db, sweep).status == "finished", seconds=4)


def test_a_worker_settles_what_one_that_died_left(settings: Settings, db: Database) -> None:
    """It had seen the last trial end, or not even that: the trial's process had said so itself."""
    sweep = sweeps.create(db, SweepForm.model_validate(HALVING), Origin()).id
    for _ in range(2):
        job = claim(db, "worker-that-died")
        record(db, job, 1)
        finish(db, job, Outcome.SUCCEEDED)
    launcher = FakeLauncher()
    with running_supervisor(settings, db, launcher):
        until(lambda: launcher.started)
    assert standings.get(db, sweep).row.rung == 1
