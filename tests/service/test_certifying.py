"""The task that has a certificate made of every job that succeeds."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import service.certifying
from service.certifying import certify
from service.predictor import Errand
from tests.service.predictor import FakePredictor
from tests.worker.jobs.test_parities import certificate, succeeded
from worker.jobs import control, parities
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, DatasetChanged, Internal, NotReady, PredictorUnavailable
from worker.jobs.tables import ParityRow
from worker.jobs.wire import ParityRequest


class Busy(FakePredictor):
    """Takes no errand at first."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    @asynccontextmanager
    async def errand(self, request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        self.times -= 1
        if self.times >= 0:
            raise PredictorUnavailable
        async with super().errand(request) as parts:
            yield parts


class Slow(FakePredictor):
    """Has errands that never end; remembers how many were there at once, and those that were left."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work = self.most_at_work = self.left = 0

    @asynccontextmanager
    async def errand(self, request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            yield self._never()
        finally:
            self.at_work -= 1
            self.left += 1

    async def _never(self) -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.certifying, "_AWAY_SECONDS", 0.01)
    monkeypatch.setattr(service.certifying, "_LOOK_SECONDS", 0.01)


def certified(db: Database, predictor: FakePredictor, *, until: Callable[[], bool] | None = None) -> None:
    """Runs the task until no job wants a certificate, or until something else."""

    async def work() -> None:
        task = asyncio.create_task(certify(db, predictor))  # type: ignore[arg-type]
        deadline = time.monotonic() + 30
        while not (until() if until else parities.wanting(db) is None):
            assert time.monotonic() < deadline
            assert not task.done()
            await asyncio.sleep(0.01)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(work())


def test_every_job_that_succeeded_gets_one(db: Database, predictor: FakePredictor) -> None:
    jobs = [succeeded(db) for _ in range(3)]
    predictor.parts = [certificate().model_dump_json().encode()]
    certified(db, predictor)
    assert [parities.find(db, job.id) for job in jobs] == [certificate()] * 3
    assert len(predictor.asked) == 3
    assert all(isinstance(request, ParityRequest) for request, _ in predictor.asked)


def test_what_cannot_be_certified_is_told_and_left(db: Database, predictor: FakePredictor) -> None:
    job = succeeded(db)
    predictor.error = DatasetChanged()
    certified(db, predictor)
    assert len(predictor.asked) == 1
    with pytest.raises(Conflict, match="no longer those"):
        parities.find(db, job.id)


def is_recorded(db: Database, job_id: str) -> bool:
    with db.read() as session:
        return session.get(ParityRow, job_id) is not None


def test_a_dataset_that_is_gone_is_told_without_asking_anybody(db: Database, predictor: FakePredictor) -> None:
    job = succeeded(db)
    wanting = parities.wanting(db)
    assert wanting is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parities, "wanting", lambda _: wanting._replace(request=None))
        certified(db, predictor, until=lambda: is_recorded(db, job.id))
    assert predictor.asked == []
    with pytest.raises(Conflict, match="dataset is gone"):
        parities.find(db, job.id)


def test_when_the_predictor_has_too_much_to_do_it_is_asked_until_it_has_not(db: Database) -> None:
    job, predictor = succeeded(db), Busy(times=10)
    predictor.parts = [certificate().model_dump_json().encode()]
    certified(db, predictor)
    assert parities.find(db, job.id).passed
    assert len(predictor.asked) == 1


@pytest.mark.parametrize("error", [PredictorUnavailable(), Internal("To parity failed unexpectedly.")], ids=str)
def test_a_process_that_always_dies_is_given_up_and_does_not_hold_up_other_jobs(
    db: Database, predictor: FakePredictor, error: Exception, log: list[MutableMapping[str, Any]]
) -> None:
    older, newer = succeeded(db), succeeded(db)
    predictor.error = error
    certified(db, predictor)
    assert len(predictor.asked) == 6
    for job in (older, newer):
        with pytest.raises(Conflict, match="died 3 times"):
            parities.find(db, job.id)
    assert [entry["times"] for entry in log if entry["event"] == "certificate_failed"] == [1, 2, 3, 1, 2, 3]


def test_a_process_that_dies_once_is_forgiven(
    db: Database, predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.certifying, "_AWAY_SECONDS", 60.0)
    job = succeeded(db)
    predictor.error = PredictorUnavailable()
    certified(db, predictor, until=lambda: bool(predictor.asked))
    with pytest.raises(NotReady, match="being made"):
        parities.find(db, job.id)
    predictor.error, predictor.parts = None, [certificate().model_dump_json().encode()]
    certified(db, predictor)
    assert parities.find(db, job.id).passed


def test_an_answer_that_cannot_be_read_ends_nothing(
    db: Database, predictor: FakePredictor, log: list[MutableMapping[str, Any]]
) -> None:
    succeeded(db)
    predictor.parts = [b"no certificate"]
    certified(db, predictor, until=lambda: len(predictor.asked) > 1)
    assert any(entry["event"] == "not_certified" for entry in log)


def test_only_one_is_made_at_a_time_and_its_process_is_left_at_the_end(db: Database) -> None:
    jobs, predictor = [succeeded(db) for _ in range(3)], Slow()
    certified(db, predictor, until=lambda: predictor.at_work > 0)
    assert (predictor.most_at_work, predictor.at_work, predictor.left) == (1, 0, 1)
    for job in jobs:
        with pytest.raises(NotReady):
            parities.find(db, job.id)


def test_a_job_that_is_deleted_meanwhile_leaves_nothing(db: Database, predictor: FakePredictor) -> None:
    job = succeeded(db)
    wanting = parities.wanting(db)
    control.delete(db, job.id)
    predictor.parts = [certificate().model_dump_json().encode()]
    given, record, recorded = iter([wanting]), parities.record, list[object]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parities, "wanting", lambda _: next(given, None))
        patch.setattr(parities, "record", lambda *of: recorded.append(record(*of)))
        certified(db, predictor, until=lambda: bool(recorded))
    assert len(predictor.asked) == 1
    assert parities.wanting(db) is None
