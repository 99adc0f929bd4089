"""Exports and imports over HTTP: what the errand is asked, and that nothing is left lying about."""

import asyncio
import hashlib
import io
import os
import time
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.predictor import Errand
from service.routes import exports
from tests.service.predictor import FakePredictor
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import finish, record, running, saved
from worker.jobs import aliases, control, imports, listing, records
from worker.jobs.bundle import BundleCard, Imported, Metrics
from worker.jobs.db import Database
from worker.jobs.errors import BadBundle, CheckpointCorrupt, Conflict, DatabaseUnavailable, NotExportable
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome
from worker.jobs.tables import Checkpoint, Job
from worker.jobs.wire import ExportRequest, ImportRequest


@pytest.fixture
def job(db: Database) -> Job:
    job = running(db, name="shoes", labels={"team": "a"})
    record(db, job, 1, test_accuracy=0.75)
    finish(db, job, Outcome.SUCCEEDED)
    return job


@pytest.fixture
def writing(predictor: FakePredictor, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> FakePredictor:
    """A predictor whose exports and imports write a file."""
    errand = predictor.errand

    @asynccontextmanager
    async def written(request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        assert isinstance(request, ExportRequest | ImportRequest)
        (data_dir / request.to).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / request.to).write_bytes(b"contents")
        async with errand(request) as parts:
            yield parts

    monkeypatch.setattr(predictor, "errand", written)
    return predictor


@pytest.mark.parametrize(("kind", "ending"), [("pt2", "pt2"), ("onnx", "onnx"), ("bundle", "zip")])
def test_an_export_is_sent_as_a_file_and_leaves_none(
    client: TestClient, writing: FakePredictor, job: Job, data_dir: Path, kind: str, ending: str
) -> None:
    answer = client.get(f"/jobs/{job.id}/checkpoints/best/export?format={kind}")
    assert (answer.status_code, answer.content) == (200, b"contents")
    assert f'filename="{job.id}-epoch-1.{ending}"' in answer.headers["Content-Disposition"]
    ((request, _),) = writing.asked
    assert isinstance(request, ExportRequest)
    assert (request.format, request.path, request.sha256) == (kind, saved(1).path, saved(1).sha256)
    assert not list((data_dir / "exports").iterdir())


def test_a_bundle_takes_along_what_the_database_knows(client: TestClient, writing: FakePredictor, job: Job) -> None:
    client.get(f"/jobs/{job.id}/checkpoints/1/export?format=bundle").raise_for_status()
    ((request, _),) = writing.asked
    assert isinstance(request, ExportRequest)
    card = BundleCard.model_validate(request.about)
    assert (card.job, card.name, card.labels, card.metrics.test_accuracy) == (job.id, "shoes", {"team": "a"}, 0.75)
    assert request.dataset is not None
    assert request.dataset.folder == "datasets/fashion-mnist-v1"


def test_what_cannot_be_exported_is_told(client: TestClient, writing: FakePredictor, job: Job, data_dir: Path) -> None:
    writing.error = NotExportable()
    assert_problem(client.get(f"/jobs/{job.id}/checkpoints/1/export?format=onnx"), 422, "not_exportable")
    assert not list((data_dir / "exports").iterdir())
    assert_problem(client.get(f"/jobs/{job.id}/checkpoints/2/export?format=onnx"), 404, "not_found")
    assert_problem(client.get(f"/jobs/{job.id}/checkpoints/1/export"), 422, "validation_error")


def test_what_a_killed_export_left_goes_with_the_next(
    client: TestClient, writing: FakePredictor, job: Job, data_dir: Path
) -> None:
    (data_dir / "exports").mkdir(exist_ok=True)
    old, young = data_dir / "exports/old.pt2", data_dir / "exports/young.pt2"
    for path, age in ((old, 4000), (young, 10)):
        path.write_bytes(b"!")
        os.utime(path, (time.time() - age, time.time() - age))
    client.get(f"/jobs/{job.id}/checkpoints/best/export?format=pt2").raise_for_status()
    assert list((data_dir / "exports").iterdir()) == [young]
    young.unlink()


def test_the_weights_themselves_need_no_export(
    client: TestClient, predictor: FakePredictor, db: Database, job: Job, data_dir: Path
) -> None:
    weights = data_dir / saved(1).path
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"weights")
    with db.write() as session:
        row = session.get_one(Checkpoint, (job.id, 1))
        row.sha256 = hashlib.sha256(b"weights").hexdigest()
    answer = client.get(f"/jobs/{job.id}/checkpoints/best/export?format=safetensors")
    assert (answer.status_code, answer.content) == (200, b"weights")
    assert answer.headers["ETag"] == f'"{row.sha256}"'
    assert f'filename="{job.id}-epoch-1.safetensors"' in answer.headers["Content-Disposition"]
    assert predictor.asked == []


