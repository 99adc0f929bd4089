"""`/metrics`: what Prometheus reads, also while the database is away."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

import service.measures
from tests.service.conftest import Serve
from tests.service.predictor import FakePredictor
from tests.worker.jobs.making import finish, record, running
from worker.jobs import control, stock, workers
from worker.jobs.db import Database
from worker.jobs.errors import BadImage
from worker.jobs.ids import new_id
from worker.jobs.states import Outcome
from worker.jobs.tables import Job

KEY = "epochd_" + "aB3-_" * 8 + "xYz"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]
IN_VAIN = f"/jobs/{new_id()}"
PICTURE = {"Content-Type": "image/png"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scrape asks anew."""
    monkeypatch.setattr(service.measures, "_FRESH_SECONDS", 0.0)


@pytest.fixture
def served(serve: Serve, predictor: FakePredictor) -> TestClient:
    """An app of its own: the shared one has counted what other tests did."""
    return serve()


def scrape(client: TestClient) -> Series:
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(answer.text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def value(client: TestClient, name: str, **labels: str) -> float | None:
    return scrape(client).get((name, frozenset(labels.items())))


def requests(client: TestClient) -> dict[tuple[str, str, str], float]:
    """Method, route and status of what FastAPI has counted, and how often."""
    found = [
        (dict(labels), count)
        for (name, labels), count in scrape(client).items()
        if name.endswith("_duration_seconds_count")
    ]
    return {
        (each["http_request_method"], each.get("http_route", ""), each["http_response_status_code"]): count
        for each, count in found
    }


def test_it_says_what_there_is(served: TestClient, db: Database) -> None:
    running(db)
    workers.register(db, "worker-1", "host")
    found = {name: number for (name, labels), number in scrape(served).items() if not labels}
    assert value(served, "epochd_jobs", status="running") == 1
    assert value(served, "epochd_jobs", status="queued") == 0
    assert value(served, "epochd_datasets", status="ready") == 1
    assert value(served, "epochd_deliveries", status="pending") == 0
    assert found["epochd_database_up"] == 1
    assert found["epochd_queue_oldest_seconds"] == 0
    assert found["epochd_workers"] == 1
    assert 0 <= found["epochd_worker_heartbeat_age_seconds"] < 60
    assert 0 < found["epochd_disk_free_bytes"] < found["epochd_disk_total_bytes"]
    assert (found["epochd_predictor_ready"], found["epochd_predictor_processes"]) == (1, 0)
    assert found["process_resident_memory_bytes"] > 10 * 2**20
    assert found["process_open_fds"] > 3
    assert found["process_cpu_seconds_total"] > 0


def test_without_a_worker_no_age_is_made_up(served: TestClient) -> None:
    found = scrape(served)
    assert found["epochd_workers", frozenset()] == 0
    assert ("epochd_worker_heartbeat_age_seconds", frozenset()) not in found


def test_a_job_that_ends_is_counted_once_with_its_seconds(served: TestClient, db: Database) -> None:
    before = running(db)
    finish(db, before, Outcome.SUCCEEDED)
    job = running(db)
    scrape(served)
    with db.write() as session:
        row = session.get_one(Job, job.id)
        assert row.started_at is not None
        row.started_at -= timedelta(minutes=2)
    finish(db, job, Outcome.SUCCEEDED)
    for _ in range(3):
        assert value(served, "epochd_job_seconds_count", status="succeeded") == 1
    seconds = value(served, "epochd_job_seconds_sum", status="succeeded")
    assert seconds is not None
    assert 120 <= seconds < 180
    assert value(served, "epochd_job_seconds_bucket", status="succeeded", le="60.0") == 0
    assert value(served, "epochd_job_seconds_bucket", status="succeeded", le="300.0") == 1


def test_a_job_that_is_deleted_is_not_counted_back(served: TestClient, db: Database) -> None:
    scrape(served)
    job = running(db)
    scrape(served)
    finish(db, job, Outcome.FAILED)
    scrape(served)
    control.delete(db, job.id)
    assert value(served, "epochd_job_seconds_count", status="failed") == 1
    assert value(served, "epochd_jobs", status="failed") == 0


def test_while_the_database_is_away_the_rest_is_there(served: TestClient, db: Database, tmp_path: Path) -> None:
    job = running(db)
    scrape(served)
    assert isinstance(served.app, FastAPI)
    whole = served.app.state.db
    (tmp_path / "broken.db").write_bytes(b"certainly not a database" * 100)
    served.app.state.db = Database(f"sqlite:///{tmp_path / 'broken.db'}")
    found = {name for name, _ in scrape(served)}
    assert value(served, "epochd_database_up") == 0
    assert found.isdisjoint({"epochd_jobs", "epochd_workers", "epochd_datasets", "epochd_queue_oldest_seconds"})
    assert {"epochd_disk_free_bytes", "process_open_fds", "epochd_predictor_ready"} <= found
    finish(db, job, Outcome.SUCCEEDED)
    served.app.state.db.close()
    served.app.state.db = whole
    assert value(served, "epochd_database_up") == 1
    assert value(served, "epochd_job_seconds_count", status="succeeded") == 1


def test_a_data_folder_that_is_gone_costs_its_numbers_only(served: TestClient, tmp_path: Path) -> None:
    assert isinstance(served.app, FastAPI)
    served.app.state.settings = served.app.state.settings.model_copy(update={"data_dir": tmp_path / "gone"})
    found = {name for name, _ in scrape(served)}
    assert "epochd_disk_free_bytes" not in found
    assert "epochd_jobs" in found


def test_requests_are_counted_by_the_template_of_their_route(served: TestClient) -> None:
    for path in (IN_VAIN, f"/jobs/{new_id()}", f"/jobs/{KEY}", f"/nowhere/{KEY}?{KEY}={KEY}"):
        assert served.get(path, headers={"X-Something": KEY}).status_code in (404, 422)
    served.request(KEY.replace("_", "-"), "/jobs")
    counted = requests(served)
    assert counted["GET", "/jobs/{job_id}", "404"] >= 2
    assert counted["GET", "", "404"] == 1
    page = served.get("/metrics").text
    assert KEY not in page
    assert IN_VAIN not in page
    assert "nowhere" not in page


def test_a_prediction_is_counted_by_its_seconds_and_not_a_second_time(
    served: TestClient, predictor: FakePredictor, db: Database
) -> None:
    job = running(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    assert served.post("/predict", content=b"a picture", headers=PICTURE).status_code == 200
    predictor.error = BadImage()
    for _ in range(2):
        assert served.post("/predict", content=b"no picture", headers=PICTURE).status_code == 422
    assert served.post("/predict?top_k=0", content=b"a picture", headers=PICTURE).status_code == 422
    assert value(served, "epochd_predict_seconds_count") == 1
    assert value(served, "epochd_predict_failures_total", code="bad_image") == 2
    assert value(served, "epochd_predict_failures_total", code="validation_error") == 1
    assert not any(route == "/predict" for _, route, _ in requests(served))


def test_it_needs_a_key_as_everything_does(serve: Serve) -> None:
    client = serve(api_key=SecretStr("a-key-that-is-long-enough"))
    assert client.get("/metrics").status_code == 401
    headers = {"Authorization": "Bearer a-key-that-is-long-enough"}
    assert client.get("/metrics", headers=headers).status_code == 200


def test_its_description_says_that_it_is_text(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["paths"]["/metrics"]["get"]["responses"]["200"]
    assert set(described["content"]) == {"text/plain"}


def test_each_app_counts_for_itself(serve: Serve) -> None:
    one, other = serve(), serve()
    assert one.get(IN_VAIN).status_code == 404
    assert requests(one)["GET", "/jobs/{job_id}", "404"] == 1
    assert ("GET", "/jobs/{job_id}", "404") not in requests(other)
    assert not [family.name for family in REGISTRY.collect() if family.name.startswith(("epochd", "http_server"))]


def test_many_who_scrape_at_once_cost_one_scrape(served: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the database is: one thread waits for it."""
    monkeypatch.setattr(service.measures, "_FRESH_SECONDS", 60.0)
    real, together, asked = stock.take, threading.Event(), []

    def slow(db: Database) -> stock.Stock:
        asked.append(threading.get_ident())
        together.wait(20)
        return real(db)

    monkeypatch.setattr(stock, "take", slow)
    with ThreadPoolExecutor(10) as clients:
        answers = [clients.submit(served.get, "/metrics") for _ in range(10)]
        deadline = time.monotonic() + 20
        while not asked and time.monotonic() < deadline:
            time.sleep(0.005)
        assert served.get("/healthz").status_code == 200
        together.set()
        pages = {each.result().text for each in answers}
    assert len(asked) == len(pages) == 1
