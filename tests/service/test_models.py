"""Aliases over HTTP. What each request does to the rows is `aliases.py`'s own test."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.predictor import FakePredictor
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import claim, finish, record, running, saved
from worker.jobs import control, records
from worker.jobs.db import Database
from worker.jobs.errors import CheckpointCorrupt, Internal
from worker.jobs.ids import new_id
from worker.jobs.records import Resumed
from worker.jobs.states import Outcome
from worker.jobs.tables import Job
from worker.jobs.wire import WarmRequest

PICTURE = {"Content-Type": "image/png"}


@pytest.fixture
def job(db: Database) -> Job:
    return trained(db)


def trained(db: Database, **spec: Any) -> Job:
    """The second epoch is the best."""
    job = running(db, **spec)
    for epoch, accuracy in enumerate((0.5, 0.9, 0.7), start=1):
        record(db, job, epoch, test_accuracy=accuracy)
    finish(db, job, Outcome.SUCCEEDED)
    return job


def warmed(predictor: FakePredictor) -> list[str]:
    """The paths of what it was to load."""
    return [request.path for request, _ in predictor.asked if isinstance(request, WarmRequest)]


def answering(client: TestClient, query: str = "model=shoes") -> tuple[str, int]:
    """Which job and epoch answer a picture."""
    answer = client.post(f"/predict?{query}", content=b"picture", headers=PICTURE)
    assert answer.status_code == 200, answer.text
    return answer.json()["job"], answer.json()["checkpoint"]["epoch"]


@pytest.mark.parametrize(
    ("asked", "epoch"),
    [
        ({}, 2),
        ({"checkpoint": "best"}, 2),
        ({"checkpoint": "last"}, 3),
        ({"checkpoint": 1}, 1),
        ({"checkpoint": "1"}, 1),
    ],
)
def test_a_new_alias_is_shown_whole(client: TestClient, job: Job, asked: dict[str, Any], epoch: int) -> None:
    answer = client.put("/models/shoes", json={"job": job.id} | asked)
    assert (answer.status_code, answer.headers["Location"]) == (201, "/models/shoes")
    body = answer.json()
    assert body == {
        "name": "shoes",
        "owner": "",
        "job": job.id,
        "checkpoint": {"epoch": epoch, "sha256": saved(epoch).sha256},
        "version": 1,
        "previous": None,
        "created_at": body["created_at"],
        "updated_at": body["created_at"],
        "url": "/models/shoes",
    }
    assert client.get(body["url"]).json() == body
    assert client.get("/models").json() == {"data": [body]}


def test_an_alias_is_moved_rolled_back_and_deleted(client: TestClient, db: Database, job: Job) -> None:
    assert client.get("/models").json() == {"data": []}
    other = trained(db)
    client.put("/models/shoes", json={"job": job.id})
    moved = client.put("/models/shoes", json={"job": other.id, "checkpoint": 3})
    assert (moved.status_code, "Location" in moved.headers) == (200, False)
    assert (moved.json()["version"], moved.json()["previous"]) == (2, {"job": job.id, "epoch": 2})
    assert client.put("/models/shoes", json={"job": other.id, "checkpoint": "last"}).json() == moved.json()
    back = client.post("/models/shoes/rollback")
    assert back.status_code == 200
    assert (back.json()["job"], back.json()["checkpoint"]["epoch"], back.json()["version"]) == (job.id, 2, 3)
    assert back.json()["previous"] == {"job": other.id, "epoch": 3}
    gone = client.delete("/models/shoes")
    assert (gone.status_code, gone.content) == (204, b"")
    assert client.get("/models").json() == {"data": []}
    for answer in (
        client.get("/models/shoes"),
        client.delete("/models/shoes"),
        client.post("/models/shoes/rollback"),
        client.post("/predict?model=shoes", content=b"picture", headers=PICTURE),
    ):
        assert_problem(answer, 404, "not_found")


def test_the_same_request_again_makes_no_new_alias(client: TestClient, job: Job) -> None:
    statuses = [client.put("/models/shoes", json={"job": job.id}).status_code for _ in range(3)]
    assert statuses == [201, 200, 200]
    assert client.get("/models/shoes").json()["version"] == 1


def test_whoever_asks_next_is_answered_by_the_new_one(client: TestClient, db: Database, job: Job) -> None:
    other = trained(db)
    for _ in range(3):
        for target, epoch in ((job, 1), (other, 3)):
            client.put("/models/shoes", json={"job": target.id, "checkpoint": epoch})
            assert answering(client) == (target.id, epoch)
        client.post("/models/shoes/rollback")
        assert answering(client) == (job.id, 1)


def test_the_alias_default_answers_when_nothing_is_named(client: TestClient, db: Database, job: Job) -> None:
    newest = trained(db)
    assert answering(client, "") == (newest.id, 2)
    client.put("/models/default", json={"job": job.id, "checkpoint": 1})
    assert answering(client, "") == (job.id, 1)
    client.delete("/models/default")
    assert answering(client, "") == (newest.id, 2)


def test_what_is_to_answer_is_loaded_first(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    client.put("/models/shoes", json={"job": job.id, "checkpoint": 1})
    client.put("/models/shoes", json={"job": job.id, "checkpoint": 3})
    client.post("/models/shoes/rollback")
    assert warmed(predictor) == [saved(1).path, saved(3).path, saved(1).path]
    first, _ = predictor.asked[0]
    assert isinstance(first, WarmRequest)
    assert first.sha256 == saved(1).sha256


def test_what_is_damaged_is_refused_before_the_alias_moves(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    client.put("/models/shoes", json={"job": job.id, "checkpoint": 1})
    client.put("/models/shoes", json={"job": job.id, "checkpoint": 3})
    before = client.get("/models").json()
    predictor.error = CheckpointCorrupt()
    for answer in (
        client.put("/models/shoes", json={"job": job.id, "checkpoint": 2}),
        client.put("/models/hats", json={"job": job.id, "checkpoint": 2}),
        client.post("/models/shoes/rollback"),
    ):
        assert_problem(answer, 409, "checkpoint_corrupt")
    assert client.get("/models").json() == before


def test_an_alias_moves_while_the_predictor_is_away(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    predictor.ready = False
    assert client.put("/models/shoes", json={"job": job.id, "checkpoint": 1}).status_code == 201
    assert client.put("/models/shoes", json={"job": job.id, "checkpoint": 3}).status_code == 200
    assert client.post("/models/shoes/rollback").json()["checkpoint"]["epoch"] == 1


def test_an_alias_does_not_move_when_something_is_wrong_in_the_predictor(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    predictor.error = Internal()
    assert_problem(client.put("/models/shoes", json={"job": job.id}), 500, "internal")
    assert_problem(client.get("/models/shoes"), 404, "not_found")


def test_a_checkpoint_that_was_just_replaced_gives_way_to_the_new_one(
    client: TestClient, db: Database, predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes while it is loaded, and then between that and the transaction."""
    job = running(db, checkpoints={"keep": "last"})
    record(db, job, 1)
    later = iter((2, 3, 4))

    async def ask(request: WarmRequest, body: bytes = b"") -> bytes:
        predictor.asked.append((request, body))
        if (epoch := next(later, None)) is None:
            return b""
        record(db, job, epoch)
        if epoch == 2:
            raise CheckpointCorrupt
        return b""

    monkeypatch.setattr(predictor, "ask", ask)
    answer = client.put("/models/shoes", json={"job": job.id, "checkpoint": "last"})
    assert (answer.status_code, answer.json()["checkpoint"]["epoch"]) == (201, 4)
    assert warmed(predictor) == [saved(epoch).path for epoch in (1, 2, 3, 4)]
    record(db, job, 5)
    assert_problem(client.put("/models/shoes", json={"job": job.id, "checkpoint": 1}), 404, "not_found")
    assert answering(client) == (job.id, 4)


