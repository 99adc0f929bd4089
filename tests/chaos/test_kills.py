"""SIGKILL, at moments that hurt: each part dies alone, and the job goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from tests.end_to_end.serving import Epochd, epochd

# A lease far longer than the tests: what is rescued in time was found dead, not waited for.
# Two slots give each training one thread, so that a busy neighbour slows these tests and no more.
PATIENT = {"EPOCHD_LEASE_SECONDS": "120", "EPOCHD_SLOTS": "2"}


@pytest.fixture
def server(fresh_data_dir: Callable[[], Path]) -> Iterator[Epochd]:
    with epochd(fresh_data_dir(), PATIENT) as running:
        yield running


def mid_epoch(server: Epochd, job_id: str, epoch: int) -> None:
    server.wait(job_id, lambda job: job["progress"]["epoch"] >= epoch and job["progress"]["batch"] > 0)


def rows(server: Epochd, job_id: str) -> list[tuple[int, float, float]]:
    return [(row["epoch"], row["train_loss"], row["test_accuracy"]) for row in server.metrics(job_id)]


def uninterrupted(server: Epochd, epochs: int) -> tuple[list[tuple[int, float, float]], str]:
    job_id = server.submit(epochs=epochs)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    return rows(server, job_id), last_sha256(server, job_id)


def last_sha256(server: Epochd, job_id: str) -> str:
    sha256: str = server.http.get(f"/jobs/{job_id}/checkpoints").json()["data"][-1]["sha256"]
    return sha256


def test_a_killed_training_names_its_signal_and_is_tried_again(server: Epochd) -> None:
    job_id = server.submit(epochs=4)
    mid_epoch(server, job_id, 2)
    (pid,) = server.attempt_pids()
    os.kill(pid, signal.SIGKILL)
    server.wait(job_id, lambda job: job["attempt"] == 2)
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded"
    first, second = job["attempts"]
    assert (first["outcome"], first["error"]["signal"]) == ("killed", "SIGKILL")
    assert "SIGKILL" in first["error"]["message"]
    assert second["resumed_from"] is not None
    assert [row["epoch"] for row in server.metrics(job_id)] == [1, 2, 3, 4]
    assert [row["seq"] for row in server.metrics(job_id)] == [1, 2, 3, 4]

    whole, _ = uninterrupted(server, 4)
    assert rows(server, job_id) == whole


def test_a_job_that_is_killed_each_time_is_failed_and_the_queue_goes_on(server: Epochd) -> None:
    job_id = server.submit(epochs=100)
    for attempt in (1, 2, 3):
        server.wait(job_id, lambda job, n=attempt: job["attempt"] == n and bool(server.attempt_pids()))  # type: ignore[misc]
        (pid,) = server.attempt_pids()
        os.kill(pid, signal.SIGSEGV)
        server.wait(job_id, lambda job, n=attempt: job["attempts"][n - 1]["outcome"] is not None)  # type: ignore[misc]
    job = server.wait_terminal(job_id)
    assert (job["status"], job["error"]["code"], job["error"]["signal"]) == ("failed", "killed", "SIGSEGV")
    assert [each["outcome"] for each in job["attempts"]] == ["killed"] * 3
    assert server.wait_terminal(server.submit(epochs=1))["status"] == "succeeded"


def test_a_killed_worker_is_replaced_and_its_job_goes_on(server: Epochd) -> None:
    job_id = server.submit(epochs=4)
    mid_epoch(server, job_id, 2)
    (training,) = server.attempt_pids()
    os.kill(server.pid_of("worker"), signal.SIGKILL)
    server.wait(job_id, lambda job: job["attempt"] == 2)
    assert not Path(f"/proc/{training}").exists()  # the attempt died with its worker
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded"
    assert [each["outcome"] for each in job["attempts"]] == ["worker_lost", "succeeded"]
    assert [row["epoch"] for row in server.metrics(job_id)] == [1, 2, 3, 4]


def test_everything_killed_at_once_goes_on_after_a_restart(fresh_data_dir: Callable[[], Path]) -> None:
    data_dir = fresh_data_dir()
    with epochd(data_dir, PATIENT) as server:
        job_id = server.submit(epochs=3)
        mid_epoch(server, job_id, 2)
        for pid in [server.process.pid, *server.processes()]:
            os.kill(pid, signal.SIGKILL)
        server.process.wait(10)
    with epochd(data_dir, PATIENT) as server:
        job = server.wait_terminal(job_id)
        assert job["status"] == "succeeded"
        assert [each["outcome"] for each in job["attempts"]] == ["worker_lost", "succeeded"]
        assert rows(server, job_id) == uninterrupted(server, 3)[0]


def test_a_killed_preloaded_process_costs_one_attempt(server: Epochd) -> None:
    job_id = server.submit(epochs=3)
    mid_epoch(server, job_id, 1)
    os.kill(server.preloaded_pid(), signal.SIGKILL)
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded"
    first, second = job["attempts"]
    assert (first["outcome"], second["outcome"]) == ("crashed", "succeeded")


def test_a_killed_service_comes_back_on_its_address_and_the_job_trains_on(server: Epochd) -> None:
    job_id = server.submit(epochs=3)
    mid_epoch(server, job_id, 1)
    os.kill(server.pid_of("service"), signal.SIGKILL)
    with suppress(httpx2.TransportError):  # a connection that was open is gone, a new one waits
        server.job(job_id)
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded"
    assert len(job["attempts"]) == 1