def test_a_checkpoint_that_was_not_kept_meanwhile_gives_way_to_the_next(
    client: TestClient, writing: FakePredictor, db: Database, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    errand = writing.errand

    @asynccontextmanager
    async def late(request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        """The job has saved the same epoch anew before the file is read."""
        assert isinstance(request, ExportRequest)
        if request.path == saved(1).path:
            with db.write() as session:
                session.get_one(Checkpoint, (job.id, 1)).path = "jobs/x/checkpoints/newer.safetensors"
            writing.error = CheckpointCorrupt()
        else:
            writing.error = None
        async with errand(request) as parts:
            yield parts

    monkeypatch.setattr(writing, "errand", late)
    answer = client.get(f"/jobs/{job.id}/checkpoints/last/export?format=pt2")
    assert (answer.status_code, answer.content) == (200, b"contents")
    assert len(writing.asked) == 2


def test_a_checkpoint_that_is_damaged_is_told(client: TestClient, writing: FakePredictor, job: Job) -> None:
    writing.error = CheckpointCorrupt()
    assert_problem(client.get(f"/jobs/{job.id}/checkpoints/1/export?format=pt2"), 409, "checkpoint_corrupt")
    assert len(writing.asked) == 1


def bundle() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("manifest.json", b"!" * 1000)
    return buffer.getvalue()


FOUND = Imported(
    card=BundleCard.model_validate(
        {
            "job": "9" * 24,
            "name": "boots",
            "labels": {"team": "b"},
            "created_at": "2026-01-02T03:04:05Z",
            "provenance": {"seed": 3},
            "metrics": Metrics(test_accuracy=0.5, learning_rate=0.1),
        }
    ),
    spec=Spec().model_dump(mode="json"),
    epoch=4,
    sha256="ab" * 32,
    bytes=8,
    weights_sha256="cd" * 32,
    largest_difference=0.0,
)


@pytest.mark.parametrize(
    "sent", [{"files": {"bundle": ("b.zip", bundle())}}, {"content": bundle()}], ids=["form", "body"]
)
def test_a_bundle_becomes_a_job_that_has_succeeded(
    client: TestClient, writing: FakePredictor, db: Database, data_dir: Path, sent: dict[str, Any]
) -> None:
    writing.parts = [FOUND.model_dump_json().encode()]
    answer = client.post("/models/import?alias=boots", **sent)
    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert (body["status"], body["name"], body["labels"], body["attempts"]) == ("succeeded", "boots", {"team": "b"}, [])
    assert body["provenance"]["imported"]["job"] == "9" * 24
    assert answer.headers["Location"] == f"/jobs/{body['id']}"
    kept = records.checkpoint(db, body["id"], "best")
    assert (kept.row.epoch, kept.row.sha256, kept.metrics.test_accuracy, kept.is_last) == (4, FOUND.sha256, 0.5, True)
    assert (data_dir / kept.row.path).read_bytes() == b"contents"
    assert aliases.target(db, "boots").job_id == body["id"]
    assert not list((data_dir / "uploads").iterdir())
    with pytest.raises(Conflict, match="imported"):
        control.extend(db, body["id"], 1)
    with pytest.raises(Conflict):
        control.retry(db, body["id"])


def test_a_bundle_that_is_refused_leaves_nothing(
    client: TestClient, writing: FakePredictor, db: Database, data_dir: Path
) -> None:
    before = set((data_dir / "jobs").glob("*"))
    writing.error = BadBundle("The bundle is damaged, or was cut off.")
    assert_problem(client.post("/models/import", content=bundle()), 422, "bad_bundle")
    assert_problem(client.post("/models/import", content=b"no zip"), 422, "bad_archive")
    assert set((data_dir / "jobs").glob("*")) == before
    assert listing.jobs(db) == ([], False)
    assert not list((data_dir / "uploads").iterdir())


def test_a_bundle_that_cannot_be_recorded_leaves_nothing(
    client: TestClient, writing: FakePredictor, db: Database, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DatabaseUnavailable

    monkeypatch.setattr(imports, "add", fail)
    before = set((data_dir / "jobs").glob("*"))
    writing.parts = [FOUND.model_dump_json().encode()]
    assert_problem(client.post("/models/import", content=bundle()), 503, "database_unavailable")
    assert set((data_dir / "jobs").glob("*")) == before
    assert not list((data_dir / "uploads").iterdir())


def test_a_network_that_computes_for_ever_is_refused(
    client: TestClient, writing: FakePredictor, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    @asynccontextmanager
    async def forever(request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        async def parts() -> AsyncIterator[bytes]:
            await asyncio.sleep(3600)
            yield b""

        try:
            yield parts()
        finally:
            ended.append(True)

    monkeypatch.setattr(writing, "errand", forever)
    monkeypatch.setattr(exports, "_TRY_SECONDS", 0.05)
    assert_problem(client.post("/models/import", content=bundle()), 422, "bad_bundle")
    assert ended == [True]
    assert not list((data_dir / "uploads").iterdir())
