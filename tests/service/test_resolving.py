"""Which checkpoint is meant: remembered for a moment, never for long, and not at all after something changed."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

import service.resolving
from service.resolving import Resolver, Wanted
from tests.worker.jobs.making import finish, record, running, saved
from worker.jobs.db import Database
from worker.jobs.errors import NotFound
from worker.jobs.owners import EVERYBODY
from worker.jobs.processes import cores
from worker.jobs.states import Outcome
from worker.jobs.tables import Checkpoint, Job

T = TypeVar("T")


@pytest.fixture
def job(db: Database) -> Job:
    job = running(db)
    record(db, job, 1)
    return job


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Wanted]:
    """What the database was asked for."""
    found: list[Wanted] = []
    find = service.resolving.find

    def finding(db: Database, wanted: Wanted) -> Checkpoint:
        found.append(wanted)
        return find(db, wanted)

    monkeypatch.setattr(service.resolving, "find", finding)
    return found


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def test_many_who_ask_at_once_share_one_question(db: Database, job: Job, asked: list[Wanted]) -> None:
    async def work() -> list[Checkpoint]:
        resolver = Resolver(db)
        return await asyncio.gather(*(resolver.find(EVERYBODY, job=job.id) for _ in range(50)))

    assert {row.path for row in run(work())} == {saved(1).path}
    assert len(asked) == 1


def test_what_is_known_is_looked_up_again_after_a_moment(db: Database, job: Job, asked: list[Wanted]) -> None:
    async def work() -> list[int]:
        resolver = Resolver(db)
        epochs = [(await resolver.find(EVERYBODY, job=job.id, which="last")).epoch]
        record(db, job, 2)
        epochs.append((await resolver.find(EVERYBODY, job=job.id, which="last")).epoch)
        await asyncio.sleep(1.1)
        return [*epochs, (await resolver.find(EVERYBODY, job=job.id, which="last")).epoch]

    assert run(work()) == [1, 1, 2]
    assert len(asked) == 2


def test_nothing_older_is_answered_after_something_changed(
    db: Database, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by a question that was under way."""
    begun, go_on = threading.Event(), threading.Event()
    find = service.resolving.find

    def slowly(db: Database, wanted: Wanted) -> Checkpoint:
        found = find(db, wanted)
        if not begun.is_set():
            begun.set()
            go_on.wait(10)
        return found

    monkeypatch.setattr(service.resolving, "find", slowly)

    async def work() -> list[int]:
        resolver = Resolver(db)
        early = asyncio.create_task(resolver.find(EVERYBODY, job=job.id, which="last"))
        await asyncio.to_thread(begun.wait, 10)
        record(db, job, 2)
        resolver.forget()
        late = await resolver.find(EVERYBODY, job=job.id, which="last")
        go_on.set()
        first = await early
        return [late.epoch, first.epoch, (await resolver.find(EVERYBODY, job=job.id, which="last")).epoch]

    assert run(work()) == [2, 1, 2]


def test_what_is_not_there_is_asked_for_each_time(db: Database, asked: list[Wanted]) -> None:
    async def work() -> int:
        resolver = Resolver(db)
        for _ in range(3):
            with pytest.raises(NotFound):
                await resolver.find(EVERYBODY, job="0" * 24)
        job = running(db)
        record(db, job, 1)
        return (await resolver.find(EVERYBODY, job=job.id)).epoch

    assert run(work()) == 1
    assert len(asked) == 4


def test_cores_are_left_to_a_running_job(db: Database, job: Job) -> None:
    async def work() -> list[int]:
        resolver = Resolver(db)
        await resolver.find(EVERYBODY, job=job.id)
        threads = [resolver.threads]
        finish(db, job, Outcome.SUCCEEDED)
        resolver.forget()
        await resolver.find(EVERYBODY, job=job.id)
        return [*threads, resolver.threads]

    assert run(work()) == [1, cores()]
