"""Checkpoints: the list, and the weights as they are on disk."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect
from starlette.types import Message

from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import finish, progress, record, result, running, saved
from worker.jobs import control, records
from worker.jobs.db import Database
from worker.jobs.leftovers import remove_job, remove_others
from worker.jobs.records import KeptCheckpoint
from worker.jobs.states import Outcome
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


@pytest.mark.parametrize("damage", ["flipped", "shorter", "longer", "empty", "a folder"])
def test_a_damaged_file_is_not_sent(client: TestClient, job: Job, data_dir: Path, damage: str) -> None:
    file = data_dir / "jobs" / job.id / "2.safetensors"
    whole = file.read_bytes()
    file.unlink()
    if damage == "a folder":
        file.mkdir()
    else:
        flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
        damaged = {"flipped": flipped, "shorter": whole[:-1], "longer": whole + b"\0", "empty": b""}
        file.write_bytes(damaged[damage])
    for which in ("best", "2"):
        for headers in ({}, {"Range": "bytes=0-9"}):
            answer = client.get(f"/jobs/{job.id}/checkpoints/{which}", headers=headers)
            assert_problem(answer, 409, "checkpoint_corrupt")
    assert client.get(f"/jobs/{job.id}/checkpoints/last").content == weights(3)


def overtaken(monkeypatch: pytest.MonkeyPatch, worker: Callable[[], None]) -> None:
    """What the worker does between the first look-up of a checkpoint and the opening of its file."""
    look_up, pending = records.checkpoint, [worker]

    def checkpoint(db: Database, job_id: str, which: str) -> KeptCheckpoint:
        found = look_up(db, job_id, which)
        if pending:
            pending.pop()()
        return found

    monkeypatch.setattr(records, "checkpoint", checkpoint)


@pytest.fixture
def thrifty(db: Database, data_dir: Path) -> Callable[[int], None]:
    """Records an epoch of a job that keeps only its last checkpoint, and removes what is not kept, as a worker does."""
    job = running(db, checkpoints={"keep": "last"})

    def next_epoch(epoch: int) -> None:
        path = Path("jobs", job.id, "checkpoints", f"epoch-{epoch:06d}-attempt-1.safetensors")
        (data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (data_dir / path).write_bytes(weights(epoch))
        row = saved(epoch, path=str(path), sha256=hashlib.sha256(weights(epoch)).hexdigest())
        kept = records.record_epoch(db, job.id, 1, result(epoch), row, progress(epoch))
        remove_others(data_dir, job.id, 1, kept)

    next_epoch(1)
    return next_epoch


def only_job(client: TestClient) -> str:
    (job,) = client.get("/jobs").json()["data"]
    return str(job["id"])


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_checkpoint_that_was_just_replaced_gives_way_to_the_new_one(
    client: TestClient, thrifty: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    overtaken(monkeypatch, lambda: thrifty(2))
    answer = client.get(f"/jobs/{only_job(client)}/checkpoints/{which}")
    assert (answer.status_code, answer.content) == (200, weights(2))
    assert "epoch-2" in answer.headers["Content-Disposition"]


def test_an_epoch_that_was_just_forgotten_is_not_found(
    client: TestClient, thrifty: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    overtaken(monkeypatch, lambda: thrifty(2))
    assert_problem(client.get(f"/jobs/{only_job(client)}/checkpoints/1"), 404, "not_found")


def test_a_job_that_was_just_deleted_is_not_found(
    client: TestClient, db: Database, job: Job, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete() -> None:
        finish(db, job, Outcome.SUCCEEDED)
        control.delete(db, job.id)
        remove_job(data_dir, job.id)

    overtaken(monkeypatch, delete)
    assert_problem(client.get(f"/jobs/{job.id}/checkpoints/best"), 404, "not_found")


def open_files() -> list[str]:
    """What this process holds open, by its path."""
    found = []
    for each in Path("/dev/fd").iterdir():
        with suppress(OSError):
            found.append(str(each.readlink()))
    return found


@pytest.mark.parametrize("leaves", [False, True], ids=["to the end", "and leaves half-way"])
def test_a_deletion_does_not_break_a_download_and_no_file_stays_open(
    client: TestClient, db: Database, data_dir: Path, leaves: bool
) -> None:
    job = running(db)
    contents = bytes(range(256)) * 8192  # 2 MiB: many pieces
    path = Path("jobs", job.id, "1.safetensors")
    (data_dir / path).parent.mkdir(parents=True)
    (data_dir / path).write_bytes(contents)
    row = saved(1, path=str(path), sha256=hashlib.sha256(contents).hexdigest())
    records.record_epoch(db, job.id, 1, result(1), row, progress(1))
    received = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            (data_dir / path).unlink()
        elif leaves and received:
            raise OSError("the client has left")
        else:
            received.extend(message["body"])

    async def ask() -> None:
        address = f"/jobs/{job.id}/checkpoints/1"
        scope = {
            "type": "http",
            "method": "GET",
            "path": address,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        with suppress(OSError, ClientDisconnect):
            await client.app(scope | {"asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send)

    assert client.portal is not None
    client.portal.call(ask)
    if not leaves:
        assert received == contents
    assert not [each for each in open_files() if str(path) in each]


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
