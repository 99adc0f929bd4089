"""Who freezes and loses a job to another worker can change nothing any more when he thaws, and is soon gone.

`ROUNDS` of it, 3 unless told otherwise: a worker with its training, a worker alone, a training alone, and again.
"""

import importlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chaos.long_job import LONG, assert_ends_undisturbed, until, wait_training
from tests.chaos.workplace import checkpoint_files, database, small_data_dir
from tests.end_to_end.serving import Epochd, environment, epochd
from worker.jobs import records
from worker.jobs.db import Database

ROUNDS: Final = int(os.environ.get("ROUNDS", "3"))
SEED: Final = int(os.environ.get("SEED", "1"))
HEARTBEAT: Final = 0.5
SLACK_SECONDS: Final = 5.0  # for a machine that has more to do
SETTINGS: Final = {
    "EPOCHD_SLOTS": "1",
    "EPOCHD_LEASE_SECONDS": "2",
    "EPOCHD_HEARTBEAT_SECONDS": str(HEARTBEAT),
    "EPOCHD_STALL_SECONDS": "2",
    "EPOCHD_CHECKPOINT_SECONDS": "0.2",
    "EPOCHD_MAX_ATTEMPTS": "100",
}
LONGER: Final = LONG | {"epochs": 32}  # than a lease, even if nothing but the worker freezes
KINDS: Final = ("worker and training", "worker", "training")
_log = logging.getLogger(__name__)

sqlite: Any = importlib.import_module("pysqlite3.dbapi2")  # the one that epochd uses


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data_dir(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Epochd]:
    with epochd(data_dir, SETTINGS) as running:
        yield running


@pytest.fixture(scope="module")
def second_worker(server: Epochd) -> Iterator[int]:
    """Its process; it works beside the one that `epochd serve` has."""
    env = environment() | SETTINGS | {"EPOCHD_DATA_DIR": str(server.data_dir)}
    with (server.data_dir / "worker.log").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "worker"], env=env, stdout=output, stderr=output
        )
    until(lambda: b"worker_ready" in (server.data_dir / "worker.log").read_bytes())
    yield process.pid
    process.terminate()
    assert process.wait(30) == 0


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def training_of(server: Epochd, second_worker: int, job_id: str) -> int:
    """The process, whichever worker has it."""
    (pid,) = server.trainings_of(job_id) or server.trainings_of(job_id, under=second_worker)
    return pid


@contextmanager
def frozen(data_dir: Path, pids: list[int]) -> Iterator[None]:
    """All but those who hold SQLite's lock at this moment: nobody can take over anything until they let go of it."""
    while True:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        if not is_locked(data_dir):
            break
        thaw(pids)
        time.sleep(0.05)
    try:
        yield
    finally:
        thaw(pids)


def thaw(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def is_locked(data_dir: Path) -> bool:
    connection = sqlite.connect(data_dir / "epochd.db", timeout=0.5, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite.OperationalError:
        return True
    finally:
        connection.close()
    return False


def freeze_until_taken_over(kind: str, server: Epochd, training: int, job_id: str, rng: random.Random) -> float:
    """Returns how many seconds the frozen training lived on when everybody went on."""
    worker = parent(parent(training))
    pids = {"worker and training": [training, worker], "worker": [worker], "training": [training]}[kind]
    with frozen(server.data_dir, pids):
        server.wait(job_id, lambda job: job["attempt"] >= 2)
        if kind == "worker":  # its training has to find out by itself
            until(lambda: not is_alive(training), 4 + SLACK_SECONDS)
        time.sleep(rng.uniform(0, 1))
    return until(lambda: not is_alive(training), 2 * HEARTBEAT + SLACK_SECONDS)


def assert_nothing_is_stale(db: Database, data_dir: Path, job_id: str) -> None:
    """What attempts recorded they recorded while they were the job's, and nothing else is left of them."""
    attempts = {each.number: each for each in records.attempts(db, job_id)}
    for row in records.epochs(db, job_id):
        ended_at = attempts[row.attempt].ended_at
        assert ended_at is not None
        assert attempts[row.attempt].started_at <= row.recorded_at <= ended_at
    for kept in records.checkpoints(db, job_id):
        assert kept.row.attempt == kept.metrics.attempt
    until(lambda: checkpoint_files(data_dir, job_id) == set(records.files(db, job_id)), SLACK_SECONDS)


def test_what_thaws_changes_nothing_and_is_soon_gone(server: Epochd, second_worker: int) -> None:
    rng, gone = random.Random(SEED), []
    with database(server.data_dir) as db:
        for number in range(ROUNDS):
            kind = KINDS[number % len(KINDS)]
            job_id = server.submit(**LONGER)
            wait_training(server, job_id)
            time.sleep(rng.uniform(0, 0.8))
            training = training_of(server, second_worker, job_id)
            gone.append(freeze_until_taken_over(kind, server, training, job_id, rng))
            assert_ends_undisturbed(server, job_id)
            outcomes = [each["outcome"] for each in server.job(job_id)["attempts"]]
            first = "stalled" if kind == "training" else "worker_lost"
            assert (outcomes[0], outcomes[-1]) == (first, "succeeded"), outcomes
            assert_nothing_is_stale(db, server.data_dir, job_id)
            _log.info("%s: gone %.2f s after it thawed; %s", kind, gone[-1], outcomes)
    beats = sorted(seconds / HEARTBEAT for seconds in gone)
    late = sum(each > 2 for each in beats)
    _log.info("%d rounds, %d of them took longer than two heartbeats; longest %.1f", ROUNDS, late, beats[-1])
