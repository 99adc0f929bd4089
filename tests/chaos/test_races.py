"""Real processes that want the same row at the same instant, on both databases.

`RACES=full`: 2,000 jobs to claim, 1,000 rescues against finishes, 100 against every write. Less unless told otherwise.
"""

import itertools
import logging
import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import SQLModel

from tests.postgres import Server
from tests.worker.jobs import writes
from tests.worker.jobs.making import BACKENDS, EXPIRED, LEASE_SECONDS, make_ready, progress, result, saved
from worker.jobs import control, datasets, queue, records, submitting
from worker.jobs.db import Database, now
from worker.jobs.errors import Conflict, StaleAttempt
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.spec import Spec
from worker.jobs.states import OWNED, Outcome, Status
from worker.jobs.tables import Job

IS_FULL = os.environ.get("RACES") == "full"
JOBS, PROCESSES = (2_000 if IS_FULL else 200), 8
INTERLEAVINGS = 1_000 if IS_FULL else 60
ROUNDS = 100 if IS_FULL else 4  # of every write
RANDOM_SECONDS = 20.0 if IS_FULL else 2.0
LONG_SECONDS = 3600.0
_spawn = multiprocessing.get_context("spawn")
_barriers: dict[int, Barrier] = {}  # of the crew, by how many meet there
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


@pytest.fixture(scope="module")
def crew() -> Iterator[ProcessPoolExecutor]:
    """Processes that have imported what they need."""
    _barriers.update({count: _spawn.Barrier(count) for count in (2, 4, PROCESSES)})
    with ProcessPoolExecutor(PROCESSES, _spawn, join_crew, (_barriers,)) as crew:
        yield crew


def join_crew(barriers: dict[int, Barrier]) -> None:
    _barriers.update(barriers)


def together(crew: ProcessPoolExecutor, *works: tuple[Any, ...]) -> list[Any]:
    """What each returns, of a function and its arguments, in a process of its own."""
    futures = [crew.submit(*work) for work in works]
    wait(futures)
    for barrier in _barriers.values():
        barrier.reset()  # one who failed has broken it for the others
    return [future.result() for future in futures]


def meet(count: int) -> None:
    _barriers[count].wait(60)


def near(rng: random.Random) -> None:
    """Some part of a millisecond, so that now the one and now the other is first."""
    time.sleep(rng.uniform(0, 0.001))


def claimed(db: Database, count: int) -> list[str]:
    """Jobs, each owned by a worker of its own that has the job's id."""
    ids = []
    for _ in range(count):
        submitting.enqueue(db, Spec())
        job = queue.claim(db, "unnamed", LONG_SECONDS)
        assert job is not None
        ids.append(job.id)
    with db.write() as session:
        for job_id in ids:
            session.get_one(Job, job_id).worker_id = job_id
    return ids


def claim_all(url: str, worker_id: str) -> tuple[list[tuple[str, int]], float]:
    """What it got, and in how many seconds."""
    db = Database(url)
    meet(PROCESSES)
    started, got = time.monotonic(), []
    while (job := queue.claim(db, worker_id, LEASE_SECONDS)) is not None:
        got.append((job.id, job.attempt))
    db.close()
    return got, time.monotonic() - started


def test_each_job_is_claimed_once(db: Database, url: str, crew: ProcessPoolExecutor) -> None:
    ids = [submitting.enqueue(db, Spec()).id for _ in range(JOBS)]
    told = together(crew, *((claim_all, url, f"worker-{number}") for number in range(PROCESSES)))
    parts, seconds = [part for part, _ in told], max(seconds for _, seconds in told)
    _log.info("%d jobs, %.0f claims a second, by process %s", JOBS, JOBS / seconds, [len(part) for part in parts])
    # One that found the queue empty for a moment, because others held its rows, has left; nobody got a job twice.
    assert sorted(each for part in parts for each in part) == sorted((job_id, 1) for job_id in ids)
    assert [len(records.attempts(db, job_id)) for job_id in ids] == [1] * JOBS


def finish_each(url: str, jobs: list[str]) -> list[str]:
    db, rng, won = Database(url), random.Random(1), []
    for job_id in jobs:
        meet(2)
        near(rng)
        try:
            queue.finish(db, job_id, 1, Outcome.SUCCEEDED, max_attempts=3)
            won.append(job_id)
        except StaleAttempt:
            pass
    db.close()
    return won


