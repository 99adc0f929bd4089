"""SIGTERM gives jobs back, saved inside their epoch, and costs no attempt; a second one leaves at once.

`TERMS` of it, 3 unless told otherwise: one of them is a SIGINT, and some come while epochd starts.
"""

import logging
import os
import random
import signal
import time
from pathlib import Path
from typing import Final

from tests.chaos.long_job import (
    LONG,
    Place,
    assert_ends_undisturbed,
    assert_files_are_named,
    place,
    saved_place,
    until,
    wait_training,
)
from tests.chaos.workplace import TERMINAL, database, small_data_dir
from tests.end_to_end.serving import Epochd, epochd
from worker.jobs import queue, records
from worker.jobs.db import Database

TERMS: Final = int(os.environ.get("TERMS", "3"))
SEED: Final = int(os.environ.get("SEED", "1"))
CANCEL_SECONDS, GRACE_SECONDS = 5.0, 10.0
SETTINGS: Final = {
    "EPOCHD_SLOTS": "2",
    "EPOCHD_LEASE_SECONDS": "60",
    "EPOCHD_CANCEL_SECONDS": str(CANCEL_SECONDS),
    "EPOCHD_MAX_ATTEMPTS": "1",  # one that is burned fails the job
}
_log = logging.getLogger(__name__)


class Two:
    """Jobs that train at the same time. One that has ended makes room for another."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.ended: list[str] = []
        self.given_back = 0
        self._saved: dict[str, Place] = {}

    def train(self, server: Epochd) -> None:
        self.ended += [job_id for job_id in self.jobs if server.job(job_id)["status"] in TERMINAL]
        self.jobs = [job_id for job_id in self.jobs if job_id not in self.ended]
        self.jobs += [server.submit(**LONG) for _ in range(2 - len(self.jobs))]
        for job_id in self.jobs:
            wait_training(server, job_id)
            if job_id in self._saved:
                attempt = server.job(job_id)["attempts"][-1]
                went_on = (attempt["resumed_from"] or 0, attempt["resumed_batch"] or 0)
                assert went_on == self._saved[job_id]
                assert attempt["resume"] == ("exact" if went_on > (0, 0) else None)

    def places(self, server: Epochd) -> dict[str, Place]:
        return {job_id: place(server.job(job_id)) for job_id in self.jobs}

    def assert_given_back(self, db: Database, data_dir: Path, before: dict[str, Place]) -> None:
        """With all that they had trained."""
        for job_id in self.jobs:
            job, attempts = queue.get(db, job_id), records.attempts(db, job_id)
            assert job.status in ("queued", "succeeded")
            assert [each.outcome for each in attempts[:-1]] == ["released"] * (len(attempts) - 1)
            assert attempts[-1].outcome == ("released" if job.status == "queued" else "succeeded")
            assert all(each.error is None for each in attempts)
            self._saved[job_id] = saved_place(db, job_id)
            assert self._saved[job_id] >= before.get(job_id, (0, 0))
            assert_files_are_named(db, data_dir, job_id)
            self.given_back += job.status == "queued"


def seconds_to_stop(server: Epochd, how: signal.Signals) -> float:
    started = time.monotonic()
    assert server.stop(how) == 0
    return time.monotonic() - started


def test_each_signal_is_heard_in_time_and_burns_no_attempt(tmp_path: Path) -> None:
    data_dir, rng, two, seconds = small_data_dir(tmp_path / "data"), random.Random(SEED), Two(), []
    for number in range(TERMS):
        is_early = number % 4 == 2  # while the parts start
        with epochd(data_dir, SETTINGS, wait_ready=not is_early) as server, database(data_dir) as db:
            before: dict[str, Place] = {}
            if not is_early:
                two.train(server)
            time.sleep(rng.uniform(0, 2))
            if not is_early:
                before = two.places(server)
            seconds.append(seconds_to_stop(server, signal.SIGINT if number == 1 else signal.SIGTERM))
            two.assert_given_back(db, data_dir, before)
    assert max(seconds) < CANCEL_SECONDS + GRACE_SECONDS
    assert two.given_back > 0
    with epochd(data_dir, SETTINGS) as server:
        assert_ends_undisturbed(server, *two.jobs, *two.ended)
    _log.info("%d signals gave %d jobs back, the slowest after %.1f s", TERMS, two.given_back, max(seconds))


def test_a_second_signal_ends_everything_at_once_and_the_job_goes_on_after_a_restart(tmp_path: Path) -> None:
    data_dir = small_data_dir(tmp_path / "data")
    settings = SETTINGS | {"EPOCHD_CANCEL_SECONDS": "60", "EPOCHD_MAX_ATTEMPTS": "3"}
    with epochd(data_dir, settings | {"EPOCHD_CHECKPOINT_SECONDS": "0.2"}) as server:
        job_id = server.submit(**LONG)
        server.wait(job_id, lambda job: job["progress"]["epoch"] > 2)
        (training,) = server.trainings_of(job_id)
        os.kill(training, signal.SIGSTOP)  # it does not hear that it should leave
        processes = server.processes()
        server.process.terminate()
        time.sleep(1)
        assert server.process.poll() is None
        asked = time.monotonic()
        assert server.stop() == 1
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in processes), 5)
        _log.info("a second signal: all %d processes gone after %.2f s", len(processes), time.monotonic() - asked)
    with epochd(data_dir, settings) as server:
        assert_ends_undisturbed(server, job_id)
        attempts = server.job(job_id)["attempts"]
        assert [each["outcome"] for each in attempts] == ["worker_lost", "succeeded"]
        assert attempts[1]["resumed_from"] >= 2
