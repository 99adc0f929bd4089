"""Jobs that kill their process each time, or hang: they cost their own attempts, and nobody else's."""

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.long_job import LONG, SHORT, assert_ends_undisturbed, assert_files_are_named, until, wait_training
from tests.chaos.patching import patched_by
from tests.chaos.workplace import database, small_data_dir
from tests.end_to_end.serving import Epochd, epochd

STALL_SECONDS = 2.0
SLACK_SECONDS = 5.0  # to find a stall, write the stacks and kill; and as much again for a machine that is busy
SETTINGS = {
    "EPOCHD_SLOTS": "1",
    "EPOCHD_STALL_SECONDS": str(STALL_SECONDS),
    "EPOCHD_HEARTBEAT_SECONDS": "0.5",  # soon enough to be in the way of who watches
    "EPOCHD_CHECKPOINT_SECONDS": "0.3",
}
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochd]:
    with epochd(small_data_dir(tmp_path_factory.mktemp("data")), SETTINGS | patched_by("unwell")) as running:
        yield running


def outcomes(job: dict[str, Any]) -> list[str]:
    return [each["outcome"] for each in job["attempts"]]


def log_of(server: Epochd, job_id: str, attempt: int) -> str:
    lines: list[str] = server.http.get(f"/jobs/{job_id}/logs?attempt={attempt}").raise_for_status().json()["data"]
    return "\n".join(lines)


def seconds_until_stalled(server: Epochd, job_id: str) -> float:
    seconds = until(lambda: server.job(job_id)["attempts"][0]["outcome"] is not None, 60)
    _log.info("stalled after %.1f seconds, found %.1f seconds later", STALL_SECONDS, seconds - STALL_SECONDS)
    return seconds


def test_a_job_that_ends_its_process_each_time_gets_three_attempts_and_the_next_ten_finish(server: Epochd) -> None:
    poison = server.submit(**LONG, name="segfaults")
    others = [server.submit(**SHORT | {"seed": seed}) for seed in range(10)]
    job = server.wait_terminal(poison)
    assert job["status"] == "failed"
    assert outcomes(job) == ["killed"] * 3
    for told in (job["error"], *(each["error"] for each in job["attempts"])):
        assert (told["code"], told["signal"], told["phase"]) == ("killed", "SIGSEGV", "training")
        assert "SIGSEGV" in told["message"]
        assert "in _live" in told["log_tail"]  # of the stack that faulthandler writes
    for other in others:
        job = server.wait_terminal(other)
        assert (job["status"], outcomes(job)) == ("succeeded", ["succeeded"])
    assert server.job(poison)["attempt"] == 3
    assert server.trainings_of(poison) == []


def test_a_training_that_is_frozen_is_killed_and_goes_on_to_the_same_bits(server: Epochd) -> None:
    job_id = server.submit(**LONG)
    wait_training(server, job_id)
    time.sleep(1)
    (training,) = server.trainings_of(job_id)
    os.kill(training, signal.SIGSTOP)
    assert seconds_until_stalled(server, job_id) < STALL_SECONDS + 2 * SLACK_SECONDS
    assert not Path(f"/proc/{training}").exists()
    assert_ends_undisturbed(server, job_id)
    job = server.job(job_id)
    assert outcomes(job) == ["stalled", "succeeded"]
    assert job["attempts"][0]["error"]["code"] == "stalled"
    assert job["resume"] == "exact"
    with database(server.data_dir) as db:
        assert_files_are_named(db, server.data_dir, job_id)


def test_a_training_that_hangs_says_where_and_is_tried_again(server: Epochd) -> None:
    job_id = server.submit(**LONG, name="hangs")
    wait_training(server, job_id)
    assert seconds_until_stalled(server, job_id) < STALL_SECONDS + 2 * SLACK_SECONDS
    assert "in _hang\n" in log_of(server, job_id, 1)
    assert_ends_undisturbed(server, job_id)
    job = server.job(job_id)
    assert outcomes(job) == ["stalled", "succeeded"]
    assert job["attempts"][0]["error"]["log_tail"]


def test_a_training_that_hangs_with_the_databases_lock_does_not_keep_it_for_ever(server: Epochd) -> None:
    job_id = server.submit(**LONG, name="hangs with the database's lock")
    wait_training(server, job_id)
    seconds_until_stalled(server, job_id)
    assert_ends_undisturbed(server, job_id)
    assert outcomes(server.job(job_id)) == ["stalled", "succeeded"]
