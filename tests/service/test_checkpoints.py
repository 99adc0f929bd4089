"""Checkpoints: the list, and the weights as they are on disk."""

import hashlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.worker.jobs.making import progress, record, result, running, saved
from worker.jobs import records
from worker.jobs.db import Database
from worker.jobs.tables import Job

ACCURACIES = (0.25, 0.75, 0.5)


def weights(epoch: int) -> bytes:
    return bytes(range(256)) * epoch


@pytest.fixture
def job(db: Database, data_dir: Path) -> Job:
    """A running job with three checkpoints on disk, the second of which is the best."""
    job = running(db)
    for epoch, accuracy in enumerate(ACCURACIES, start=1):
        path = Path("jobs", job.id, f"{epoch}.safetensors")
        (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / path).write_bytes(weights(epoch))
        sha256 = hashlib.sha256(weights(epoch)).hexdigest()
        row = saved(epoch, path=str(path), sha256=sha256, bytes=len(weights(epoch)))
        records.record_epoch(db, job.id, 1, result(epoch, test_accuracy=accuracy), row, progress(epoch))
    return job


def test_checkpoints_are_listed_with_their_metrics(client: TestClient, job: Job) -> None:
    data = client.get(f"/jobs/{job.id}/checkpoints").json()["data"]
    assert [(each["epoch"], each["is_best"], each["is_last"]) for each in data] == [
        (1, False, False),
        (2, True, False),
        (3, False, True),
    ]
    assert [each["metrics"]["test_accuracy"] for each in data] == list(ACCURACIES)
    assert [each["bytes"] for each in data] == [256, 512, 768]
    assert data[0].keys() == {
        "epoch",
        "sha256",
        "weights_sha256",
        "bytes",
        "is_best",
        "is_last",
        "metrics",
        "url",
        "created_at",
    }
    assert data[0]["weights_sha256"] == saved(1).weights_sha256


def test_the_best_is_by_the_metric_that_the_spec_names(client: TestClient, db: Database) -> None:
    job = running(db, checkpoints={"keep": "best", "best_by": "train_loss"})
    for epoch, loss in enumerate((0.5, 0.1, 0.3, 0.2), start=1):
        record(db, job, epoch, train_loss=loss)
    data = client.get(f"/jobs/{job.id}/checkpoints").json()["data"]
    assert [(each["epoch"], each["is_best"], each["is_last"]) for each in data] == [(2, True, False), (4, False, True)]
    assert client.get(f"/jobs/{job.id}/checkpoints/3").status_code == 404
    assert len(client.get(f"/jobs/{job.id}/metrics").json()["data"]) == 4


def test_the_list_says_where_to_download(client: TestClient, job: Job) -> None:
    for each in client.get(f"/jobs/{job.id}/checkpoints").json()["data"]:
        answer = client.get(each["url"])
        assert hashlib.sha256(answer.content).hexdigest() == each["sha256"]


@pytest.mark.parametrize(("which", "epoch"), [("best", 2), ("last", 3), ("1", 1), ("2", 2)])
def test_the_weights_come_as_they_are(client: TestClient, job: Job, which: str, epoch: int) -> None:
    answer = client.get(f"/jobs/{job.id}/checkpoints/{which}")
    assert answer.status_code == 200
    assert answer.content == weights(epoch)
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Length"] == str(len(weights(epoch)))
    assert f'filename="{job.id}-epoch-{epoch}.safetensors"' in answer.headers["Content-Disposition"]
    assert answer.headers["ETag"] == f'"{hashlib.sha256(weights(epoch)).hexdigest()}"'


def test_a_part_of_the_weights_can_be_asked_for(client: TestClient, job: Job) -> None:
    answer = client.get(f"/jobs/{job.id}/checkpoints/1", headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, weights(1)[10:20])


def test_a_missing_file_is_a_corrupt_checkpoint(client: TestClient, job: Job, data_dir: Path) -> None:
    (data_dir / "jobs" / job.id / "2.safetensors").unlink()
    answer = client.get(f"/jobs/{job.id}/checkpoints/best")
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_corrupt")
    assert str(data_dir) not in answer.text
    assert client.get(f"/jobs/{job.id}/checkpoints/1").status_code == 200


def test_an_epoch_without_checkpoint_is_not_found(client: TestClient, job: Job) -> None:
    for which in ("4", "0", "999999999"):
        answer = client.get(f"/jobs/{job.id}/checkpoints/{which}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("which", ["first", "1.5", "-1", "Best", "%D9%A3", "9999999999", "1;", "%00"])
def test_a_checkpoint_has_no_other_names(client: TestClient, job: Job, which: str) -> None:
    answer = client.get(f"/jobs/{job.id}/checkpoints/{which}")
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")
    assert answer.json()["errors"][0]["pointer"] == "path which"


def test_before_the_first_epoch_there_is_none(client: TestClient, db: Database) -> None:
    job = running(db)
    assert client.get(f"/jobs/{job.id}/checkpoints").json() == {"data": []}
    for which in ("best", "last", "1"):
        answer = client.get(f"/jobs/{job.id}/checkpoints/{which}")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_ready")


def test_checkpoints_of_another_job_are_not_shown(client: TestClient, db: Database, job: Job) -> None:
    other = running(db)
    record(db, other, 7)
    assert [each["epoch"] for each in client.get(f"/jobs/{other.id}/checkpoints").json()["data"]] == [7]
    assert client.get(f"/jobs/{other.id}/checkpoints/2").status_code == 404