def test_an_alias_whose_checkpoint_is_gone_says_so(client: TestClient, db: Database) -> None:
    job = trained(db, epochs=3)
    newer = trained(db)
    client.put("/models/default", json={"job": job.id, "checkpoint": 3})
    control.extend(db, job.id, 1)
    records.record_start(db, job.id, claim(db).attempt, {}, Resumed(2, 0, []))  # the third one was damaged
    client.app.state.resolver.forget()  # type: ignore[attr-defined]  # the worker cannot
    assert client.get("/models/default").json()["checkpoint"] == {"epoch": 3, "sha256": None}
    for query in ("model=default", ""):  # and nobody answers in its place
        answer = client.post(f"/predict?{query}", content=b"picture", headers=PICTURE)
        assert_problem(answer, 409, "checkpoint_corrupt")
        assert "point the alias elsewhere" in answer.json()["detail"]
    assert client.put("/models/default", json={"job": newer.id}).status_code == 200
    answer = client.post("/models/default/rollback")
    assert_problem(answer, 409, "conflict")
    assert f"epoch 3 of job {job.id}" in answer.json()["detail"]


def test_there_is_nothing_to_roll_back_to_at_first(client: TestClient, job: Job) -> None:
    client.put("/models/shoes", json={"job": job.id})
    assert_problem(client.post("/models/shoes/rollback"), 409, "conflict")


