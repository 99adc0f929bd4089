"""A job is cancelled or paused at any instant: it is saved and stays so, and when it goes on it gives the same bits.

`CANCELS` of it, 6 unless told otherwise, and a fifth as many jobs that are paused again and again.
"""

import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chaos.long_job import LONG, SHORT, Place, assert_ends_undisturbed, place, saved_place, until
from tests.chaos.workplace import TERMINAL, checkpoint_files, database, small_data_dir, wait_finished
from tests.end_to_end.serving import Epochd, epochd
from worker.jobs import records
from worker.jobs.db import Database

CANCELS: Final = int(os.environ.get("CANCELS", "6"))
SEED: Final = int(os.environ.get("SEED", "1"))
MOST_SECONDS: Final = 10.0  # a generous bound: what is promised is 5, on a machine that has nothing else to do
SETTINGS: Final = {"EPOCHD_SLOTS": "2", "EPOCHD_LEASE_SECONDS": "60"}
_log = logging.getLogger(__name__)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return small_data_dir(tmp_path / "data")


@pytest.fixture
def db(data_dir: Path) -> Iterator[Database]:
    with database(data_dir) as opened:
        yield opened


def ask(server: Epochd, job_id: str, action: str, body: dict[str, str] | None = None) -> None:
    answer = server.http.post(f"/jobs/{job_id}/{action}", json=body)
    assert answer.status_code in (200, 202, 409), answer.text
    if answer.status_code == 409:  # it has been faster
        assert server.job(job_id)["status"] == "succeeded"


def trained(job: dict[str, Any]) -> Place:
    """What a save that is asked for now has to hold at least."""
    has_begun = bool(job["attempts"]) and job["attempts"][-1]["first_batch_at"] is not None
    return max(place(job), (0, 1)) if has_begun else (0, 0)


def seconds_to_leave(server: Epochd, db: Database, job_id: str, action: str, *, now: bool = False) -> float:
    """Cancels or pauses the job. No process of it is left then, its files are those that its rows name, and unless
    it was to leave `now` it has saved what it had trained."""
    before = trained(server.job(job_id))
    asked = time.monotonic()
    ask(server, job_id, action, {"mode": "now"} if now else None)
    job = server.wait(job_id, lambda job: job["status"] in (*TERMINAL, "paused"))
    seconds = time.monotonic() - asked
    until(lambda: not server.trainings_of(job_id), 5)  # one that says itself how it ended leaves a moment later
    until(lambda: checkpoint_files(server.data_dir, job_id) == set(records.files(db, job_id)), 5)
    if job["status"] != "succeeded" and not now:
        assert saved_place(db, job_id) >= before
    return seconds


def assert_stays_cancelled(server: Epochd, job_ids: list[str]) -> None:
    for job_id in job_ids:
        job = server.job(job_id)
        assert job["status"] == "cancelled"
        assert [each["status"] for each in job["transitions"]].count("cancelled") == 1
        assert job["transitions"][-1]["status"] == "cancelled"
        assert [each["outcome"] for each in job["attempts"]] in ([], ["cancelled"])


def test_cancelled_jobs_leave_in_time_stay_cancelled_and_can_be_retried(data_dir: Path, db: Database) -> None:
    rng, cancelled = random.Random(SEED), []
    seconds: dict[bool, list[float]] = {False: [], True: []}  # by whether it was to leave now
    with epochd(data_dir, SETTINGS) as server:
        for number in range(CANCELS):
            job_id, now = server.submit(**LONG), number % 4 == 3
            time.sleep(rng.uniform(0, 1.5))
            seconds[now].append(seconds_to_leave(server, db, job_id, "cancel", now=now))
            if server.job(job_id)["status"] != "succeeded":
                cancelled.append(job_id)
        wait_finished(server, [server.submit(**SHORT)])
        assert_stays_cancelled(server, cancelled)
    with epochd(data_dir, SETTINGS) as server:
        wait_finished(server, [server.submit(**SHORT)])
        assert_stays_cancelled(server, cancelled)
        saved = {job_id: saved_place(db, job_id) for job_id in cancelled}
        for job_id in cancelled:
            ask(server, job_id, "retry")
        assert_ends_undisturbed(server, *cancelled)
        for job_id in cancelled:
            last = server.job(job_id)["attempts"][-1]
            assert (last["resumed_from"] or 0, last["resumed_batch"] or 0) == saved[job_id]
    saving, at_once = sorted(seconds[False]), max(seconds[True], default=0.0)
    p99 = saving[int(0.99 * (len(saving) - 1))]
    _log.info("%d cancels: p99 %.2f s, longest %.2f s, at once %.2f s", CANCELS, p99, saving[-1], at_once)
    assert max(*saving, at_once) < MOST_SECONDS
    assert any(each > (0, 0) for each in saved.values())


def test_jobs_that_are_paused_and_go_on_at_any_instant_end_with_the_same_bits(data_dir: Path, db: Database) -> None:
    rng, seconds, jobs = random.Random(SEED), [], []
    with epochd(data_dir, SETTINGS) as server:
        for _ in range(max(1, CANCELS // 5)):
            jobs.append(server.submit(**LONG))
            for _ in range(4):
                time.sleep(rng.uniform(0, 0.8))
                if rng.random() < 0.25:  # it does not get to leave
                    ask(server, jobs[-1], "pause")
                else:
                    seconds.append(seconds_to_leave(server, db, jobs[-1], "pause"))
                ask(server, jobs[-1], "resume")
            assert_ends_undisturbed(server, jobs[-1])  # before the next one, or that would wait for a slot
        outcomes = [each["outcome"] for job_id in jobs for each in server.job(job_id)["attempts"]]
    _log.info("%d pauses, the longest took %.2f s: %s", len(seconds), max(seconds), outcomes)
    assert set(outcomes) <= {"paused", "released", "succeeded"}
    assert "paused" in outcomes