def rescue_each(url: str, jobs: list[str]) -> list[str]:
    """Whose lease has just run out."""
    db, rng, won = Database(url), random.Random(2), []
    for job_id in jobs:
        with db.write() as session:
            session.get_one(Job, job_id).lease_expires_at = now(session) - timedelta(seconds=1)
        meet(2)
        near(rng)
        won += queue.rescue(db, max_attempts=3)
    db.close()
    return won


def test_a_rescue_never_reopens_what_is_finished(db: Database, url: str, crew: ProcessPoolExecutor) -> None:
    jobs = claimed(db, INTERLEAVINGS)
    finished, rescued = together(crew, (finish_each, url, jobs), (rescue_each, url, jobs))
    _log.info("%d finished first, %d rescued first", len(finished), len(rescued))
    assert finished  # else nothing raced
    assert rescued
    assert sorted([*finished, *rescued]) == sorted(jobs)  # never both, never neither
    expected = dict.fromkeys(finished, (Status.SUCCEEDED, Outcome.SUCCEEDED))
    expected |= dict.fromkeys(rescued, (Status.QUEUED, Outcome.WORKER_LOST))
    for job_id, (status, outcome) in expected.items():
        assert queue.get(db, job_id).status == status
        assert [each.outcome for each in records.attempts(db, job_id)] == [outcome]
        said = [each.status for each in records.transitions(db, job_id)]
        assert said == [Status.QUEUED, Status.RUNNING, status]  # and nothing behind that


WRITES = [(name, writes.OF_JOBS[name], True) for name in writes.OF_JOBS]
WRITES += [(name, writes.OF_DATASETS[name], False) for name in writes.OF_DATASETS]


def rows(db: Database, row_id: str) -> dict[str, list[str]]:
    """All that belongs to this job or dataset."""
    with db.read() as session:
        return {
            table.name: [
                repr(row)
                for row in session.execute(
                    select(table).where((table.c.job_id if "job_id" in table.c else table.c.id) == row_id)
                )
            ]
            for table in SQLModel.metadata.sorted_tables
            if "job_id" in table.c or table.name in ("jobs", "datasets")
        }


def write_each(url: str, owned: list[list[str]]) -> list[Counter[str]]:
    """For each write, how many were accepted and refused; a refused one is tried again, and again refused."""
    db, rng, told = Database(url), random.Random(3), []
    for (_, write, _), ids in zip(WRITES, owned, strict=True):
        count = Counter[str]()
        for row_id in ids:
            meet(2)
            near(rng)
            for _ in range(2):
                try:
                    write(db, row_id, 1)
                    count["accepted"] += 1
                    break
                except StaleAttempt:
                    count["refused"] += 1
            meet(2)
        told.append(count)
    db.close()
    return told


def take_back(db: Database, row_id: str, is_job: bool) -> bool:
    """Whether a rescue took it: on PostgreSQL it leaves a row that a write holds just then to the next rescue."""
    rescue = queue.rescue if is_job else datasets.rescue
    while not rescue(db, max_attempts=3, dead_workers=[row_id], expired=False):
        if not (queue.owned if is_job else datasets.owned)(db, row_id):
            return False
    return True


def rescue_before_writes(url: str, owned: list[list[str]]) -> dict[str, dict[str, list[str]]]:
    """The rows of what was taken back, as they were at once after that."""
    db, rng, taken = Database(url), random.Random(4), {}
    for (_, _, is_job), ids in zip(WRITES, owned, strict=True):
        for row_id in ids:
            meet(2)
            near(rng)
            if take_back(db, row_id, is_job):
                taken[row_id] = rows(db, row_id)
            meet(2)
    db.close()
    return taken


def being_prepared(db: Database, count: int) -> list[str]:
    """Datasets, each owned by a worker of its own that has the dataset's id."""
    ids = [new_id() for _ in range(count)]
    for dataset_id in ids:
        datasets.add_upload(db, dataset_id, Form(name=f"set-{dataset_id}"))
        found = datasets.claim(db, dataset_id, LONG_SECONDS)
        assert found is not None
        assert found.id == dataset_id
    return ids


