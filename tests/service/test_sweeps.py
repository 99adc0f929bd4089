"""Sweeps over HTTP. What becomes of their trials is the test of `worker.jobs.sweeps`."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from service.routes import sweeps as routes
from tests.service.conftest import Serve
from tests.service.predictor import FakePredictor
from tests.service.test_auth import bearer
from tests.service.test_errors import assert_problem
from tests.service.test_scopes import key
from tests.worker.jobs.making import claim, everything, finish, record
from worker.jobs import keys, leftovers, standings, sweeps
from worker.jobs.db import Database
from worker.jobs.errors import PredictorUnavailable, SpecRefused
from worker.jobs.plan import Plan
from worker.jobs.states import Outcome, Scope

RATES: dict[str, Any] = {
    "name": "rates",
    "spec": {"epochs": 2, "labels": {"team": "a"}},
    "parameters": {"optimizer.lr": {"values": [0.1, 0.01]}, "seed": {"values": [0, 1]}},
}
HALVING: dict[str, Any] = RATES | {"search": {"name": "halving", "trials": 4, "factor": 2}}


def submit(client: TestClient, form: dict[str, Any] = RATES, **more: Any) -> dict[str, Any]:
    answer = client.post("/sweeps", json=form, **more)
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["Location"] == f"/sweeps/{body['id']}"
    return body


def end(db: Database, count: int, *accuracies: float) -> None:
    for accuracy in accuracies or (0.5,) * count:
        job = claim(db)
        record(db, job, 1, test_accuracy=accuracy)
        finish(db, job, Outcome.SUCCEEDED)


def test_a_sweep_is_submitted_looked_at_and_listed(client: TestClient, db: Database) -> None:
    body = submit(client)
    assert (body["name"], body["status"], body["search"], body["metric"]) == (
        "rates",
        "running",
        "grid",
        "test_accuracy",
    )
    assert (body["counts"], body["best"], body["rung"], body["finished_at"]) == ({"queued": 4}, None, 0, None)
    assert body["form"]["spec"]["dataset"] == {"name": "fashion-mnist", "version": 1}
    assert body["form"]["parameters"] == RATES["parameters"]
    end(db, 1, 0.75)
    shown = client.get(f"/sweeps/{body['id']}").json()
    job = shown["trials"][0]["job"]
    assert shown["best"] == {
        "trial": 1,
        "job": job,
        "status": "succeeded",
        "parameters": {"optimizer.lr": 0.1, "seed": 0},
        "epoch": 1,
        "epochs": 2,
        "value": 0.75,
        "last": 0.75,
        "progress": 1.0,
    }
    assert shown["counts"] == {"succeeded": 1, "queued": 3}
    (listed,) = client.get("/sweeps").json()["data"]
    assert listed == {name: shown[name] for name in listed}
    assert "trials" not in listed
    whole = client.get(f"/jobs/{job}").json()
    assert (whole["name"], whole["sweep"], whole["trial"]) == ("rates #1", body["id"], 1)
    of_sweep = client.get(f"/jobs?sweep={body['id']}&label.team=a&status=queued").json()["data"]
    assert [each["trial"] for each in of_sweep] == [4, 3, 2]
    assert client.get(f"/jobs?sweep={'0' * 24}").json()["data"] == []
    assert_problem(client.get("/jobs?sweep=x"), 422, "validation_error")


def test_a_job_that_is_no_trial_says_so(client: TestClient) -> None:
    job = client.post("/jobs", json={}).json()
    assert (job["sweep"], job["trial"]) == (None, None)


def test_a_dry_run_says_which_trials_there_would_be(client: TestClient, db: Database) -> None:
    before = everything(db)
    answer = client.post("/sweeps?dry_run=true", json=HALVING)
    assert (answer.status_code, answer.json()["rungs"]) == (
        200,
        [{"trials": 4, "epochs": 1}, {"trials": 2, "epochs": 2}],
    )
    trials = answer.json()["trials"]
    assert everything(db) == before
    made = submit(client, HALVING)
    assert [{name: each[name] for name in ("trial", "parameters")} for each in made["trials"]] == trials
    assert client.post("/sweeps?dry_run=true", json=RATES).json()["rungs"] == []


def test_a_form_may_leave_out_nearly_everything(client: TestClient) -> None:
    body = submit(client, {"parameters": {"seed": {"values": [7]}}})
    assert (body["name"], body["form"]["spec"]["epochs"], body["form"]["search"]) == (None, 5, {"name": "grid"})
    assert client.get(f"/jobs/{body['trials'][0]['job']}").json()["name"] == f"{body['id']} #1"


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"parameters": {"optimizer.lr": {"values": [0]}}}, "#/parameters/optimizer.lr"),
        ({"parameters": {"optimizer.speed": {"values": [1]}}}, "#/parameters/optimizer.speed"),
        ({"parameters": {"labels": {"values": [{}]}}}, "#/parameters/labels"),
        ({"parameters": {"a/b": {"values": [1]}}}, "#/parameters/a~1b"),
        ({"parameters": {"seed": {"values": list(range(1000))}, "shuffle": {"values": [True, False]}}}, "#/parameters"),
        ({"parameters": {}}, "#/parameters"),
        ({"parameters": {"seed": 1}}, "#/parameters/seed"),
        ({"parameters": {"seed": {"values": [1], "min": 2}}}, "#/parameters/seed/min"),
        ({"parameters": {"seed": {"min": 2, "max": 1}}}, "#/parameters/seed"),
        ({"parameters": {"seed": {"values": ["\u0000"]}}}, "#/parameters/seed/values/0"),
        ({"spec": {"epochs": 0}}, "#/spec/epochs"),
        ({"spec": {"optimizer": {"nesterov": True}}}, "#/spec/optimizer/nesterov"),
        ({"spec": {"dataset": {"name": "nothing"}}}, "#/spec/dataset/name"),
        ({"search": {"name": "bayes"}}, "#/search/name"),
        ({"search": {"name": "random"}}, "#/search/trials"),
        ({"search": {"name": "random", "trials": 5}}, "#/search/trials"),
        ({"search": {"name": "random", "trials": 1001}}, "#/search/trials"),
        ({"metric": "accuracy"}, "#/metric"),
        ({"metric": "test_r2"}, "#/metric"),
        ({"trials": 3}, "#/trials"),
    ],
)
def test_what_makes_no_sweep_is_refused_where_it_stands(
    client: TestClient, db: Database, change: dict[str, Any], pointer: str
) -> None:
    before = everything(db)
    for address in ("/sweeps", "/sweeps?dry_run=true"):
        answer = client.post(address, json=RATES | change)
        assert_problem(answer, 422, "validation_error")
        assert answer.json()["errors"][0]["pointer"] == pointer
    assert everything(db) == before


@pytest.mark.parametrize("address", ["/sweeps", "/sweeps?dry_run=true"])
@pytest.mark.parametrize(
    ("at", "pointer"), [("#/model/hidden", "#/parameters/model.hidden"), ("#/batch_size", "#/spec/batch_size")]
)
def test_a_network_that_cannot_be_built_is_refused_where_it_stands(
    client: TestClient, db: Database, predictor: FakePredictor, address: str, at: str, pointer: str
) -> None:
    before = everything(db)
    predictor.error = SpecRefused("It does not fit.", pointer=at)
    answer = client.post(address, json={"parameters": {"model.hidden": {"values": [[8], [16]]}}})
    assert_problem(answer, 422, "validation_error")
    assert answer.json()["errors"] == [{"pointer": pointer, "detail": "It does not fit."}]
    assert everything(db) == before


def test_each_network_is_looked_at_once_and_not_all_of_very_many(client: TestClient, predictor: FakePredictor) -> None:
    sizes = {"model.hidden": {"values": [[8], [16]]}}
    submit(client, RATES | {"parameters": sizes | RATES["parameters"]})
    assert [each.model_dump()["model"]["hidden"] for each, _ in predictor.planned] == [[8], [16]]
    assert {each.dataset.version for each, _ in predictor.planned} == {1}
    predictor.planned.clear()
    submit(client, RATES | {"parameters": {"model.hidden": {"values": [[each] for each in range(1, 31)]}}})
    assert len(predictor.planned) == 20


def test_a_predictor_that_is_away_stops_no_sweep(client: TestClient, db: Database, predictor: FakePredictor) -> None:
    predictor.error = PredictorUnavailable()
    submit(client)
    assert client.post("/sweeps?dry_run=true", json=RATES).status_code == 200
    assert len(predictor.planned) == 2  # it is not asked on and on
    predictor.reset()
    predictor.ready = False
    submit(client)
    assert predictor.planned == []


def test_a_predictor_that_thinks_for_long_stops_no_sweep(
    client: TestClient, predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ponder(*_: Any) -> Plan:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(routes, "_PLAN_SECONDS", 0.01)
    monkeypatch.setattr(predictor, "plan", ponder)
    submit(client)


def test_without_the_datasets_card_no_network_is_looked_at(
    client: TestClient, db: Database, predictor: FakePredictor
) -> None:
    with db.write() as session:
        session.connection().exec_driver_sql("DELETE FROM datasets")
    submit(client)
    assert predictor.planned == []


def test_a_sweep_that_was_cancelled_answers_as_before(client: TestClient, db: Database) -> None:
    made = submit(client)
    address = f"/sweeps/{made['id']}/cancel"
    assert client.post(address).status_code == 200
    retried = made["trials"][0]["job"]
    assert client.post(f"/jobs/{retried}/retry").status_code in (200, 202)
    answer = client.post(address)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert client.get(f"/jobs/{retried}").json()["status"] == "queued"


def test_webhooks_are_for_trials_what_they_are_for_jobs(client: TestClient) -> None:
    spec = {"webhooks": [{"url": "https://hooks.example.com/a"}]}
    assert_problem(client.post("/sweeps", json=RATES | {"spec": spec}), 422, "url_not_allowed")


def test_a_form_is_json(client: TestClient) -> None:
    assert_problem(client.post("/sweeps", data={"name": "x"}), 415, "unsupported_media_type")
    assert_problem(client.post("/sweeps?dry=true", json=RATES), 422, "validation_error")


def test_the_same_key_and_form_is_the_same_sweep(client: TestClient, db: Database) -> None:
    headers = {"Idempotency-Key": "rates-1"}
    made = submit(client, headers=headers)
    assert submit(client, headers=headers)["id"] == made["id"]
    assert_problem(client.post("/sweeps", json=HALVING, headers=headers), 422, "idempotency_mismatch")
    assert len(client.get("/jobs?limit=100").json()["data"]) == 4
    own = {"Idempotency-Key": "epochd_" + 43 * "a"}
    assert_problem(client.post("/sweeps", json=RATES, headers=own), 400, "invalid_request")


def test_a_full_disk_refuses_new_sweeps_and_not_what_was_sent_before(
    serve: Serve, client: TestClient, db: Database
) -> None:
    headers = {"Idempotency-Key": "rates-1"}
    made = submit(client, headers=headers)
    full = serve(min_free_bytes=2**60)
    assert submit(full, headers=headers)["id"] == made["id"]
    assert_problem(full.post("/sweeps", json=RATES), 507, "disk_full")
    assert full.post("/sweeps?dry_run=true", json=RATES).status_code == 200


def test_more_than_may_wait_is_refused_as_a_whole(serve: Serve) -> None:
    client = serve(max_queued_jobs_per_key=5)
    submit(client)
    answer = client.post("/sweeps", json=RATES)
    assert_problem(answer, 429, "too_many_jobs")
    assert "Retry-After" in answer.headers
    assert len(client.get("/jobs").json()["data"]) == 4


def test_a_sweep_is_cancelled_and_deleted(client: TestClient, db: Database, data_dir: Path) -> None:
    made = submit(client)
    address, running = f"/sweeps/{made['id']}", claim(db)
    record(db, running, 1)
    folder = data_dir / leftovers.folder(running.id)
    folder.mkdir(parents=True)
    answer = client.post(f"{address}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.json()["counts"] == {"cancelling": 1, "cancelled": 3}
    assert_problem(client.delete(address), 409, "conflict")
    assert client.post(f"{address}/cancel", json={"mode": "now"}).status_code == 202
    assert client.get(f"/jobs/{running.id}").json()["status"] == "cancelling"
    finish(db, running, Outcome.RELEASED)
    assert client.post(f"{address}/cancel").status_code == 200
    client.put("/models/default", json={"job": running.id})
    assert "default points at" in client.delete(address).json()["detail"]
    client.delete("/models/default")
    assert folder.exists()
    assert client.delete(address).status_code == 204
    assert not folder.exists()
    assert_problem(client.get(address), 404, "not_found")
    assert client.get("/jobs").json()["data"] == []


def test_a_sweep_that_has_finished_cannot_be_cancelled(client: TestClient, db: Database) -> None:
    made = submit(client)
    end(db, 4)
    sweeps.settle(db)
    assert client.get(f"/sweeps/{made['id']}").json()["status"] == "finished"
    assert_problem(client.post(f"/sweeps/{made['id']}/cancel"), 409, "conflict")
    bodies: list[Any] = [{"mode": "later"}, {"x": 1}, []]
    for body in bodies:
        assert_problem(client.post(f"/sweeps/{made['id']}/cancel", json=body), 422, "validation_error")


def test_a_deleted_trial_is_no_longer_in_its_sweep(client: TestClient, db: Database) -> None:
    made = submit(client, RATES | {"parameters": {"seed": {"values": [0, 1]}}})
    end(db, 2)
    first, second = (each["job"] for each in made["trials"])
    assert client.delete(f"/jobs/{first}").status_code == 204
    assert [each["job"] for each in client.get(f"/sweeps/{made['id']}").json()["trials"]] == [second]
    assert client.delete(f"/jobs/{second}").status_code == 204
    assert_problem(client.get(f"/sweeps/{made['id']}"), 404, "not_found")


def test_pages_lead_from_one_to_the_next(client: TestClient) -> None:
    made = [submit(client)["id"] for _ in range(3)]
    page = client.get("/sweeps?limit=2").json()
    assert [each["id"] for each in page["data"]] == made[:0:-1]
    rest = client.get(f"/sweeps?limit=2&after={page['next_cursor']}").json()
    assert ([each["id"] for each in rest["data"]], rest["has_more"], rest["next_cursor"]) == (made[:1], False, None)
    assert_problem(client.get("/sweeps?after=x"), 422, "validation_error")


def test_others_do_not_see_that_a_sweep_is_there(serve: Serve, db: Database) -> None:
    client = serve(api_key=SecretStr("a-key-that-is-long-enough"))
    ann, bob, admin = key(client, db), key(client, db), bearer("a-key-that-is-long-enough")
    made = submit(client, headers=ann)
    assert made["owner"] == keys.every(db)[0].owner
    address = f"/sweeps/{made['id']}"
    for method, path in (("GET", address), ("POST", f"{address}/cancel"), ("DELETE", address)):
        assert_problem(client.request(method, path, headers=bob), 404, "not_found")
    for headers, count in ((ann, 1), (bob, 0), (admin, 1)):
        assert len(client.get("/sweeps", headers=headers).json()["data"]) == count
        assert len(client.get(f"/jobs?sweep={made['id']}", headers=headers).json()["data"]) == 4 * count
    reader = key(client, db, Scope.READ)
    assert_problem(client.post("/sweeps", json=RATES, headers=reader), 403, "forbidden")
    assert client.post(f"{address}/cancel", headers=admin).status_code == 200
    assert standings.get(db, made["id"]).status == "cancelled"
