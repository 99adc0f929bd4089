"""What an attempt logged, read from a cursor."""

from pathlib import Path

from fastapi.testclient import TestClient

from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import claim, finish, running
from worker.jobs import control, submitting
from worker.jobs.attempt_logs import training_log
from worker.jobs.db import Database
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome


def written(data_dir: Path, job_id: str, attempt: int, contents: bytes) -> None:
    path = data_dir / training_log(job_id, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)


def test_a_job_that_never_began_has_no_log(client: TestClient, db: Database) -> None:
    job = submitting.enqueue(db, Spec())
    assert client.get(f"/jobs/{job.id}/logs").json() == {
        "attempt": 0,
        "data": [],
        "next_since": 0,
        "terminal": False,
    }
    control.cancel(db, job.id)  # now it never will
    assert client.get(f"/jobs/{job.id}/logs").json()["terminal"] is True
    assert_problem(client.get(f"/jobs/{job.id}/logs?attempt=1"), 404, "not_found")


def test_a_log_is_read_as_it_grows(client: TestClient, db: Database, data_dir: Path) -> None:
    job = running(db)
    written(data_dir, job.id, 1, b"one\ntwo\nthr")
    page = client.get(f"/jobs/{job.id}/logs").json()
    assert (page["attempt"], page["data"], page["terminal"]) == (1, ["one", "two"], False)
    written(data_dir, job.id, 1, b"one\ntwo\nthree\nfour")
    finish(db, job, Outcome.KILLED)
    page = client.get(f"/jobs/{job.id}/logs?since={page['next_since']}&attempt=1").json()
    assert (page["data"], page["terminal"]) == (["three", "four"], True)  # nobody will end that line
    page = client.get(f"/jobs/{job.id}/logs?since={page['next_since']}&attempt=1").json()
    assert (page["data"], page["terminal"]) == ([], True)


def test_each_attempt_has_its_own(client: TestClient, db: Database, data_dir: Path) -> None:
    job = running(db)
    written(data_dir, job.id, 1, b"first\n")
    finish(db, job, Outcome.KILLED)
    claim(db)
    written(data_dir, job.id, 2, b"second\n")
    assert client.get(f"/jobs/{job.id}/logs").json()["data"] == ["second"]
    assert client.get(f"/jobs/{job.id}/logs?attempt=1").json()["data"] == ["first"]
    assert_problem(client.get(f"/jobs/{job.id}/logs?attempt=3"), 404, "not_found")


def test_pages_have_so_many_lines(client: TestClient, db: Database, data_dir: Path) -> None:
    job = running(db)
    finish(db, job, Outcome.KILLED)
    written(data_dir, job.id, 1, b"".join(b"%d\n" % number for number in range(25)))
    read: list[str] = []
    page = {"next_since": 0, "terminal": False}
    while not page["terminal"]:
        page = client.get(f"/jobs/{job.id}/logs?limit=10&attempt=1&since={page['next_since']}").json()
        read += page["data"]
    assert read == [str(number) for number in range(25)]


def test_an_answer_stays_small_whatever_was_logged(client: TestClient, db: Database, data_dir: Path) -> None:
    job = running(db)
    finish(db, job, Outcome.KILLED)
    written(data_dir, job.id, 1, b"x" * 2**20 + b"\n\xff\x00\n")
    since, pieces = 0, []
    for _ in range(10):
        answer = client.get(f"/jobs/{job.id}/logs?since={since}")
        assert len(answer.content) < 2**19
        since = answer.json()["next_since"]
        pieces += answer.json()["data"]
        if answer.json()["terminal"]:
            break
    assert "".join(pieces[:-1]) == "x" * 2**20
    assert pieces[-1] == "\ufffd\x00"


def test_a_mistyped_query_is_refused(client: TestClient, db: Database) -> None:
    job = running(db)
    for query in ("since=-1", "limit=0", "limit=1001", "attempt=0", "tail=5", "since=99999999999999999999"):
        assert_problem(client.get(f"/jobs/{job.id}/logs?{query}"), 422, "validation_error")
    assert client.get(f"/jobs/{job.id}/logs?since=9007199254740991").json()["data"] == []


def test_a_log_that_was_never_written_is_empty(client: TestClient, db: Database) -> None:
    job = running(db)
    empty = {"attempt": 1, "data": [], "next_since": 0, "terminal": False}
    assert client.get(f"/jobs/{job.id}/logs").json() == empty
    finish(db, job, Outcome.WORKER_LOST)
    assert client.get(f"/jobs/{job.id}/logs").json() == empty | {"terminal": True}


def test_a_job_that_is_not_there_has_no_log(client: TestClient, db: Database) -> None:
    for job_id in ("x", "0" * 24, "..%2F..%2Fetc"):
        assert_problem(client.get(f"/jobs/{job_id}/logs"), 404, "not_found")