def test_no_write_of_an_attempt_that_lost_its_row_is_accepted(
    db: Database, url: str, crew: ProcessPoolExecutor
) -> None:
    owned = [claimed(db, ROUNDS) if is_job else being_prepared(db, ROUNDS) for _, _, is_job in WRITES]
    told, taken = together(crew, (write_each, url, owned), (rescue_before_writes, url, owned))
    total = sum(told, Counter[str]())
    _log.info("%d writes accepted, %d refused", total["accepted"], total["refused"])
    assert total["accepted"]  # else nothing raced
    assert total["refused"]
    for row_id, then in taken.items():
        assert rows(db, row_id) == then
    for (name, _, _), ids, count in zip(WRITES, owned, told, strict=True):
        assert count["accepted"] + count["refused"] // 2 == ROUNDS
        gone = [row_id for row_id in ids if row_id not in taken]
        assert len(gone) <= count["accepted"]
        assert not gone or name in ("finish", "set_ready", "set_invalid")  # which end the attempt themselves


def an_epoch(db: Database, job: Job) -> None:
    last = max((row.epoch for row in records.epochs(db, job.id)), default=0)
    which = last + 1
    records.record_epoch(db, job.id, job.attempt, result(which), saved(which, job.attempt), progress(which))


def anything(db: Database, rng: random.Random, worker_id: str, job_id: str) -> str:
    """What a worker or an owner may do, whether it fits or not. Raises Conflict and StaleAttempt."""
    name = rng.choice(["claim", "epoch", "finish", "rescue", "cancel", "pause", "resume", "retry", "extend"])
    if name == "claim":
        queue.claim(db, worker_id, rng.choice([EXPIRED, LEASE_SECONDS]))
    elif name == "epoch":
        an_epoch(db, queue.get(db, job_id))
    elif name == "finish":
        outcome = rng.choice([Outcome.SUCCEEDED, Outcome.FAILED, *[Outcome.RELEASED, Outcome.KILLED] * 4])
        queue.finish(db, job_id, queue.get(db, job_id).attempt, outcome, max_attempts=3)
    elif name == "rescue":
        queue.rescue(db, max_attempts=3)
    elif name == "cancel":
        control.cancel(db, job_id, at_once=rng.random() < 0.5)
    elif name == "extend":
        control.extend(db, job_id, 1)
    else:
        {"pause": control.pause, "resume": control.resume, "retry": control.retry}[name](db, job_id)
    return name


def at_random(url: str, jobs: list[str], seed: int) -> Counter[str]:
    db, rng, done = Database(url), random.Random(seed), Counter[str]()
    meet(4)
    deadline = time.monotonic() + RANDOM_SECONDS
    while time.monotonic() < deadline:
        try:
            done[anything(db, rng, f"worker-{seed}", rng.choice(jobs))] += 1
        except (Conflict, StaleAttempt):
            done["refused"] += 1
    db.close()
    return done


def test_whatever_happens_at_once_the_rows_agree(db: Database, url: str, crew: ProcessPoolExecutor) -> None:
    jobs = [submitting.enqueue(db, Spec(epochs=1)).id for _ in range(12)]
    done: list[Counter[str]] = together(crew, *((at_random, url, jobs, seed) for seed in range(4)))
    _log.info("%s", dict(sum(done, Counter[str]())))
    for job_id in jobs:
        job, attempts = queue.get(db, job_id), records.attempts(db, job_id)
        assert [each.number for each in attempts] == list(range(1, job.attempt + 1))
        unfinished = [each.number for each in attempts if each.outcome is None]
        assert unfinished == ([job.attempt] if job.status in OWNED else [])
        epochs = records.epochs(db, job_id)
        assert [row.epoch for row in epochs] == list(range(1, len(epochs) + 1))
        assert max((row.seq for row in epochs), default=0) == job.last_seq
        assert [each.row.epoch for each in records.checkpoints(db, job_id)] == [row.epoch for row in epochs]
        told = records.transitions(db, job_id)
        assert told[-1].status == job.status
        for one, other in itertools.pairwise(told):
            assert other.status in ALLOWED[one.status], told
            if one.status in REVIVED:
                assert (other.reason or "").startswith(REVIVED[one.status])


ALLOWED = {
    "queued": {"running", "paused", "cancelled"},
    "running": {"succeeded", "failed", "queued", "pausing", "cancelling"},
    "pausing": {"paused", "running", "cancelling", "succeeded", "failed"},
    "paused": {"queued", "cancelled"},
    "cancelling": {"cancelled", "succeeded", "failed"},
    "cancelled": {"queued"},
    "failed": {"queued"},
    "succeeded": {"queued"},
}
REVIVED = {"cancelled": "retried", "failed": "retried", "succeeded": "extended"}  # by their owner, and by nobody else
