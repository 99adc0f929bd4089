"""Following a job: long polls, streams, tags. Each hears of every row once, in order, and of the end."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import insert, select, update
from sqlmodel import col

from service.feed import Feed
from tests.service.conftest import Serve
from tests.worker.jobs.making import claim, finish, record, running
from worker.jobs import control, records
from worker.jobs.db import Database
from worker.jobs.records import Resumed
from worker.jobs.states import Outcome
from worker.jobs.tables import Epoch, Job

Event = tuple[str, str | None]  # its kind and its id


def events(text: str) -> list[Event]:
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], fields.get("id")))
    return found


def stream(client: TestClient, job: Job, last: int | None = None) -> list[Event]:
    """All of it: the job has ended, or ends meanwhile."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    answer = client.get(f"/jobs/{job.id}/stream", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    return events(answer.text)


@contextmanager
def beside(work: Callable[[], Any]) -> Iterator[Future[Any]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def ended(db: Database, epochs: int) -> Job:
    job = running(db, epochs=epochs)
    for epoch in range(1, epochs + 1):
        record(db, job, epoch)
    finish(db, job, Outcome.SUCCEEDED)
    return job


def test_a_stream_of_a_job_that_has_ended_is_all_rows_and_the_end(client: TestClient, db: Database) -> None:
    rows = [each for each in stream(client, ended(db, 3)) if each[0] != "status"]
    assert rows == [("metrics", "1"), ("metrics", "2"), ("metrics", "3"), ("end", None)]


@pytest.mark.parametrize(("last", "left"), [(0, ["1", "2", "3"]), (2, ["3"]), (3, []), (9, [])])
def test_a_stream_goes_on_behind_the_last_event(client: TestClient, db: Database, last: int, left: list[str]) -> None:
    found = stream(client, ended(db, 3), last)
    assert [name for kind, name in found if kind == "metrics"] == left
    assert found[-1] == ("end", None)


@pytest.mark.parametrize("last", ["-1", "x", "1.5", "9999999999", ""])
def test_a_last_event_that_never_was_is_refused(client: TestClient, db: Database, last: str) -> None:
    answer = client.get(f"/jobs/{ended(db, 1).id}/stream", headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_error")


def test_a_stream_of_no_job_is_not_found(client: TestClient) -> None:
    assert client.get(f"/jobs/{'0' * 24}/stream").status_code == 404


def test_a_long_history_comes_whole(client: TestClient, db: Database) -> None:
    rows = [name for kind, name in stream(client, ended(db, 1203)) if kind == "metrics"]
    assert rows == [str(seq) for seq in range(1, 1204)]


def test_who_follows_hears_of_rows_as_they_come(client: TestClient, db: Database) -> None:
    job = running(db, epochs=4)
    record(db, job, 1)
    before = client.app.state.feed.open  # type: ignore[attr-defined]  # what other tests have broken off
    with beside(lambda: stream(client, job)) as following:
        for epoch in (2, 3, 4):
            time.sleep(0.3)
            record(db, job, epoch)
        finish(db, job, Outcome.SUCCEEDED)
        found = following.result(10)
    assert [name for kind, name in found if kind == "metrics"] == ["1", "2", "3", "4"]
    assert found[-1] == ("end", None)
    _until(lambda: client.app.state.feed.open <= before)  # type: ignore[attr-defined]


def test_more_rows_than_are_remembered_all_come(client: TestClient, db: Database) -> None:
    job = running(db, epochs=600)
    record(db, job, 1)
    before = client.app.state.feed.open  # type: ignore[attr-defined]
    with beside(lambda: stream(client, job)) as following:
        _until(lambda: client.app.state.feed.open > before)  # type: ignore[attr-defined]
        time.sleep(0.6)
        with db.write() as session:  # all between two looks
            row = session.execute(select(Epoch).where(col(Epoch.job_id) == job.id)).scalar_one().model_dump()
            session.execute(insert(Epoch), [row | {"epoch": each, "seq": each} for each in range(2, 601)])
            session.execute(update(Job).where(col(Job.id) == job.id).values(last_seq=600))
        time.sleep(0.6)
        finish(db, job, Outcome.SUCCEEDED)
        found = following.result(20)
    assert [name for kind, name in found if kind == "metrics"] == [str(seq) for seq in range(1, 601)]


def test_a_job_that_goes_on_from_an_older_checkpoint_repeats_no_seq(client: TestClient, db: Database) -> None:
    job = running(db, epochs=3)
    record(db, job, 1)
    record(db, job, 2)
    with beside(lambda: stream(client, job)) as following:
        time.sleep(0.5)
        finish(db, job, Outcome.KILLED)
        again = claim(db)
        records.record_start(db, job.id, again.attempt, {})  # from the beginning
        for epoch in (1, 2, 3):
            record(db, again, epoch)
        finish(db, again, Outcome.SUCCEEDED)
        found = following.result(10)
    assert [name for kind, name in found if kind == "metrics"] == ["1", "2", "3", "4", "5"]


def test_the_stream_of_a_job_that_is_deleted_ends(client: TestClient, db: Database) -> None:
    job = running(db)
    control.pause(db, job.id)
    finish(db, job, Outcome.RELEASED)
    with beside(lambda: stream(client, job)) as following:
        time.sleep(0.5)
        with db.write() as session:
            session.delete(session.get_one(Job, job.id))
        assert ("end", None) not in following.result(10)


def test_only_so_many_follow_at_once(serve: Serve, db: Database) -> None:
    client, job = serve(max_streams=1), running(db)
    before = client.app.state.feed.open  # type: ignore[attr-defined]
    with beside(lambda: stream(client, job)) as following:
        _until(lambda: client.app.state.feed.open > before)  # type: ignore[attr-defined]
        for path in ("stream", "metrics?wait=5"):
            answer = client.get(f"/jobs/{job.id}/{path}")
            assert (answer.status_code, answer.json()["code"]) == (503, "too_many_streams")
            assert int(answer.headers["Retry-After"]) > 0
        assert client.get(f"/jobs/{job.id}/metrics").status_code == 200
        finish(db, job, Outcome.SUCCEEDED)
        assert following.result(10)[-1] == ("end", None)
    assert stream(client, job)[-1] == ("end", None)


def test_a_long_poll_waits_for_the_next_row(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    with beside(lambda: client.get(f"/jobs/{job.id}/metrics?since=1&wait=20").json()) as polling:
        time.sleep(0.4)
        assert not polling.done()
        record(db, job, 2)
        page = polling.result(10)
    assert ([row["seq"] for row in page["data"]], page["next_since"], page["terminal"]) == ([2], 2, False)


def test_a_long_poll_waits_for_a_new_row_also_behind_rows_that_were_forgotten(client: TestClient, db: Database) -> None:
    job = running(db, epochs=3)
    for epoch in (1, 2):
        record(db, job, epoch)
    finish(db, job, Outcome.KILLED)
    again = claim(db)
    records.record_start(db, job.id, again.attempt, {}, Resumed(epoch=1, batch=0, differences=[]))
    started = time.monotonic()
    assert client.get(f"/jobs/{job.id}/metrics?since=1&wait=0.6").json()["data"] == []
    assert time.monotonic() - started >= 0.6
    with beside(lambda: client.get(f"/jobs/{job.id}/metrics?since=1&wait=20").json()) as polling:
        time.sleep(0.5)
        assert not polling.done()
        record(db, again, 2)
        assert [row["seq"] for row in polling.result(10)["data"]] == [3]


def test_a_row_that_comes_before_a_long_poll_follows_is_not_missed(
    client: TestClient, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(db, epochs=3)
    follow = Feed.follow

    def late(feed: Feed, job_id: str) -> Any:
        record(db, job, 1)
        return follow(feed, job_id)

    monkeypatch.setattr(Feed, "follow", late)
    started = time.monotonic()
    page = client.get(f"/jobs/{job.id}/metrics?wait=20").json()
    assert [row["seq"] for row in page["data"]] == [1]
    assert time.monotonic() - started < 10


def test_a_long_poll_ends_with_the_job(client: TestClient, db: Database) -> None:
    job = running(db)
    with beside(lambda: client.get(f"/jobs/{job.id}/metrics?wait=20").json()) as polling:
        time.sleep(0.3)
        finish(db, job, Outcome.SUCCEEDED)
        assert polling.result(10)["terminal"] is True


def test_a_long_poll_ends_when_its_time_is_up(client: TestClient, db: Database) -> None:
    job = running(db)
    started = time.monotonic()
    assert client.get(f"/jobs/{job.id}/metrics?wait=0.3").json()["data"] == []
    assert 0.3 <= time.monotonic() - started < 10


def test_what_is_there_is_not_waited_for(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    assert len(client.get(f"/jobs/{job.id}/metrics?wait=60").json()["data"]) == 1


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "x"])
def test_nobody_waits_for_ever(client: TestClient, db: Database, wait: str) -> None:
    answer = client.get(f"/jobs/{running(db).id}/metrics?wait={wait}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "?wait")


def test_what_has_not_changed_is_not_sent_again(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    first = client.get(f"/jobs/{job.id}/metrics")
    tag = first.headers["ETag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}"):
        again = client.get(f"/jobs/{job.id}/metrics", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    record(db, job, 2)
    changed = client.get(f"/jobs/{job.id}/metrics", headers={"If-None-Match": tag})
    assert (changed.status_code, len(changed.json()["data"])) == (200, 2)


def test_a_poller_is_told_when_to_come_again_until_the_end(client: TestClient, db: Database) -> None:
    job = running(db)
    assert client.get(f"/jobs/{job.id}/metrics").headers["Retry-After"] == "1"
    record(db, job, 1, train_seconds=6.5, test_seconds=1.0)
    assert client.get(f"/jobs/{job.id}/metrics").headers["Retry-After"] == "8"
    finish(db, job, Outcome.SUCCEEDED)
    assert "Retry-After" not in client.get(f"/jobs/{job.id}/metrics").headers


def test_all_who_follow_are_served_by_one_question_at_a_time(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = running(db)
    asked: list[int] = []
    plain = records.epochs

    def counted(*arguments: Any, **more: Any) -> Any:
        asked.append(1)
        return plain(*arguments, **more)

    monkeypatch.setattr(records, "epochs", counted)

    async def one(feed: Feed, ready: asyncio.Barrier) -> list[int]:
        with feed.follow(job.id) as follower:
            mark = await follower.change(None, 5)
            await ready.wait()
            assert mark is not None
            found: list[int] = []
            while len(found) < 3:
                mark = await follower.change(mark, 5) or mark
                found += [row.seq for row in await follower.news(found[-1] if found else 0, 500)]
            return found

    async def work() -> list[list[int]]:
        feed, ready = Feed(db, 1000), asyncio.Barrier(101)
        followers = [asyncio.create_task(one(feed, ready)) for _ in range(100)]
        await ready.wait()
        asked.clear()
        for epoch in (1, 2, 3):
            await asyncio.to_thread(record, db, job, epoch)
            await asyncio.sleep(0.4)
        return await asyncio.gather(*followers)

    assert asyncio.run(work()) == [[1, 2, 3]] * 100
    assert len(asked) == 3


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
