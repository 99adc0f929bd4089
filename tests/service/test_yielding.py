"""What answers requests gives way while a training runs, and only then."""

import asyncio
import os
from contextlib import suppress

import pytest

import service.yielding
from service.yielding import give_way
from tests.service.predictor import FakePredictor
from tests.worker.jobs.making import finish, running
from worker.jobs.db import Database
from worker.jobs.states import Outcome


def test_priorities_follow_the_trainings(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = FakePredictor()
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(service.yielding, "set_niceness", lambda pid, niceness: told.append((pid, niceness)))
    monkeypatch.setattr(service.yielding, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid())

    async def work() -> None:
        predictor.pids = [11, 12]
        task = asyncio.create_task(give_way(db, predictor))  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        assert told == []
        job = running(db)
        await asyncio.sleep(0.2)
        assert told == [(os.getpid(), 10), (11, 10), (12, 10)]
        predictor.pids = [12, 13]  # one has died
        await asyncio.sleep(0.2)
        assert told[3:] == [(13, 10)]
        finish(db, job, Outcome.SUCCEEDED)
        await asyncio.sleep(0.2)
        assert told[4:] == [(os.getpid(), 0), (12, 0), (13, 0)]
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(work())
