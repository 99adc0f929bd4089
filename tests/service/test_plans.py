"""Dry runs, and looking at a spec before its job is queued."""

import asyncio
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.routes import jobs as routes
from tests.service.predictor import FakePredictor
from tests.worker.jobs.making import everything, make_ready
from worker.jobs import listing, queue
from worker.jobs.db import Database
from worker.jobs.errors import PredictorUnavailable, SpecRefused
from worker.jobs.plan import Plan
from worker.jobs.spec import Spec


def test_a_dry_run_answers_what_the_job_would_be_and_stores_nothing(
    client: TestClient, db: Database, predictor: FakePredictor
) -> None:
    before = everything(db)
    answer = client.post("/jobs?dry_run=true", json={"epochs": 3})
    assert answer.status_code == 200
    plan = Plan.model_validate_json(answer.content)
    assert (plan.parameters, plan.steps) == (7, 24)
    assert plan.spec == Spec.model_validate({"epochs": 3, "dataset": {"version": 1}})
    assert "Location" not in answer.headers
    assert everything(db) == before
    ((_, card),) = predictor.planned
    assert (card.channels, card.height, card.train_count) == (1, 28, 500)


@pytest.mark.parametrize("dry_run", ["true", "false"])
def test_what_cannot_be_built_is_refused_with_its_pointer(
    client: TestClient, db: Database, predictor: FakePredictor, dry_run: str
) -> None:
    before = everything(db)
    predictor.error = SpecRefused("It does not fit together.", pointer="#/model/layers/3")
    answer = client.post(f"/jobs?dry_run={dry_run}", json={})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"pointer": "#/model/layers/3", "detail": "It does not fit together."}]
    assert everything(db) == before


def test_a_predictor_that_is_away_stops_a_dry_run_but_no_job(client: TestClient, predictor: FakePredictor) -> None:
    predictor.error = PredictorUnavailable()
    answer = client.post("/jobs?dry_run=true", json={})
    assert (answer.status_code, answer.json()["code"]) == (503, "predictor_unavailable")
    assert client.post("/jobs", json={}).status_code == 201


def test_a_predictor_that_thinks_for_long_stops_no_job(
    client: TestClient, predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ponder(*_: Any) -> Plan:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(routes, "_PLAN_SECONDS", 0.01)
    monkeypatch.setattr(predictor, "plan", ponder)
    assert client.post("/jobs", json={}).status_code == 201


def test_without_the_datasets_card_there_is_no_plan_yet(
    client: TestClient, db: Database, predictor: FakePredictor
) -> None:
    with db.write() as session:
        session.connection().exec_driver_sql("DELETE FROM datasets")
    before = everything(db)
    answer = client.post("/jobs?dry_run=true", json={})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ready")
    assert everything(db) == before
    job_id = client.post("/jobs", json={}).json()["id"]
    assert (queue.get(db, job_id).status, predictor.planned) == ("queued", [])
    assert client.post("/jobs?dry_run=true", json={}).status_code == 409  # being prepared
    make_ready(db)
    assert client.post("/jobs?dry_run=true", json={}).status_code == 200


def test_an_unknown_dataset_is_refused_in_a_dry_run_too(client: TestClient) -> None:
    answer = client.post("/jobs?dry_run=true", json={"dataset": {"name": "nothing"}})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/dataset/name")


def test_what_does_not_suit_the_dataset_is_refused_in_a_dry_run_too(client: TestClient) -> None:
    spec = {"loss": {"class_weights": [1.0, 1.0, 1.0]}}
    answer = client.post("/jobs?dry_run=true", json=spec)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/loss/class_weights")


@pytest.mark.parametrize("query", ["dry=1", "dry_run=maybe"])
def test_a_mistyped_query_launches_nothing(client: TestClient, db: Database, query: str) -> None:
    assert client.post(f"/jobs?{query}", json={}).status_code == 422
    assert listing.jobs(db) == ([], False)
