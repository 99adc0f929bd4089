"""The certificate over HTTP, and the task that has it made."""

import asyncio
from contextlib import suppress

import pytest
from fastapi.testclient import TestClient

import service.certifying
from service.certifying import certify
from tests.service.predictor import FakePredictor
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import running
from tests.worker.jobs.test_parities import certificate, succeeded
from worker.jobs import parities
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, DatasetChanged, PredictorUnavailable
from worker.jobs.wire import ParityRequest


def certified(db: Database, predictor: FakePredictor, seconds: float = 0.5) -> None:
    async def work() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(certify(db, predictor), seconds)  # type: ignore[arg-type]

    asyncio.run(work())


def test_the_certificate_is_shown(client: TestClient, db: Database) -> None:
    job = succeeded(db)
    wanting = parities.wanting(db)
    assert wanting is not None
    parities.record(db, wanting.checkpoint, certificate())
    answer = client.get(f"/jobs/{job.id}/parity")
    assert (answer.status_code, answer.json()) == (200, certificate().model_dump(mode="json"))


def test_who_has_none_says_why(client: TestClient, db: Database) -> None:
    assert_problem(client.get(f"/jobs/{running(db).id}/parity"), 409, "not_ready")
    assert_problem(client.get(f"/jobs/{'0' * 24}/parity"), 404, "not_found")


def test_every_job_that_succeeded_gets_one(db: Database, predictor: FakePredictor) -> None:
    jobs = [succeeded(db) for _ in range(3)]
    predictor.parts = [certificate().model_dump_json().encode()]
    certified(db, predictor)
    assert [parities.find(db, job.id) for job in jobs] == [certificate()] * 3
    assert len(predictor.asked) == 3
    assert all(isinstance(request, ParityRequest) for request, _ in predictor.asked)


def test_what_cannot_be_certified_is_told_and_left(db: Database, predictor: FakePredictor) -> None:
    job = succeeded(db)
    predictor.error = DatasetChanged()
    certified(db, predictor)
    assert len(predictor.asked) == 1
    with pytest.raises(Conflict, match="no longer those"):
        parities.find(db, job.id)


def test_when_the_predictor_is_away_it_is_tried_again(
    db: Database, predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.certifying, "_AWAY_SECONDS", 0.05)
    job = succeeded(db)
    predictor.error = PredictorUnavailable()
    certified(db, predictor, 0.3)
    assert len(predictor.asked) > 1
    predictor.error, predictor.parts = None, [certificate().model_dump_json().encode()]
    certified(db, predictor)
    assert parities.find(db, job.id).passed
