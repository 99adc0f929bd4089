"""The asynchronous client: its own few lines. What it sends and what it makes of answers it shares with the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from service import feed
from service.client import AsyncClient, Lost, NotFound, WaitTimeout
from service.client import policy as policies
from tests.service.predictor import FakePredictor
from tests.service.test_checkpoints import job as job  # a fixture: three checkpoints on disk
from tests.service.test_checkpoints import weights
from tests.service.test_client import PICTURE, ended
from tests.service.unreliable import Way, cut, lost
from worker.jobs.db import Database
from worker.jobs.tables import Job as Row

Work = Callable[[AsyncClient], Awaitable[None]]
Does = Callable[[Work, Way], None]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(feed, "_LOOK_SECONDS", 0.01)


class _Bridge(httpx2.AsyncBaseTransport):
    """The same way, from an event loop that is not the app's."""

    def __init__(self, way: Way) -> None:
        self._way = way

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()
        asked = httpx2.Request(request.method, request.url, headers=request.headers, content=request.content)
        response = await asyncio.to_thread(self._way.handle_request, asked)
        pieces: list[bytes] = []
        broken: httpx2.RequestError | None = None
        try:
            pieces.extend(response.iter_raw())
        except httpx2.RequestError as error:
            broken = error

        async def body() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece
            if broken is not None:
                raise broken

        return httpx2.Response(response.status_code, headers=response.headers, content=body())


@pytest.fixture
def does() -> Does:
    def run(work: Work, way: Way) -> None:
        async def main() -> None:
            async with AsyncClient("http://localhost", transport=_Bridge(way)) as client:
                await work(client)

        asyncio.run(main())

    return run


def test_it_submits_once_controls_and_lists(client: TestClient, db: Database, does: Does) -> None:
    async def work(us: AsyncClient) -> None:
        job = await us.submit(epochs=2)
        assert (await job.pause()).status == "paused"
        assert (await job.cancel()).status == "cancelled"
        other = await job.clone(epochs=3)
        assert [each.id async for each in us.jobs()] == [other.id, job.id]
        assert (await other.refresh()).spec["epochs"] == 3
        with pytest.raises(WaitTimeout):
            await other.wait(timeout=0.01)
        await job.delete()
        with pytest.raises(NotFound):
            await us.job(job.id)

    does(work, Way(client, lost))


def test_it_follows_through_a_lost_connection(client: TestClient, db: Database, does: Does) -> None:
    row = ended(db, 3)

    async def work(us: AsyncClient) -> None:
        job = await us.job(row.id)
        assert [each.epoch async for each in job.follow()] == [1, 2, 3]
        assert [type(each) async for each in job.events()].count(Lost) == 1
        assert (await job.wait()).status == "succeeded"
        assert [each.epoch for each in await job.metrics()] == [1, 2, 3]
        with pytest.raises(NotFound):
            [each async for each in us.events("0" * 24)]

    does(work, Way(client, None, cut(900), lost, None, cut(900), lost))


def test_it_sends_and_receives_files(
    client: TestClient, db: Database, predictor: FakePredictor, job: Row, does: Does, tmp_path: Path
) -> None:
    (tmp_path / "cat").mkdir()
    PICTURE.save(tmp_path / "cat" / "1.png")

    async def work(us: AsyncClient) -> None:
        found = await us.predict(PICTURE, tmp_path / "cat" / "1.png", job=job.id)
        assert len(found.predictions) == 2
        assert (await us.add_dataset(tmp_path, name="pets-of-async")).version == 1
        await us.delete_dataset("pets-of-async")
        where = await (await us.job(job.id)).download(3, tmp_path / "file")
        assert where.read_bytes() == weights(3)
        assert [each async for each in us.sweeps()] == []

    does(work, Way(client, lost, None, None, None, cut(9)))
