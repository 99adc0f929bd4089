"""Pause, resume, cancel, retry, extend, delete, and the logs, over HTTP with real trainings."""

import time
from typing import Any

import pytest

from tests.end_to_end.serving import Epochd

SPEC: dict[str, Any] = {
    "model": {"hidden": [128], "dropout": 0.2},
    "optimizer": {"lr": 0.05, "momentum": 0.9},
    "augmentation": {"flip": "horizontal"},
    "batch_size": 64,
    "threads": 1,
}


def post(server: Epochd, job_id: str, action: str, body: Any = None) -> Any:
    answer = (
        server.http.post(f"/jobs/{job_id}/{action}", json=body)
        if body
        else server.http.post(f"/jobs/{job_id}/{action}")
    )
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


def last(server: Epochd, job_id: str) -> str:
    digest: str = server.http.get(f"/jobs/{job_id}/checkpoints").json()["data"][-1]["weights_sha256"]
    return digest


def curve(server: Epochd, job_id: str) -> list[tuple[Any, ...]]:
    return [(row["epoch"], row["train_loss"], row["test_loss"]) for row in server.metrics(job_id)]


def mid_epoch(server: Epochd, job_id: str, epoch: int) -> None:
    server.wait(job_id, lambda job: job["progress"]["epoch"] == epoch and job["progress"]["batch"] > 0)


@pytest.fixture(scope="module")
def four(server: Epochd) -> str:
    """A job of four epochs that nobody disturbed."""
    job_id = server.submit(**SPEC, epochs=4)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    return job_id


def test_a_paused_job_frees_its_slot_and_goes_on_to_the_same_bits(server: Epochd, four: str) -> None:
    job_id = server.submit(**SPEC, epochs=4)
    mid_epoch(server, job_id, 2)
    assert post(server, job_id, "pause")["status"] in ("pausing", "paused")
    paused = server.wait(job_id, lambda job: job["status"] == "paused")
    assert paused["attempts"][0]["outcome"] == "paused"
    other = server.submit(epochs=1, threads=1, model={"hidden": [8]})
    assert server.wait_terminal(other)["status"] == "succeeded"
    assert server.job(job_id)["status"] == "paused"
    assert post(server, job_id, "resume")["status"] == "queued"
    job = server.wait_terminal(job_id)
    assert (job["status"], job["resume"], job["resume_reason"]) == ("succeeded", "exact", None)
    second = job["attempts"][1]
    assert (1, 0) < (second["resumed_from"], second["resumed_batch"]) < (4, 0)
    assert last(server, job_id) == last(server, four)
    assert curve(server, job_id) == curve(server, four)


def test_a_cancelled_job_has_saved_and_can_be_retried(server: Epochd, four: str) -> None:
    job_id = server.submit(**SPEC, epochs=4)
    mid_epoch(server, job_id, 2)
    asked = time.monotonic()
    assert post(server, job_id, "cancel")["status"] in ("cancelling", "cancelled")
    job = server.wait_terminal(job_id)
    assert time.monotonic() - asked < 10
    assert job["status"] == "cancelled"
    assert post(server, job_id, "retry")["status"] == "queued"
    job = server.wait_terminal(job_id)
    second = job["attempts"][1]
    assert job["status"] == "succeeded"
    assert (1, 0) < (second["resumed_from"], second["resumed_batch"]) < (4, 0)
    assert last(server, job_id) == last(server, four)


def test_two_epochs_and_two_more_are_four(server: Epochd, four: str) -> None:
    job_id = server.submit(**SPEC, epochs=2)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    assert post(server, job_id, "extend", {"epochs": 2})["spec"]["epochs"] == 4
    job = server.wait_terminal(job_id)
    assert [each["outcome"] for each in job["attempts"]] == ["succeeded", "succeeded"]
    assert last(server, job_id) == last(server, four)
    assert curve(server, job_id) == curve(server, four)


def test_a_suggestion_that_is_taken_mends_the_job(server: Epochd) -> None:
    job_id = server.submit(**SPEC | {"optimizer": {"lr": 1e6}, "loss": {"name": "mse"}, "epochs": 1})
    job = server.wait_terminal(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "diverged")
    for _ in range(10):
        post(server, job_id, "retry", {"apply_suggestion": True})
        job = server.wait_terminal(job_id)
        if job["status"] == "succeeded":
            break
    assert job["status"] == "succeeded", job["error"]
    assert job["spec"]["optimizer"]["lr"] < 1000
    assert [row["epoch"] for row in server.metrics(job_id)] == [1]


def test_a_log_can_be_followed_to_its_end(server: Epochd, four: str) -> None:
    page = server.http.get(f"/jobs/{four}/logs").json()
    assert (page["attempt"], page["terminal"]) == (1, True)
    assert sum("epoch_done" in line for line in page["data"]) == 4
    assert server.http.get(f"/jobs/{four}/logs?since={page['next_since']}").json()["data"] == []


def test_a_deleted_job_leaves_nothing(server: Epochd) -> None:
    job_id = server.submit(epochs=1, threads=1, model={"hidden": [8]})
    server.wait_terminal(job_id)
    assert (server.data_dir / "jobs" / job_id).is_dir()
    assert server.http.delete(f"/jobs/{job_id}").status_code == 204
    assert not list((server.data_dir / "jobs").glob(f"*{job_id}*"))
    assert server.http.get(f"/jobs/{job_id}").status_code == 404
