"""The certificate over HTTP."""

from pathlib import Path

from fastapi.testclient import TestClient

from tests.service.test_errors import assert_problem
from tests.worker.jobs.imported import imported
from tests.worker.jobs.making import running
from tests.worker.jobs.test_parities import certificate, succeeded
from worker.jobs import parities
from worker.jobs.db import Database


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


def test_a_certificate_that_is_being_made_and_one_that_cannot_be_made_are_told_apart(
    client: TestClient, db: Database, data_dir: Path
) -> None:
    job = succeeded(db)
    assert_problem(client.get(f"/jobs/{job.id}/parity"), 409, "not_ready")
    wanting = parities.wanting(db)
    assert wanting is not None
    parities.record(db, wanting.checkpoint, "The job's dataset is gone.")
    answer = client.get(f"/jobs/{job.id}/parity")
    assert_problem(answer, 409, "conflict")
    assert "dataset is gone" in answer.json()["detail"]
    assert_problem(client.get(f"/jobs/{imported(db, data_dir).id}/parity"), 409, "conflict")
