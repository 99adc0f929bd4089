"""What a job's owner may ask for, over HTTP. What each request does to each status is `control.py`'s own test."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import Serve
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import finish, job_with_status, record, running
from worker.jobs import queue
from worker.jobs.db import Database
from worker.jobs.errors import Diverged
from worker.jobs.failures import Failure
from worker.jobs.ids import new_id
from worker.jobs.states import Outcome, Status

ACTIONS = ("cancel", "pause", "resume", "retry", "extend")


def ask(client: TestClient, job_id: str, action: str, body: Any = None) -> Any:
    if action == "extend" and body is None:
        body = {"epochs": 2}
    return client.post(f"/jobs/{job_id}/{action}", json=body) if body else client.post(f"/jobs/{job_id}/{action}")


@pytest.mark.parametrize(
    ("status", "action", "code", "then"),
    [
        (Status.QUEUED, "cancel", 200, "cancelled"),
        (Status.RUNNING, "cancel", 202, "cancelling"),
        (Status.CANCELLING, "cancel", 202, "cancelling"),
        (Status.CANCELLED, "cancel", 200, "cancelled"),
        (Status.SUCCEEDED, "cancel", 409, "succeeded"),
        (Status.QUEUED, "pause", 200, "paused"),
        (Status.RUNNING, "pause", 202, "pausing"),
        (Status.PAUSED, "pause", 200, "paused"),
        (Status.FAILED, "pause", 409, "failed"),
        (Status.PAUSED, "resume", 200, "queued"),
        (Status.PAUSING, "resume", 200, "running"),
        (Status.SUCCEEDED, "resume", 409, "succeeded"),
        (Status.FAILED, "retry", 200, "queued"),
        (Status.CANCELLED, "retry", 200, "queued"),
        (Status.SUCCEEDED, "retry", 409, "succeeded"),
        (Status.FAILED, "extend", 409, "failed"),
    ],
)
def test_done_at_once_under_way_or_not_possible(
    client: TestClient, db: Database, status: Status, action: str, code: int, then: str
) -> None:
    job = job_with_status(db, status)
    answer = ask(client, job.id, action)
    assert answer.status_code == code
    if code == 409:
        assert_problem(answer, 409, "conflict")
    else:
        assert answer.json()["status"] == then
    assert client.get(f"/jobs/{job.id}").json()["status"] == then


def test_a_cancellation_may_be_for_now(client: TestClient, db: Database) -> None:
    job = running(db)
    assert client.post(f"/jobs/{job.id}/cancel", json={}).status_code == 202
    assert not queue.get(db, job.id).stop_now
    assert client.post(f"/jobs/{job.id}/cancel", json={"mode": "now"}).status_code == 202
    assert queue.get(db, job.id).stop_now


def test_a_job_that_is_extended_is_queued_with_more_epochs(client: TestClient, db: Database) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    body = ask(client, job.id, "extend", {"epochs": 5}).json()
    assert (body["status"], body["spec"]["epochs"], body["finished_at"]) == ("queued", 6, None)
    assert len(client.get(f"/jobs/{job.id}/metrics").json()["data"]) == 1


def test_a_retry_may_take_what_the_error_suggests(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    queue.finish(db, job.id, 1, Outcome.FAILED, Failure.of(Diverged()), max_attempts=3)
    shown = client.get(f"/jobs/{job.id}").json()
    assert shown["error"]["suggestion"] == {"optimizer": {"lr": 0.0001}}
    body = ask(client, job.id, "retry", {"apply_suggestion": True}).json()
    assert (body["status"], body["error"], body["spec"]["optimizer"]["lr"]) == ("queued", None, 0.0001)
    assert client.get(f"/jobs/{job.id}/checkpoints").json()["data"] == []


@pytest.mark.parametrize(
    ("action", "body", "pointer"),
    [
        ("cancel", {"mode": "later"}, "#/mode"),
        ("cancel", {"force": True}, "#/force"),
        ("cancel", [], "#"),
        ("pause", {"mode": "now"}, "#/mode"),
        ("resume", {"at": "once"}, "#/at"),
        ("retry", {"apply_suggestions": True}, "#/apply_suggestions"),
        ("retry", {"apply_suggestion": "yes"}, "#/apply_suggestion"),
        ("extend", {"epochs": "5"}, "#/epochs"),
        ("extend", {"epochs": 1.5}, "#/epochs"),
        ("extend", {}, "#/epochs"),
        ("extend", {"epochs": 0}, "#/epochs"),
        ("extend", {"epochs": 100_001}, "#/epochs"),
        ("extend", {"epoch": 5}, "#/epochs"),
    ],
)
def test_a_mistyped_body_is_refused(client: TestClient, db: Database, action: str, body: Any, pointer: str) -> None:
    job = job_with_status(db, Status.FAILED)
    answer = client.post(f"/jobs/{job.id}/{action}", json=body)
    assert_problem(answer, 422, "validation_error")
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert queue.get(db, job.id).status == Status.FAILED


@pytest.mark.parametrize("action", ACTIONS)
def test_a_form_is_no_body(client: TestClient, db: Database, action: str) -> None:
    job = job_with_status(db, Status.RUNNING)
    answer = client.post(f"/jobs/{job.id}/{action}", data={"mode": "now"})
    assert_problem(answer, 415, "unsupported_media_type")
    assert "--json" in answer.json()["detail"]
    assert client.post(f"/jobs/{job.id}/{action}", content=b"{}").status_code == 415
    assert queue.get(db, job.id).status == Status.RUNNING


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"content": b""},
        {"content": iter([b""])},  # chunked, and then nothing comes
        {"headers": {"Content-Type": "application/json"}},  # curl --json ''
        {"headers": {"Content-Type": "application/x-www-form-urlencoded"}},  # curl -d ''
        {"json": {}},
        {"content": b"{}", "headers": {"Content-Type": "application/json; charset=utf-8"}},
    ],
)
def test_what_can_be_left_out_can_be_left_out_in_every_way(
    client: TestClient, db: Database, request_: dict[str, Any]
) -> None:
    job = job_with_status(db, Status.RUNNING)
    for action, status in (("pause", "pausing"), ("resume", "running"), ("cancel", "cancelling")):
        assert client.post(f"/jobs/{job.id}/{action}", **request_).json()["status"] == status
    failed = job_with_status(db, Status.FAILED)
    assert client.post(f"/jobs/{failed.id}/retry", **request_).json()["status"] == "queued"


@pytest.mark.parametrize("action", ACTIONS)
def test_a_body_that_is_no_json_is_refused(client: TestClient, db: Database, action: str) -> None:
    job = job_with_status(db, Status.RUNNING)
    for content, code in ((b"{'mode': 'now'}", "invalid_json"), (b'"\xff"', "invalid_json")):
        headers = {"Content-Type": "application/json"}
        assert_problem(client.post(f"/jobs/{job.id}/{action}", content=content, headers=headers), 400, code)
    assert queue.get(db, job.id).status == Status.RUNNING


def test_without_epochs_nothing_is_extended(client: TestClient, db: Database) -> None:
    job = job_with_status(db, Status.SUCCEEDED)
    assert_problem(client.post(f"/jobs/{job.id}/extend"), 422, "validation_error")
    assert queue.get(db, job.id).status == Status.SUCCEEDED


def test_too_many_epochs_in_sum_are_a_sentence(client: TestClient, db: Database) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    answer = ask(client, job.id, "extend", {"epochs": 100_000})
    assert_problem(answer, 422, "validation_error")
    assert answer.json()["errors"][0]["pointer"] == "#/epochs"
    assert (queue.get(db, job.id).spec["epochs"], queue.get(db, job.id).status) == (1, Status.SUCCEEDED)


def test_without_a_suggestion_there_is_none_to_apply(client: TestClient, db: Database) -> None:
    job = job_with_status(db, Status.CANCELLED)
    assert_problem(ask(client, job.id, "retry", {"apply_suggestion": True}), 409, "conflict")
    assert ask(client, job.id, "retry", {"apply_suggestion": False}).json()["status"] == "queued"


def test_a_paused_job_waits_for_nothing_but_its_owner(client: TestClient, db: Database) -> None:
    job = job_with_status(db, Status.QUEUED)
    assert client.get(f"/jobs/{job.id}").json()["queue"] is not None
    assert ask(client, job.id, "pause").json()["queue"] is None
    assert ask(client, job.id, "resume").json()["queue"] is not None


@pytest.mark.parametrize("action", ACTIONS)
def test_an_unknown_job_is_not_there(client: TestClient, db: Database, action: str) -> None:
    assert_problem(ask(client, new_id(), action), 404, "not_found")


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED, Status.CANCELLED])
def test_a_job_that_has_ended_is_deleted_with_its_files(
    client: TestClient, db: Database, data_dir: Path, status: Status
) -> None:
    job = job_with_status(db, status)
    folder = data_dir / "jobs" / job.id
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "epoch-000001-attempt-1.safetensors").touch()
    answer = client.delete(f"/jobs/{job.id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not folder.exists()
    assert_problem(client.get(f"/jobs/{job.id}"), 404, "not_found")
    assert_problem(client.delete(f"/jobs/{job.id}"), 404, "not_found")


@pytest.mark.parametrize("status", [Status.QUEUED, Status.RUNNING, Status.PAUSED, Status.CANCELLING])
def test_a_job_that_has_not_ended_is_not_deleted(client: TestClient, db: Database, status: Status) -> None:
    job = job_with_status(db, status)
    assert_problem(client.delete(f"/jobs/{job.id}"), 409, "conflict")
    assert queue.get(db, job.id).status == status


def test_work_that_would_find_no_space_is_refused(serve: Serve, db: Database) -> None:
    failed = job_with_status(db, Status.FAILED)
    client = serve(min_free_bytes=2**62)
    for path, body in (("/jobs", {}), (f"/jobs/{failed.id}/retry", None), (f"/jobs/{failed.id}/extend", {"epochs": 1})):
        answer = client.post(path, json=body) if body is not None else client.post(path)
        assert_problem(answer, 507, "disk_full")
        assert "Delete datasets or jobs" in answer.json()["detail"]
    assert queue.get(db, failed.id).status == Status.FAILED
    assert client.post("/jobs?dry_run=true", json={}).status_code == 200  # it stores nothing
