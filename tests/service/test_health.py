"""Health: alive is not the same as ready, and what is not ready says so."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.main import create_app
from tests.service.conftest import Serve
from tests.service.predictor import FakePredictor
from tests.service.test_database_away import locked
from worker.jobs import workers
from worker.jobs.db import Database
from worker.jobs.settings import Settings
from worker.jobs.tables import Worker


@pytest.fixture
def worker(db: Database) -> str:
    workers.register(db, "worker-1", "host-1")
    return "worker-1"


def readiness(client: TestClient) -> tuple[int, dict[str, bool]]:
    answer = client.get("/readyz")
    body: dict[str, Any] = answer.json()
    assert body["ready"] is all(part["ready"] for part in body["parts"].values())
    assert ("Retry-After" in answer.headers) is not body["ready"]
    assert all(part["detail"].endswith(".") for part in body["parts"].values())
    return answer.status_code, {name: part["ready"] for name, part in body["parts"].items()}


def test_the_service_is_alive(client: TestClient) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_service_is_ready_when_every_part_is(client: TestClient, worker: str) -> None:
    assert readiness(client) == (200, {"database": True, "worker": True, "disk": True, "predictor": True})


def test_without_a_worker_it_is_not_ready(client: TestClient) -> None:
    assert readiness(client) == (503, {"database": True, "worker": False, "disk": True, "predictor": True})


def test_a_worker_that_fell_silent_makes_it_not_ready(client: TestClient, db: Database, worker: str) -> None:
    with db.write() as session:
        session.get_one(Worker, worker).heartbeat_at -= timedelta(seconds=31)
    assert readiness(client)[1]["worker"] is False
    workers.heartbeat(db, worker)
    assert readiness(client)[0] == 200


def test_without_a_predictor_it_is_not_ready(client: TestClient, predictor: FakePredictor, worker: str) -> None:
    predictor.ready = False
    assert readiness(client) == (503, {"database": True, "worker": True, "disk": True, "predictor": False})


def test_a_full_disk_makes_it_not_ready(serve: Serve, worker: str, data_dir: Path) -> None:
    client = serve(min_free_bytes=2 * shutil.disk_usage(data_dir).free)
    assert readiness(client) == (503, {"database": True, "worker": True, "disk": False, "predictor": True})


def test_a_data_folder_that_is_gone_makes_it_not_ready(serve: Serve, data_dir: Path) -> None:
    client = serve()
    assert isinstance(client.app, FastAPI)
    client.app.state.settings = client.app.state.settings.model_copy(update={"data_dir": data_dir / "gone"})
    status, parts = readiness(client)
    assert (status, parts["disk"], parts["database"]) == (503, False, True)


def test_a_database_that_does_not_answer_makes_it_not_ready_but_alive(
    serve: Serve, worker: str, tmp_path: Path
) -> None:
    client = serve()
    assert readiness(client)[0] == 200
    assert isinstance(client.app, FastAPI)
    client.app.state.db.close()
    (tmp_path / "broken.db").write_bytes(b"certainly not a database" * 100)
    client.app.state.db = Database(f"sqlite:///{tmp_path / 'broken.db'}")
    assert readiness(client) == (503, {"database": False, "worker": False, "disk": True, "predictor": True})
    assert client.get("/healthz").status_code == 200


def test_the_service_is_alive_while_all_its_threads_wait_for_the_database(serve: Serve, data_dir: Path) -> None:
    client = serve()
    assert client.portal is not None
    with ThreadPoolExecutor(60) as clients:
        with locked(data_dir):
            waiting = [clients.submit(client.post, "/jobs", json={}) for _ in range(50)]
            deadline, seen_busy = time.monotonic() + 20, 0
            while seen_busy < 10 and time.monotonic() < deadline:
                seen_busy = 0 if client.portal.call(free_threads) else seen_busy + 1
                time.sleep(0.01)
            assert seen_busy == 10
            assert clients.submit(client.get, "/healthz").result(timeout=10).status_code == 200
            assert not any(each.done() for each in waiting)
        assert {each.result().status_code for each in waiting} == {201}


async def free_threads() -> float:
    return current_default_thread_limiter().available_tokens


def test_the_predictor_lives_as_long_as_the_app(predictor: FakePredictor, data_dir: Path) -> None:
    with TestClient(create_app(Settings(data_dir=data_dir))):
        assert predictor.is_started
    assert not predictor.is_started