def test_a_job_that_an_alias_points_at_is_not_deleted(client: TestClient, job: Job) -> None:
    client.put("/models/shoes", json={"job": job.id})
    answer = client.delete(f"/jobs/{job.id}")
    assert_problem(answer, 409, "conflict")
    assert answer.json()["detail"] == "The alias shoes points at this job; point it elsewhere or delete it first."
    client.delete("/models/shoes")
    assert client.delete(f"/jobs/{job.id}").status_code == 204


def test_an_alias_points_only_at_what_is_there(client: TestClient, db: Database, job: Job) -> None:
    empty = running(db)
    for asked, status, code in (
        ({"job": new_id()}, 404, "not_found"),
        ({"job": "\0"}, 404, "not_found"),
        ({"job": job.id, "checkpoint": 4}, 404, "not_found"),
        ({"job": empty.id}, 409, "not_ready"),
    ):
        assert_problem(client.put("/models/shoes", json=asked), status, code)
    assert client.get("/models").json() == {"data": []}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/job"),
        ({"checkpoint": "best"}, "#/job"),
        ({"job": 1}, "#/job"),
        ({"job": None}, "#/job"),
        ({"job": "x" * 65}, "#/job"),
        ({"job": "x", "checkpoint": "worst"}, "#/checkpoint"),
        ({"job": "x", "checkpoint": "all"}, "#/checkpoint"),
        ({"job": "x", "checkpoint": -1}, "#/checkpoint"),
        ({"job": "x", "checkpoint": 1.0}, "#/checkpoint"),
        ({"job": "x", "checkpoint": True}, "#/checkpoint"),
        ({"job": "x", "checkpoint": None}, "#/checkpoint"),
        ({"job": "x", "checkpoint": 10**30}, "#/checkpoint"),
        ({"job": "x", "epoch": 1}, "#/epoch"),
        ([], "#"),
    ],
)
def test_a_mistyped_body_is_refused(client: TestClient, body: Any, pointer: str) -> None:
    answer = client.put("/models/shoes", json=body)
    assert_problem(answer, 422, "validation_error")
    assert [each["pointer"] for each in answer.json()["errors"]] == [pointer]


@pytest.mark.parametrize("name", ["Shoes", "-shoes", "sho es", "é", "a" * 65, "%00", "a%00b", "shoes%0A", "%2e%2e"])
def test_a_name_that_cannot_be_is_refused_and_never_found(client: TestClient, job: Job, name: str) -> None:
    assert_problem(client.put(f"/models/{name}", json={"job": job.id}), 422, "validation_error")
    status, code = (422, "validation_error") if len(name) > 64 else (404, "not_found")
    assert_problem(client.get(f"/models/{name}"), status, code)
    assert_problem(client.delete(f"/models/{name}"), status, code)
    assert_problem(client.post(f"/models/{name}/rollback"), status, code)


def test_a_form_is_no_body(client: TestClient, job: Job) -> None:
    client.put("/models/shoes", json={"job": job.id})
    for answer in (
        client.put("/models/shoes", data={"job": job.id}),
        client.post("/models/shoes/rollback", data={"to": "1"}),
    ):
        assert_problem(answer, 415, "unsupported_media_type")
    assert_problem(client.post("/models/shoes/rollback", json={"to": 1}), 422, "validation_error")


def test_the_description_says_what_may_be_sent_and_answered(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    paths = description["paths"]
    assert {"200", "201", "400", "403", "404", "409", "415", "422", "507"} <= set(
        paths["/models/{name}"]["put"]["responses"]
    )
    assert {"200", "404", "409", "507"} <= set(paths["/models/{name}/rollback"]["post"]["responses"])
    assert {"204", "404"} <= set(paths["/models/{name}"]["delete"]["responses"])
    checkpoint = description["components"]["schemas"]["AliasTarget"]["properties"]["checkpoint"]
    assert {each["type"] for each in checkpoint["anyOf"]} == {"integer", "string"}
    assert checkpoint["default"] == "best"


def test_an_alias_that_is_swapped_under_load_is_always_answered_for(client: TestClient, db: Database, job: Job) -> None:
    other = trained(db)
    targets = [(job.id, 1), (other.id, 3)]
    client.put("/models/shoes", json={"job": job.id, "checkpoint": 1})
    with _asking(client) as seen:
        for number in range(40):
            job_id, epoch = targets[number % 2]
            assert client.put("/models/shoes", json={"job": job_id, "checkpoint": epoch}).status_code == 200
            assert answering(client) == (job_id, epoch)
    assert set(seen) == set(targets)


@contextmanager
def _asking(client: TestClient) -> Iterator[list[tuple[str, int]]]:
    """Some ask all the time; what they are answered by."""
    done, seen = threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            seen.append(answering(client))

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        try:
            yield seen
        finally:
            done.set()
    for each in asked:
        each.result()
