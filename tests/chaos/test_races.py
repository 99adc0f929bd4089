"""Real processes that want the same row at the same instant, on both databases.

`RACES=full`: 2,000 jobs to claim, 1,000 rescues against finishes. Less unless told otherwise.
"""

import itertools
import logging
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Server
from tests.worker.jobs.making import BACKENDS, EXPIRED, LEASE_SECONDS, make_ready
from worker.jobs import control, queue, records, workers
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, StaleAttempt
from worker.jobs.spec import Spec
from worker.jobs.states import OWNED, Outcome, Status
from worker.jobs.tables import Job

IS_FULL = os.environ.get("RACES") == "full"
JOBS, PROCESSES = (2_000 if IS_FULL else 200), 8
INTERLEAVINGS = 1_000 if IS_FULL else 60
RANDOM_SECONDS = 20.0 if IS_FULL else 3.0
_spawn = multiprocessing.get_context("spawn")
_log = logging.getLogger(__name__)


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, migrated_sqlite: Path, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{shutil.copy(migrated_sqlite, tmp_path)}"
    server: Server = request.getfixturevalue("postgres_server")
    url = server.new_database()
    db = Database(url)
    db.migrate()
    db.close()
    return url


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    db = Database(url)
    make_ready(db)
    yield db
    db.close()


def together(run: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """Runs each in a process of its own; all begin when the last one is ready. What each has put into its pipe."""
    barrier = _spawn.Barrier(len(arguments))
    pipes = [_spawn.Pipe(duplex=False) for _ in arguments]
    processes = [
        _spawn.Process(target=run, args=(barrier, send, *own)) for (_, send), own in zip(pipes, arguments, strict=True)
    ]
    for process in processes:
        process.start()
    found = [receive.recv() for receive, _ in pipes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return found


def claim_all(barrier: Barrier, send: Any, url: str, worker_id: str) -> None:
    db = Database(url)
    barrier.wait()
    claimed = []
    while (job := queue.claim(db, worker_id, LEASE_SECONDS)) is not None:
        claimed.append((job.id, job.attempt))
    send.send(claimed)


def test_each_job_is_claimed_once(db: Database, url: str) -> None:
    ids = [queue.enqueue(db, Spec()).id for _ in range(JOBS)]
    started = time.monotonic()
    claimed = together(claim_all, [(url, f"worker-{number}") for number in range(PROCESSES)])
    _log.info("%d claims a second", JOBS / (time.monotonic() - started))
    # A process that found the queue empty for a moment, because others held its rows, has left; nobody got one twice.
    found = [each for part in claimed for each in part]
    assert sorted(job_id for job_id, _ in found) == sorted(ids)
    assert {attempt for _, attempt in found} == {1}


def finish_each(barrier: Barrier, send: Any, url: str, jobs: list[str], seed: int) -> None:
    db, rng, won = Database(url), random.Random(seed), []
    for job_id in jobs:
        barrier.wait()
        time.sleep(rng.uniform(0, 0.002))
        try:
            queue.finish(db, job_id, 1, Outcome.SUCCEEDED, max_attempts=3)
            won.append(job_id)
        except StaleAttempt:
            pass
    send.send(won)


def rescue_each(barrier: Barrier, send: Any, url: str, jobs: list[str], seed: int) -> None:
    db, rng, won = Database(url), random.Random(seed), []
    for job_id in jobs:
        barrier.wait()
        time.sleep(rng.uniform(0, 0.002))
        won += queue.rescue(db, max_attempts=100, dead_workers=[job_id], expired=False)
    send.send(won)


def test_a_rescue_never_reopens_what_is_finished(db: Database, url: str) -> None:
    jobs = []
    for _ in range(INTERLEAVINGS):
        queue.enqueue(db, Spec())
        job = queue.claim(db, "unnamed", LEASE_SECONDS)
        assert job is not None
        jobs.append(job.id)
    with db.write() as session:
        for job_id in jobs:  # each has a worker of its own, which the rescue takes for dead
            session.get_one(Job, job_id).worker_id = job_id
    finished, rescued = together(finish_or_rescue, [(url, jobs, 1, True), (url, jobs, 2, False)])
    assert not set(finished) & set(rescued)  # never both,
    assert set(finished) | set(rescued) == set(jobs)  # and never neither
    _log.info("%d finished first, %d rescued first", len(finished), len(rescued))
    for job_id in jobs:
        status = queue.get(db, job_id).status
        assert status == (Status.SUCCEEDED if job_id in set(finished) else Status.QUEUED)
        said = [each.status for each in records.transitions(db, job_id)]
        assert said[2:] == [str(status)]  # queued, running, and what came of it: nothing behind that


def finish_or_rescue(barrier: Barrier, send: Any, url: str, jobs: list[str], seed: int, finishes: bool) -> None:
    (finish_each if finishes else rescue_each)(barrier, send, url, jobs, seed)


def at_random(barrier: Barrier, send: Any, url: str, jobs: list[str], seed: int) -> None:
    """A worker and an owner in one, who do whatever comes to mind."""
    db, rng, done = Database(url), random.Random(seed), Counter[str]()
    worker_id = f"worker-{seed}"
    workers.register(db, worker_id, "here")
    barrier.wait()
    deadline = time.monotonic() + RANDOM_SECONDS
    while time.monotonic() < deadline:
        job_id = rng.choice(jobs)
        name = rng.choice(["claim", "finish", "rescue", "cancel", "pause", "resume", "retry"])
        try:
            if name == "claim":
                queue.claim(db, worker_id, rng.choice([EXPIRED, LEASE_SECONDS]))
            elif name == "finish":
                outcome = rng.choice([Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RELEASED, Outcome.KILLED])
                queue.finish(db, job_id, queue.get(db, job_id).attempt, outcome, max_attempts=3)
            elif name == "rescue":
                queue.rescue(db, max_attempts=3)
            else:
                getattr(control, name)(db, job_id)
            done[name] += 1
        except (Conflict, StaleAttempt):
            done["refused"] += 1
    send.send(done)


def test_whatever_happens_at_once_the_rows_agree(db: Database, url: str) -> None:
    jobs = [queue.enqueue(db, Spec()).id for _ in range(12)]
    done = together(at_random, [(url, jobs, seed) for seed in range(4)])
    _log.info("%s", dict(sum(done, Counter[str]())))
    for job_id in jobs:
        job, attempts = queue.get(db, job_id), records.attempts(db, job_id)
        assert [each.number for each in attempts] == list(range(1, job.attempt + 1))
        unfinished = [each.number for each in attempts if each.outcome is None]
        assert unfinished == ([job.attempt] if job.status in OWNED else [])
        said = [each.status for each in records.transitions(db, job_id)]
        assert said[-1] == job.status
        for one, other in itertools.pairwise(said):
            assert other in ALLOWED[one], said


ALLOWED = {
    "queued": {"running", "paused", "cancelled", "failed"},
    "running": {"succeeded", "failed", "queued", "pausing", "cancelling"},
    "pausing": {"paused", "running", "cancelling", "succeeded", "failed"},
    "paused": {"queued", "cancelled"},
    "cancelling": {"cancelled", "succeeded", "failed"},
    "cancelled": {"queued"},  # retried
    "failed": {"queued"},  # retried
    "succeeded": set(),
}
