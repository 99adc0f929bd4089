"""A database that somebody else holds, and one that everybody wants at once: no job is taken for lost, nobody gets 500.

`HOLD` seconds somebody holds the write lock, 3 unless told otherwise; `LOAD_SECONDS` last 8 writers and 50 readers, 5
unless told otherwise.
"""

import importlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest

from tests.chaos.answers import Answers, Ask, asking
from tests.chaos.ending import assert_ends_with, undisturbed
from tests.end_to_end.serving import START_SECONDS, Epochd, environment, epochd
from tests.tiny import prepare_tiny

HOLD: Final = float(os.environ.get("HOLD", "3"))
LOAD_SECONDS: Final = float(os.environ.get("LOAD_SECONDS", "5"))
WRITERS, READERS = 8, 50
# Leases that run out while the lock is held: to renew them late is no reason to lose a job.
SETTINGS = {"EPOCHD_SLOTS": "1", "EPOCHD_LEASE_SECONDS": "2", "EPOCHD_HEARTBEAT_SECONDS": "0.5"}
SPEC: Final = {"threads": 1, "batch_size": 2, "checkpoints": {"keep": "last"}}
_log = logging.getLogger(__name__)

sqlite: Any = importlib.import_module("pysqlite3.dbapi2")  # the one that epochd uses


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare_tiny(folder, train=192)
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Epochd]:
    with epochd(data_dir, SETTINGS) as running:
        yield running


@contextmanager
def another_worker(data_dir: Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """One that would like to take over what the other one has lost."""
    env = environment() | SETTINGS | {"EPOCHD_DATA_DIR": str(data_dir)}
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "worker"], env=env, stdout=output, stderr=output)
    deadline = time.monotonic() + START_SECONDS
    try:
        while "worker_ready" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        assert process.wait(START_SECONDS) == 0


@contextmanager
def write_lock(data_dir: Path) -> Iterator[None]:
    connection = sqlite.connect(data_dir / "epochd.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


def reader(job_id: str) -> Ask:
    paths = itertools.cycle([f"/jobs/{job_id}", f"/jobs/{job_id}/metrics", "/jobs", "/datasets"])

    def ask(http: httpx2.Client, answers: Answers) -> None:
        answers.note(http.get(next(paths)))

    return ask


def writer(http: httpx2.Client, answers: Answers) -> None:
    """A job that comes, waits and goes."""
    submitted = answers.note(http.post("/jobs", json=SPEC))
    if submitted.status_code != 201:
        return
    job = submitted.headers["Location"]
    for method, wish in (("POST", "/pause"), ("POST", "/resume"), ("POST", "/cancel"), ("DELETE", "")):
        if answers.note(http.request(method, f"{job}{wish}")).status_code != 200:
            return  # it is being trained already, or the database is away


def assert_undisturbed(server: Epochd, job_id: str, log: Path) -> None:
    job = server.job(job_id)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["succeeded"]
    assert [transition["status"] for transition in job["transitions"]] == ["queued", "running", "succeeded"]
    assert '"event": "rescued"' not in server.log.read_text() + log.read_text()


def test_a_lock_that_is_held_longer_than_a_lease_costs_no_attempt(
    server: Epochd, data_dir: Path, tmp_path: Path
) -> None:
    spec = SPEC | {"epochs": 15}
    whole = undisturbed(server, **spec)
    log = tmp_path / "worker.log"
    with another_worker(data_dir, log) as other:
        other.send_signal(signal.SIGSTOP)  # the job is the first one's
        job_id = server.submit(**spec)
        server.wait(job_id, lambda job: job["attempt"] == 1)
        other.send_signal(signal.SIGCONT)
        server.wait(job_id, lambda job: job["progress"]["epoch"] >= 2)
        with asking(server, [reader(job_id), reader(job_id), writer]) as answers, write_lock(data_dir):
            time.sleep(HOLD)
        assert_ends_with(server, job_id, whole)
    _log.info("the lock was held for %g seconds: %s", HOLD, answers.figures(HOLD))
    assert answers.wrong == []
    assert_undisturbed(server, job_id, log)


def test_writers_and_readers_get_their_answers_and_the_job_trains_on(server: Epochd, data_dir: Path) -> None:
    spec = SPEC | {"epochs": max(10, round(6 * LOAD_SECONDS))}
    whole = undisturbed(server, **spec)
    job_id = server.submit(**spec)
    server.wait(job_id, lambda job: job["progress"]["epoch"] >= 1)
    started = time.monotonic()
    with asking(server, [writer] * WRITERS + [reader(job_id) for _ in range(READERS)]) as answers:
        time.sleep(LOAD_SECONDS)
    seconds = time.monotonic() - started
    assert_ends_with(server, job_id, whole)
    _log.info("%d writers and %d readers: %s", WRITERS, READERS, answers.figures(seconds))
    assert answers.wrong == []
    assert answers.statuses.keys() <= {200, 201, 202, 204, 503}  # nobody was refused what was possible
    assert_undisturbed(server, job_id, server.log)
    connection = sqlite.connect(data_dir / "epochd.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
