"""What a key may do, and whose things it sees: a walk over all routes, with keys of every kind."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from tests.service.conftest import Serve
from tests.service.test_auth import PUBLIC, addresses, bearer
from tests.worker.jobs.making import claim, finish, record
from worker.jobs import aliases, datasets, keys, submitting
from worker.jobs.db import Database
from worker.jobs.form import Form
from worker.jobs.owners import Caller
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Scope
from worker.jobs.submitting import Origin
from worker.jobs.tables import Job

READ, SUBMIT, PREDICT, ADMIN = Scope.READ, Scope.SUBMIT, Scope.PREDICT, Scope.ADMIN


@pytest.fixture
def closed(serve: Serve) -> TestClient:
    return serve(api_key=SecretStr("a-key-that-is-long-enough"))


def key(client: TestClient, db: Database, *scopes: Scope, **more: Any) -> dict[bytes, bytes]:
    made, _ = keys.create(db, scopes or (READ, SUBMIT, PREDICT), **more)
    client.app.state.keys.look()  # type: ignore[attr-defined]
    return bearer(made)


def right(method: str, path: str) -> Scope:
    """What the README says that an address needs."""
    if path == "/v2" or path.startswith(("/predict", "/v2/")):
        return PREDICT
    return READ if method in ("GET", "HEAD", "OPTIONS") else SUBMIT


def test_every_address_refuses_a_key_that_is_for_something_else(closed: TestClient, db: Database) -> None:
    headers = {scope: key(closed, db, scope) for scope in Scope}
    assert isinstance(closed.app, FastAPI)
    walked = [each for each in addresses(closed.app) if each[1] not in PUBLIC]
    assert len(walked) > 35
    for method, path in walked:
        for scope, presented in headers.items():
            status = closed.request(method, path, headers=presented).status_code
            assert (status != 403) == (scope in (right(method, path), ADMIN)), (method, path, scope, status)
            assert status != 401


def test_what_is_refused_says_which_scope_it_needs(closed: TestClient, db: Database) -> None:
    answer = closed.post("/jobs", json={}, headers=key(closed, db, READ))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "`submit`" in answer.json()["detail"]


def test_a_key_that_is_revoked_or_over_opens_nothing(closed: TestClient, db: Database) -> None:
    for more in ({"name": "revoked"}, {"days": -1.0}):
        headers = key(closed, db, **more)
        if "name" in more:
            assert closed.get("/jobs", headers=headers).status_code == 200
            keys.revoke(db, headers[b"Authorization"].decode().split()[1])
            closed.app.state.keys.look()  # type: ignore[attr-defined]
        assert closed.get("/jobs", headers=headers).status_code == 401


def test_a_service_on_loopback_is_open_until_the_first_key_and_never_again(client: TestClient, db: Database) -> None:
    assert client.get("/jobs").status_code == 200
    headers = key(client, db)
    assert client.get("/jobs").status_code == 401
    assert client.get("/jobs", headers=headers).status_code == 200
    keys.revoke(db, keys.every(db)[0].id)
    client.app.state.keys.look()  # type: ignore[attr-defined]
    assert client.get("/jobs").status_code == 401


@pytest.fixture
def anns(db: Database, closed: TestClient) -> tuple[Job, dict[bytes, bytes]]:
    """A job with a checkpoint, a dataset and an alias of one key."""
    headers = key(closed, db, name="ann")
    caller = Caller(keys.every(db)[-1].owner, sees_all=False)
    submitting.enqueue(db, Spec(), Origin(caller))
    job = claim(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    aliases.put(db, "shoes", job.id, "best", caller)
    datasets.add_upload(db, "a" * 24, Form(name="hats"), caller.owner)
    return job, headers


def test_nobody_elses_things_are_there(closed: TestClient, db: Database, anns: tuple[Job, dict[bytes, bytes]]) -> None:
    job, ann = anns
    bob, admin = key(closed, db), key(closed, db, ADMIN)
    assert isinstance(closed.app, FastAPI)
    paths = [(method, path) for method, path in _templates(closed.app) if "{job_id}" in path or "{name}" in path]
    assert len(paths) > 25
    for method, path in paths:
        if method == "DELETE" or path.endswith("/stream"):
            continue
        name = "hats" if path.startswith("/datasets") else "shoes"
        address = path.replace("{job_id}", job.id).replace("{name}", name).replace("{which}", "1")
        address = re.sub(r"{(epoch|version)}", "1", address)
        body = {"epochs": 1} if path.endswith("extend") else {"job": job.id} if method == "PUT" else None
        foreign = closed.request(method, address, headers=bob, json=body)
        assert foreign.status_code in (404, 405, 415), (method, path, foreign.text)
        if method == "GET" and not path.startswith("/v2"):
            told = foreign.json()["detail"]
            unknown = closed.request(method, address.replace(job.id, "0" * 24).replace(name, "nothing"), headers=ann)
            assert unknown.json()["detail"] == told, path  # not even that it is there
            assert closed.request(method, address, headers=admin).status_code != 404, (method, path)
    for method, address in (("DELETE", f"/jobs/{job.id}"), ("DELETE", "/models/shoes"), ("DELETE", "/datasets/hats")):
        assert closed.request(method, address, headers=bob).status_code == 404
        assert closed.request("GET", address, headers=ann).status_code == 200


def _templates(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


def test_lists_hold_what_is_ones_own(closed: TestClient, db: Database, anns: tuple[Job, dict[bytes, bytes]]) -> None:
    _, ann = anns
    bob, admin = key(closed, db), key(closed, db, ADMIN)
    for headers, count in ((ann, 1), (bob, 0), (admin, 1)):
        assert len(closed.get("/jobs", headers=headers).json()["data"]) == count
        assert len(closed.get("/models", headers=headers).json()["data"]) == count
        named = [each["name"] for each in closed.get("/datasets", headers=headers).json()["data"]]
        assert ("hats" in named, "fashion-mnist" in named) == (count == 1, True)


def test_two_keys_may_use_the_same_names(
    closed: TestClient, db: Database, anns: tuple[Job, dict[bytes, bytes]]
) -> None:
    job, ann = anns
    bob = key(closed, db)
    owner = keys.every(db)[-1].owner
    assert datasets.add_upload(db, "b" * 24, Form(name="hats"), owner).version == 1
    assert closed.get("/datasets/hats", headers=bob).json()["versions"] == [1]
    other = submitting.enqueue(db, Spec(), Origin(Caller(owner, sees_all=False)))
    record(db, claim(db), 1)
    assert closed.put("/models/shoes", json={"job": other.id}, headers=bob).status_code == 201
    assert closed.get("/models/shoes", headers=ann).json()["job"] == job.id
    assert closed.get("/models/shoes", headers=bob).json()["job"] == other.id


def test_a_job_cannot_train_on_somebody_elses_dataset(
    closed: TestClient, db: Database, anns: tuple[Job, dict[bytes, bytes]]
) -> None:
    _, ann = anns
    spec = {"dataset": {"name": "hats"}, "model": {"hidden": [8]}}
    assert closed.post("/jobs", json=spec, headers=ann).status_code == 201
    answer = closed.post("/jobs", json=spec, headers=key(closed, db))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/dataset/name")


def test_a_prediction_without_a_name_asks_ones_own_newest_job(
    closed: TestClient, db: Database, anns: tuple[Job, dict[bytes, bytes]]
) -> None:
    job, ann = anns
    picture = {"content": b"x", "headers": ann | {b"Content-Type": b"image/png"}}
    assert closed.post("/predict", **picture).json()["job"] == job.id  # type: ignore[arg-type]
    bob = {"content": b"x", "headers": key(closed, db) | {b"Content-Type": b"image/png"}}
    assert closed.post("/predict", **bob).json()["code"] == "not_ready"  # type: ignore[arg-type]


def test_a_built_in_dataset_is_everybodys_and_only_an_admin_deletes_it(closed: TestClient, db: Database) -> None:
    bob = key(closed, db)
    assert closed.get("/datasets/fashion-mnist", headers=bob).json()["status"] == "ready"
    assert closed.delete("/datasets/fashion-mnist", headers=bob).status_code == 403
    assert closed.delete("/datasets/fashion-mnist", headers=key(closed, db, ADMIN)).status_code == 204


def test_a_stream_ends_when_its_key_is_revoked(closed: TestClient, db: Database) -> None:
    headers = key(closed, db)
    job = submitting.enqueue(db, Spec(), Origin(Caller(keys.every(db)[0].owner, sees_all=False)))
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(closed.get, f"/jobs/{job.id}/stream", headers=headers)
        with pytest.raises(TimeoutError):
            following.result(1)
        keys.revoke(db, keys.every(db)[0].id)
        closed.app.state.keys.look()  # type: ignore[attr-defined]
        assert "event: end" not in following.result(5).text
