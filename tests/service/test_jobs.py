"""Submit, list, look, cancel."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import Serve
from tests.worker.jobs.making import claim, finish, job_with_status, progress, record, running
from tests.worker.jobs.test_spec import BEFORE_THE_ENGINE, DEFAULTS
from worker.jobs import queue, records
from worker.jobs.db import Database
from worker.jobs.errors import Diverged
from worker.jobs.failures import Failure
from worker.jobs.spec import Spec
from worker.jobs.states import EventKind, Outcome, Phase, Status
from worker.jobs.tables import Job

JSON = {"Content-Type": "application/json"}
RESOLVED = DEFAULTS | {"dataset": {"name": "fashion-mnist", "version": 1}}


def submit(client: TestClient, **spec: object) -> dict[str, Any]:
    answer = client.post("/jobs", json=spec)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_an_empty_spec_launches_the_tutorial(client: TestClient) -> None:
    answer = client.post("/jobs", json={})
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["Location"] == f"/jobs/{job['id']}"
    assert job["spec"] == RESOLVED
    assert (job["status"], job["phase"], job["attempt"], job["attempts"]) == ("queued", None, 0, [])
    assert (job["threads"], job["events"]) == (None, [])
    assert job["progress"] == {
        "epoch": 0,
        "batch": 0,
        "batches": 0,
        "samples_per_second": None,
        "eta_seconds": None,
    }
    assert [each["status"] for each in job["transitions"]] == ["queued"]
    assert (job["started_at"], job["finished_at"], job["error"], job["provenance"]) == (None, None, None, None)


def test_what_was_asked_for_is_in_the_job(client: TestClient) -> None:
    job = submit(client, name="shoes ☃", labels={"team": "a"}, epochs=2, model={"hidden": [8], "dropout": 0.5})
    assert (job["name"], job["labels"]) == ("shoes ☃", {"team": "a"})
    assert job["spec"] == RESOLVED | {
        "name": "shoes ☃",
        "labels": {"team": "a"},
        "epochs": 2,
        "model": {"name": "mlp", "hidden": [8], "activation": "relu", "dropout": 0.5, "batch_norm": False},
    }


def test_the_address_of_a_new_job_shows_it(client: TestClient) -> None:
    launched = client.post("/jobs", json={"seed": 3})
    assert client.get(launched.headers["Location"]).json() == launched.json()


def test_the_worker_gets_what_was_submitted(client: TestClient, db: Database) -> None:
    job = submit(client, seed=2**63 - 1, optimizer={"lr": 1})
    claimed = claim(db)
    assert claimed.id == job["id"]
    wanted = {"seed": 2**63 - 1, "optimizer": {"lr": 1}, "dataset": {"version": 1}}
    assert Spec.model_validate(claimed.spec) == Spec.model_validate(wanted)


@pytest.mark.parametrize(
    "kind", ["application/json", "application/json; charset=utf-8", "application/merge-patch+json"]
)
def test_json_of_any_kind_is_taken(client: TestClient, kind: str) -> None:
    assert client.post("/jobs", content=b'{"epochs": 3}', headers={"Content-Type": kind}).json()["spec"]["epochs"] == 3


def test_looking_changes_nothing(client: TestClient) -> None:
    job = submit(client)
    for address in (f"/jobs/{job['id']}", "/jobs", f"/jobs/{job['id']}/metrics", f"/jobs/{job['id']}/checkpoints"):
        first, second = client.get(address), client.get(address)
        assert first.status_code == 200
        assert first.json() == second.json()


def test_times_are_rfc_3339_in_utc(client: TestClient, db: Database) -> None:
    job = submit(client)
    finish(db, claim(db), Outcome.SUCCEEDED)
    job = client.get(f"/jobs/{job['id']}").json()
    (attempt,) = job["attempts"]
    times = [job["created_at"], job["started_at"], job["finished_at"], attempt["started_at"], attempt["ended_at"]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", each) for each in times)
    parsed = [datetime.fromisoformat(each) for each in times]
    assert all(abs(datetime.now(UTC) - each) < timedelta(seconds=20) for each in parsed)


def test_a_running_job_shows_where_it_is(client: TestClient, db: Database) -> None:
    job = running(db)
    records.record_start(db, job.id, 1, {"seed": 0, "threads": 2}, records.Resumed(2, 5, ["torch was 1 and is 2"]))
    records.record_first_batch(db, job.id, 1, progress(2, phase=Phase.TESTING))
    body = client.get(f"/jobs/{job.id}").json()
    assert (body["status"], body["phase"], body["attempt"]) == ("running", "testing", 1)
    assert body["progress"] == {
        "epoch": 2,
        "batch": 3,
        "batches": 7,
        "samples_per_second": 100.5,
        "eta_seconds": 9.25,
    }
    assert body["provenance"] == {"seed": 0, "threads": 2}
    (attempt,) = body["attempts"]
    assert attempt["first_batch_at"] is not None
    assert (attempt["number"], attempt["outcome"]) == (1, None)
    assert (attempt["resumed_from"], attempt["resumed_batch"]) == (2, 5)
    assert (attempt["resume"], attempt["resume_reason"]) == ("approximate", "torch was 1 and is 2")


def test_a_job_is_approximate_if_one_of_its_attempts_was(client: TestClient, db: Database) -> None:
    job = running(db)
    assert client.get(f"/jobs/{job.id}").json()["resume"] is None
    for differences in ([], ["threads was 2 and is 1"], []):
        queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
        job = claim(db)
        records.record_start(db, job.id, job.attempt, {}, records.Resumed(1, 0, differences))
    body = client.get(f"/jobs/{job.id}").json()
    assert [each["resume"] for each in body["attempts"]] == [None, "exact", "approximate", "exact"]
    assert (body["resume"], body["resume_reason"]) == ("approximate", "threads was 2 and is 1")


def test_a_job_keeps_the_threads_that_it_began_with(client: TestClient, db: Database) -> None:
    job_id = submit(client)["id"]
    assert queue.claim(db, "worker-1", 60, cores=4, slots=4) is not None
    assert client.get(f"/jobs/{job_id}").json()["threads"] == 4


def test_what_a_training_did_by_itself_is_told(client: TestClient, db: Database) -> None:
    job = running(db)
    records.record_event(db, job.id, 1, 2, EventKind.MICRO_BATCH, "64 pictures at once did not fit; now 32 do.")
    records.record_event(db, job.id, 1, 3, EventKind.STOPPED_EARLY, "test_loss has not got better for 5 epochs.")
    first, second = client.get(f"/jobs/{job.id}").json()["events"]
    assert first.pop("at").endswith("Z")
    assert first == {
        "seq": 1,
        "attempt": 1,
        "epoch": 2,
        "kind": "micro_batch",
        "detail": "64 pictures at once did not fit; now 32 do.",
    }
    assert (second["seq"], second["kind"]) == (2, "stopped_early")


def test_a_diverged_job_says_what_to_try(client: TestClient, db: Database) -> None:
    job = running(db)
    error = Diverged("The loss became nan in batch 3 of epoch 1.", hint="Lower the learning rate (now 10).")
    queue.finish(db, job.id, 1, Outcome.FAILED, Failure.of(error, phase=Phase.TRAINING), max_attempts=3)
    body = client.get(f"/jobs/{job.id}").json()
    assert (body["error"]["code"], body["error"]["hint"]) == ("diverged", "Lower the learning rate (now 10).")
    assert body["error"]["suggestion"] == {"optimizer": {"lr": 0.0001}}


def test_a_job_of_before_the_spec_had_these_fields_still_reads(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    with db.write() as session:
        session.get_one(Job, job.id).spec = BEFORE_THE_ENGINE
    finish(db, job, Outcome.SUCCEEDED)
    body = client.get(f"/jobs/{job.id}").json()
    assert (body["spec"], body["threads"], body["events"]) == (BEFORE_THE_ENGINE, 1, [])
    (kept,) = client.get(f"/jobs/{job.id}/checkpoints").json()["data"]
    assert kept["is_best"]
    assert client.get("/jobs").json()["data"][0]["id"] == job.id


def test_a_failed_job_says_why_and_how_each_attempt_ended(client: TestClient, db: Database) -> None:
    job = running(db)
    finish(db, job, Outcome.KILLED)
    failure = Failure(
        code="internal", message="It broke.", phase=Phase.TRAINING, signal=None, traceback_tail="ValueError: 1"
    )
    queue.finish(db, job.id, claim(db).attempt, Outcome.FAILED, failure, max_attempts=3)
    body = client.get(f"/jobs/{job.id}").json()
    assert body["status"] == "failed"
    assert body["error"] == {
        "code": "internal",
        "message": "It broke.",
        "phase": "training",
        "signal": None,
        "traceback_tail": "ValueError: 1",
        "log_tail": None,
        "hint": None,
        "suggestion": None,
    }
    assert [(each["number"], each["outcome"], each["error"]["code"]) for each in body["attempts"]] == [
        (1, "killed", "killed"),
        (2, "failed", "internal"),
    ]
    assert [each["status"] for each in body["transitions"]] == ["queued", "running", "queued", "running", "failed"]
    (listed,) = client.get("/jobs").json()["data"]
    assert listed == {name: body[name] for name in listed}


def test_jobs_are_listed_newest_first_page_by_page(client: TestClient) -> None:
    ids = [submit(client)["id"] for _ in range(5)]
    seen: list[str] = []
    query = "?limit=2"
    for expected in (True, True, False):
        page = client.get(f"/jobs{query}").json()
        assert page["has_more"] is expected
        assert (page["next_cursor"] is not None) is expected
        seen += [job["id"] for job in page["data"]]
        query = f"?limit=2&after={page['next_cursor']}"
        submit(client)  # newer than the cursor: on none of the pages that follow
    assert seen == ids[::-1]


def test_an_empty_list_is_a_list(client: TestClient) -> None:
    assert client.get("/jobs").json() == {"data": [], "has_more": False, "next_cursor": None}


def test_jobs_are_listed_by_status(client: TestClient, db: Database) -> None:
    by_age = sorted(Status, key=lambda status: status is Status.QUEUED)  # a queued job last: nobody claims it then
    ids = {status: job_with_status(db, status).id for status in by_age}
    for status in Status:
        assert [job["id"] for job in client.get(f"/jobs?status={status}").json()["data"]] == [ids[status]]
    assert len(client.get("/jobs").json()["data"]) == len(Status)


@pytest.mark.parametrize(
    ("status", "code", "now"),
    [
        (Status.QUEUED, 200, "cancelled"),
        (Status.RUNNING, 202, "cancelling"),
        (Status.CANCELLING, 202, "cancelling"),
        (Status.CANCELLED, 200, "cancelled"),
    ],
)
def test_cancelling_is_done_or_under_way(client: TestClient, db: Database, status: Status, code: int, now: str) -> None:
    job = job_with_status(db, status)
    for _ in range(2):
        answer = client.post(f"/jobs/{job.id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (code, now)
    assert client.get(f"/jobs/{job.id}").json() == answer.json()


@pytest.mark.parametrize("status", [Status.SUCCEEDED, Status.FAILED])
def test_what_has_ended_is_not_cancelled(client: TestClient, db: Database, status: Status) -> None:
    job = job_with_status(db, status)
    answer = client.post(f"/jobs/{job.id}/cancel")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert queue.get(db, job.id).status == status


def test_the_same_request_twice_is_answered_with_the_same_job(client: TestClient) -> None:
    headers = {"Idempotency-Key": "shoes-1"}
    first = client.post("/jobs", json={"epochs": 3}, headers=headers)
    again = client.post("/jobs", content='{ "epochs":3 }', headers=headers | JSON)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Location"] == first.headers["Location"]
    assert len(client.get("/jobs").json()["data"]) == 1
    other = client.post("/jobs", json={"epochs": 4}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "é", f"epochd_{'x' * 43}"])
def test_an_idempotency_key_is_short_plain_and_no_secret(client: TestClient, key: str) -> None:
    answer = client.post("/jobs", json={}, headers={b"Idempotency-Key": key.encode()})
    assert answer.status_code in (400, 422)
    assert client.get("/jobs").json()["data"] == []


def test_a_dry_run_uses_no_idempotency_key(client: TestClient) -> None:
    client.post("/jobs?dry_run=true", json={"epochs": 2}, headers={"Idempotency-Key": "a"})
    assert client.post("/jobs", json={"epochs": 3}, headers={"Idempotency-Key": "a"}).status_code == 201


def test_a_full_queue_refuses_and_says_when_to_come_again(serve: Serve) -> None:
    client = serve(max_queued_jobs_per_key=2)
    for _ in range(2):
        submit(client)
    answer = client.post("/jobs", json={})
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_jobs")
    assert int(answer.headers["Retry-After"]) > 0


def test_a_queued_job_is_told_its_place(client: TestClient) -> None:
    first, second = submit(client), submit(client)
    assert (first["queue"]["position"], first["queue"]["ahead"]) == (1, 0)
    assert (second["queue"]["position"], second["queue"]["ahead"]) == (2, 1)
    assert second["queue"]["reason"] == "1 job begins before it."
    sooner = submit(client, priority=5)
    assert (sooner["priority"], sooner["queue"]["position"]) == (5, 1)
    assert client.get(f"/jobs/{second['id']}").json()["queue"]["position"] == 3


def test_jobs_are_found_by_labels_and_time(client: TestClient) -> None:
    red = submit(client, labels={"team": "red", "size": "l"})["id"]
    blue = submit(client, labels={"team": "blue", "size": "l"})
    for query, ids in (
        ("label.team=red", [red]),
        ("label.size=l", [blue["id"], red]),
        ("label.size=l&label.team=blue", [blue["id"]]),
        ("label.size=m", []),
        ("created_after=2020-01-01T00:00:00Z", [blue["id"], red]),
        (f"created_after={blue['created_at']}", []),
    ):
        assert [each["id"] for each in client.get(f"/jobs?{query}").json()["data"]] == ids, query


@pytest.mark.parametrize(
    "query", ["label.=a", "labels.team=a", "label=a", "created_after=yesterday", "created_after=1"]
)
def test_what_cannot_be_asked_for_is_refused(client: TestClient, query: str) -> None:
    answer = client.get(f"/jobs?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, f"?{query.partition('=')[0]}")
