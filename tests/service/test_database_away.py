"""A database that does not answer, or is full: every address says so, in the one shape of errors, and recovers."""

from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import event

import worker.jobs.db
from tests import postgres
from tests.service.conftest import Serve
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import job_with_status, make_ready
from worker.jobs.db import Database
from worker.jobs.states import Status

Write = tuple[str, str, Any]


def database(client: TestClient) -> Database:
    assert isinstance(client.app, FastAPI)
    db: Database = client.app.state.db
    return db


def assert_told_without_details(answer: Any, status: int, code: str) -> None:
    """Not how the database is reached, nor what it was asked."""
    assert_problem(answer, status, code)
    told = answer.text.lower() + str(answer.headers).lower()
    for detail in ("sqlite", "psycopg", "postgres", "sqlalche", "insert", "select", "update", "locked", "epochd.db"):
        assert detail not in told, answer.text
    assert (answer.headers.get("Retry-After") == "1") is (status == 503)


@pytest.fixture
def impatient(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A service that waits for a lock of SQLite for an instant only."""
    monkeypatch.setattr(worker.jobs.db, "BUSY_SECONDS", 0.05)
    return serve()


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Another process's connection writes, and takes its time."""
    connection = worker.jobs.db._sqlite_driver().connect(data_dir / "epochd.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def writes(db: Database) -> list[Write]:
    """One request to each address that writes."""
    wanted = (Status.FAILED, Status.SUCCEEDED, Status.RUNNING, Status.PAUSED)
    failed, succeeded, running, paused = (job_with_status(db, status) for status in wanted)
    return [
        ("POST", "/jobs", {}),
        ("POST", f"/jobs/{running.id}/cancel", None),
        ("POST", f"/jobs/{running.id}/pause", None),
        ("POST", f"/jobs/{paused.id}/resume", None),
        ("POST", f"/jobs/{failed.id}/retry", None),
        ("POST", f"/jobs/{succeeded.id}/extend", {"epochs": 1}),
        ("DELETE", f"/jobs/{succeeded.id}", None),
        ("POST", "/datasets", {"name": "mnist"}),
        ("DELETE", "/datasets/fashion-mnist", None),
    ]


def test_a_lock_that_is_held_for_too_long_is_told_and_reading_goes_on(
    impatient: TestClient, db: Database, data_dir: Path, log: list[MutableMapping[str, Any]]
) -> None:
    wanted = writes(db)
    with locked(data_dir):
        for method, path, body in wanted:
            answer = TestClient(impatient.app, base_url="http://localhost").request(
                method, path, json=body
            )  # raises what is answered but not handled
            assert_told_without_details(answer, 503, "database_unavailable")
        assert impatient.get("/jobs").status_code == 200
        assert impatient.get("/healthz").status_code == 200
    entries = [entry for entry in log if entry["event"] == "database_away"]
    assert len(entries) == len(wanted)
    assert all("locked" in str(entry["exc_info"]) and entry["request_id"] for entry in entries)
    answer = impatient.post("/jobs", json={})
    assert answer.status_code == 201, answer.text


def test_nothing_is_half_done_while_the_database_is_locked(impatient: TestClient, db: Database, data_dir: Path) -> None:
    job = job_with_status(db, Status.SUCCEEDED)
    file = data_dir / "jobs" / job.id / "attempt-1.log"
    file.parent.mkdir(parents=True)
    file.touch()
    before = impatient.get(f"/jobs/{job.id}").json()
    with locked(data_dir):
        assert impatient.delete(f"/jobs/{job.id}").status_code == 503
    assert file.exists()
    assert impatient.get(f"/jobs/{job.id}").json() == before


def test_when_every_connection_is_taken_the_client_is_told_to_come_back(serve: Serve) -> None:
    client = serve()
    engine = database(client)._engine
    engine.pool._timeout = 0.05  # type: ignore[attr-defined]
    with ExitStack() as taken:
        for _ in range(40):
            taken.enter_context(engine.connect())
        assert_told_without_details(client.get("/jobs"), 503, "database_unavailable")
    assert client.get("/jobs").status_code == 200


def test_a_database_that_is_away_while_the_key_is_looked_at_is_told_too(serve: Serve, tmp_path: Path) -> None:
    client = serve()

    class KeysInTheDatabase:
        def find(self, key: bytes) -> None:
            with database(client).read() as session:
                session.connection()

    assert isinstance(client.app, FastAPI)
    database(client).close()
    client.app.state.db = Database(f"sqlite:///{tmp_path}")  # a folder
    client.app.state.keys = KeysInTheDatabase()
    assert_told_without_details(client.get("/jobs"), 503, "database_unavailable")
    assert client.get("/healthz").status_code == 200


@contextmanager
def full(db: Database) -> Iterator[None]:
    """The database may not grow, as on a disk without space."""
    with db.read() as session:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()

    def limit(connection: Any, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    db.close()
    event.listen(db._engine, "connect", limit)
    try:
        yield
    finally:
        event.remove(db._engine, "connect", limit)
        db.close()


def test_a_full_disk_is_told_and_the_service_lives(
    serve: Serve, db: Database, log: list[MutableMapping[str, Any]]
) -> None:
    client = serve()
    body = {"labels": {f"label-{number}": "x" * 60 for number in range(16)}}
    with full(database(client)):
        answers = [client.post("/jobs", json=body) for _ in range(20)]
        assert {answer.status_code for answer in answers} <= {201, 507}
        assert_told_without_details(answers[-1], 507, "disk_full")
        accepted = [answer.json()["id"] for answer in answers if answer.status_code == 201]
        assert [job["id"] for job in client.get("/jobs").json()["data"]] == accepted[::-1]
        assert client.get("/healthz").status_code == 200
    assert "full" in str(next(entry["exc_info"] for entry in log if entry["event"] == "database_away"))
    assert client.post("/jobs", json=body).status_code == 201


@pytest.fixture
def on_postgres(serve: Serve, postgres_server: postgres.Server) -> tuple[TestClient, str]:
    """A service on PostgreSQL, and its database's address. It waits for a lock of another for an instant only."""
    url = postgres_server.new_database()
    client = serve(database_url=f"{url}&options=-c%20lock_timeout%3D50")
    make_ready(database(client))
    return client, url


def test_a_table_of_postgresql_that_is_locked_is_told(on_postgres: tuple[TestClient, str]) -> None:
    client, url = on_postgres
    assert client.post("/jobs", json={}).status_code == 201
    with psycopg.connect(url) as connection:
        connection.execute("LOCK TABLE jobs IN ACCESS EXCLUSIVE MODE")
        assert_told_without_details(client.get("/jobs"), 503, "database_unavailable")
        assert_told_without_details(client.post("/jobs", json={}), 503, "database_unavailable")
    assert client.post("/jobs", json={}).status_code == 201


def test_a_connection_that_postgresql_ended_is_made_anew_unnoticed(on_postgres: tuple[TestClient, str]) -> None:
    client, url = on_postgres
    for _ in range(3):
        assert client.get("/jobs").status_code == 200
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert client.post("/jobs", json={}).status_code == 201


def test_a_postgresql_that_is_gone_is_told(serve: Serve, tmp_path: Path) -> None:
    binaries = postgres.binaries()
    if binaries is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(binaries) as server:
        client = serve(database_url=server.new_database())
        assert client.get("/jobs").json()["data"] == []
    for method, path in (("GET", "/jobs"), ("POST", "/jobs"), ("GET", f"/jobs/{'0' * 24}"), ("DELETE", "/datasets/x")):
        answer = client.request(method, path, json={} if method == "POST" else None)
        assert_told_without_details(answer, 503, "database_unavailable")
        assert str(server.folder) not in answer.text
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["database"]["ready"]) == (503, False)
