"""Batch predictions over HTTP: what the errand is asked, and how its lines leave."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.predictor import FakePredictor
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import finish, record, running, saved
from worker.jobs import errors
from worker.jobs.db import Database
from worker.jobs.states import Outcome
from worker.jobs.tables import Job
from worker.jobs.wire import BatchRequest

LINES = [b'{"total":2}\n', b'{"number":1}\n{"number":2}\n', b'{"done":2}\n']


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.png", b"!" * 1000)
    return buffer.getvalue()


@pytest.fixture
def job(db: Database, predictor: FakePredictor) -> Job:
    job = running(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    predictor.parts = list(LINES)
    return job


def asked(predictor: FakePredictor) -> BatchRequest:
    ((request, _),) = predictor.asked
    assert isinstance(request, BatchRequest)
    return request


@pytest.mark.parametrize(
    "sent",
    [
        {"files": {"archive": ("a.zip", archive())}},
        {"content": archive(), "headers": {"Content-Type": "application/zip"}},
        {"content": archive()},
    ],
    ids=["form", "zip", "body"],
)
def test_an_archive_is_answered_with_lines(
    client: TestClient, predictor: FakePredictor, job: Job, data_dir: Path, sent: dict[str, Any]
) -> None:
    answer = client.post("/predict/batch?top_k=3&auto_fix=true", **sent)
    assert (answer.status_code, answer.content) == (200, b"".join(LINES))
    assert answer.headers["Content-Type"].startswith("application/x-ndjson")
    assert (answer.headers["Epochd-Job"], answer.headers["Epochd-Epoch"]) == (job.id, "1")
    request = asked(predictor)
    assert (request.path, request.sha256, request.top_k, request.auto_fix) == (saved(1).path, saved(1).sha256, 3, True)
    assert (request.format, request.dataset) == ("ndjson", None)
    assert request.archive is not None
    assert not (data_dir / request.archive).exists()
    assert not list((data_dir / "uploads").iterdir())


@pytest.mark.parametrize(
    ("query", "accept", "format_"),
    [
        ("", "text/csv", "csv"),
        ("", "*/*", "ndjson"),
        ("", "text/html, Text/CSV;q=0.9, application/x-ndjson;q=0.5", "csv"),
        ("", "application/x-ndjson, text/csv;q=0.5", "ndjson"),
        ("&format=csv", "*/*", "csv"),
        ("&format=ndjson", "text/csv", "ndjson"),
    ],
)
def test_the_format_is_chosen(
    client: TestClient, predictor: FakePredictor, job: Job, query: str, accept: str, format_: str
) -> None:
    answer = client.post(f"/predict/batch?top_k=1{query}", content=archive(), headers={"Accept": accept})
    assert format_ in answer.headers["Content-Type"]
    assert asked(predictor).format == format_


def test_a_dataset_may_be_named_instead(client: TestClient, predictor: FakePredictor, db: Database, job: Job) -> None:
    assert client.post("/predict/batch?dataset=fashion-mnist&split=train").status_code == 200
    request = asked(predictor)
    assert (request.archive, request.split) == (None, "train")
    assert request.dataset is not None
    assert request.dataset.folder == "datasets/fashion-mnist-v1"


def test_a_dataset_that_is_not_there_or_not_ready_is_refused(client: TestClient, job: Job) -> None:
    assert_problem(client.post("/predict/batch?dataset=nothing"), 404, "not_found")
    assert_problem(client.post("/predict/batch?dataset=mnist"), 409, "not_ready")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"content": b"no archive at all"}, 422, "bad_archive"),
        ({"files": {"picture": b"!"}}, 400, "invalid_request"),
        ({"files": {"archive": b"!"}}, 422, "bad_archive"),
    ],
)
def test_what_is_no_archive_is_refused(
    client: TestClient, predictor: FakePredictor, job: Job, data_dir: Path, sent: dict[str, Any], status: int, code: str
) -> None:
    assert_problem(client.post("/predict/batch", **sent), status, code)
    assert predictor.asked == []
    assert not list((data_dir / "uploads").iterdir())


@pytest.mark.parametrize(
    ("error", "status"),
    [(errors.BadArchive(), 422), (errors.ArchiveTooLarge(), 422), (errors.PredictorUnavailable(), 503)],
)
def test_what_is_refused_before_the_first_line_has_its_own_status(
    client: TestClient, predictor: FakePredictor, job: Job, data_dir: Path, error: errors.EpochdError, status: int
) -> None:
    predictor.parts, predictor.error = [], error
    assert_problem(client.post("/predict/batch", content=archive()), status, error.code)
    assert not list((data_dir / "uploads").iterdir())


def test_an_answer_that_breaks_off_has_no_last_line_but_says_why(
    client: TestClient, predictor: FakePredictor, job: Job, data_dir: Path
) -> None:
    predictor.parts, predictor.error = LINES[:2], errors.PredictorUnavailable("It died.")
    answer = client.post("/predict/batch", content=archive())
    *lines, last = answer.content.splitlines(keepends=True)
    assert b"".join(lines) == b"".join(LINES[:2])
    assert json.loads(last) == {"error": "It died.", "code": "predictor_unavailable"}
    table = client.post("/predict/batch?format=csv", content=archive())
    assert table.content == b"".join(LINES[:2])
    assert not list((data_dir / "uploads").iterdir())


def test_what_a_killed_process_has_unpacked_is_removed(
    client: TestClient, predictor: FakePredictor, job: Job, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = predictor._parts

    async def unpacked() -> AsyncIterator[bytes]:
        (data_dir / f"{asked(predictor).archive}.pictures").write_bytes(b"!")
        async for part in parts():
            yield part

    monkeypatch.setattr(predictor, "_parts", unpacked)
    assert client.post("/predict/batch", content=archive()).status_code == 200
    assert not list((data_dir / "uploads").iterdir())


def test_who_leaves_before_the_first_line_is_noticed(
    client: TestClient, predictor: FakePredictor, job: Job, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    async def ask_and_leave() -> None:
        messages = iter([{"type": "http.request", "body": archive(), "more_body": False}])

        async def receive() -> dict[str, Any]:
            return next(messages, {"type": "http.disconnect"})

        async def send(_: MutableMapping[str, Any]) -> None:
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/predict/batch",
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        await asyncio.wait_for(client.app(scope, receive, send), 20)

    monkeypatch.setattr(predictor, "_parts", never)
    assert client.portal is not None
    client.portal.call(ask_and_leave)
    assert asked(predictor).archive is not None
    assert not list((data_dir / "uploads").iterdir())
