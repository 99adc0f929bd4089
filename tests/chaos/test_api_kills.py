"""SIGKILL of the service, again and again, under clients that submit, page, poll and follow: none is told a lie.

`API_KILLS` (5 unless told otherwise) and `SEED` come from the environment.
"""

import itertools
import json
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx2
import pytest
from sqlalchemy import func, select
from sqlmodel import col

from tests.chaos.workplace import assert_nothing_is_wrong, database, patiently, small_data_dir
from tests.end_to_end.serving import Epochd, epochd
from worker.jobs.db import Database
from worker.jobs.tables import Job, Label, Transition

KILLS = int(os.environ.get("API_KILLS", "5"))
SEED = int(os.environ.get("SEED", "1"))
SUBMITTERS, PAGERS = 4, 2
PACE_SECONDS = 0.2
# Longer than a service must have lived to be started again at once: else `epochd serve` waits longer and longer.
LONGEST_LIFE_SECONDS = 7.0
MANY = "1000000"
SETTINGS = {"EPOCHD_SLOTS": "1", "EPOCHD_MAX_QUEUED_JOBS": MANY, "EPOCHD_MAX_QUEUED_JOBS_PER_KEY": MANY}
EPOCHS: Final = 40
KILLED_AT: Final = (4, 14, 24)
LONG_JOB: dict[str, Any] = {
    "threads": 1,
    "batch_size": 4,
    "model": {"hidden": [512, 512]},
    "epochs": EPOCHS,
    "checkpoints": {"keep": "last"},
}
Rows = list[dict[str, Any]]
_log = logging.getLogger(__name__)


class Ledger:
    """What the clients were told."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.ids: dict[str, str] = {}  # by idempotency key; the clients share it, and a dict is copied at once
        self.repeated = 0  # requests that were sent again

    def note(self, key: str, job_id: str) -> None:
        assert self.ids.setdefault(key, job_id) == job_id, f"{key} made two jobs"


def insist(ledger: Ledger, http: httpx2.Client, key: str, spec: dict[str, Any]) -> None:
    """Until it is answered."""
    deadline = time.monotonic() + 90
    while True:
        with suppress(httpx2.TransportError):
            answer = http.post("/jobs", json=spec, headers={"Idempotency-Key": key})
            if answer.status_code == 201:
                ledger.note(key, answer.json()["id"])
                return
            assert answer.status_code == 503, answer.text
        assert time.monotonic() < deadline, key
        ledger.repeated += 1
        time.sleep(0.02)


def submit(ledger: Ledger, url: str, number: int) -> None:
    rng = random.Random(f"{SEED} {number}")
    with httpx2.Client(base_url=url, timeout=30) as http:
        for count in itertools.count():
            if ledger.over.is_set():
                return
            key = f"client-{number}-{count}"
            spec = {"threads": 1, "epochs": 1, "seed": count, "labels": {"client": str(number)}}
            insist(ledger, http, key, spec)
            if rng.random() < 0.1:  # as if the answer had not come
                insist(ledger, http, key, spec)
            time.sleep(rng.uniform(0, PACE_SECONDS))


def page(ledger: Ledger, url: str) -> int:
    """Walks through the whole list again and again. Returns how often."""
    with httpx2.Client(base_url=url, timeout=30) as http:
        for walks in itertools.count():
            if ledger.over.is_set():
                return walks
            known = set(ledger.ids.copy().values())
            found = list(walk(http))
            assert all(newer > older for newer, older in itertools.pairwise(found)), "a page repeats or mixes jobs"
            assert known <= set(found), "a job that a client knows is missing"
            time.sleep(0.05)
    raise AssertionError


def walk(http: httpx2.Client) -> Iterator[str]:
    """The ids, newest first."""
    after: dict[str, str] = {}
    while True:
        body = patiently(lambda: http.get("/jobs", params={"limit": "100"} | after).raise_for_status().json())  # noqa: B023
        yield from (job["id"] for job in body["data"])
        if not body["has_more"]:
            return
        after = {"after": body["next_cursor"]}


def kill_service(server: Epochd) -> bool:
    """The service, and not its parent; False in the moment when there is none."""
    with suppress(ValueError, ProcessLookupError):
        os.kill(server.pid_of("service"), signal.SIGKILL)
        return True
    return False


def kill_at_random(server: Epochd, clients: list["Future[Any]"]) -> int:
    """At any instant, and half of the time when a job is stored and its client does not know it yet."""
    rng, killed = random.Random(SEED), 0
    with database(server.data_dir) as db:
        while killed < KILLS and not any(client.done() for client in clients):  # one that is done has found something
            time.sleep(rng.uniform(0, LONGEST_LIFE_SECONDS))
            if rng.random() < 0.5:
                wait_for_job(db)
            killed += kill_service(server)
    return killed


def wait_for_job(db: Database) -> None:
    newest, deadline = newest_job(db), time.monotonic() + 10
    while newest_job(db) == newest and time.monotonic() < deadline:
        time.sleep(0.001)


def newest_job(db: Database) -> str | None:
    with db.read() as session:
        newest: str | None = session.execute(select(func.max(Job.id))).scalar_one()
        return newest


def test_no_job_is_lost_doubled_or_half_written_whenever_the_service_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data_dir, ledger = small_data_dir(tmp_path_factory.mktemp("killed")), Ledger()
    with epochd(data_dir, SETTINGS) as server, ThreadPoolExecutor(SUBMITTERS + PAGERS) as pool:
        pagers = [pool.submit(page, ledger, server.url) for _ in range(PAGERS)]
        clients: list[Future[Any]] = [pool.submit(submit, ledger, server.url, each) for each in range(SUBMITTERS)]
        try:
            killed = kill_at_random(server, [*clients, *pagers])
        finally:
            ledger.over.set()
        walks = [pager.result() for pager in pagers]
        for client in clients:
            client.result()
        with httpx2.Client(base_url=server.url, timeout=30) as http:
            assert set(walk(http)) == set(ledger.ids.values())
    assert killed == KILLS
    assert_whole(data_dir, ledger)
    assert_nothing_is_wrong(data_dir, [])
    _log.info("kills: %d, jobs: %d, sent again: %d, walks: %s", killed, len(ledger.ids), ledger.repeated, walks)


def assert_whole(data_dir: Path, ledger: Ledger) -> None:
    """One job for each key, the one that the client knows, with its first transition and its label."""
    with database(data_dir) as db, db.read() as session:
        jobs = {row.idempotency_key: row.id for row in session.execute(select(Job.idempotency_key, Job.id))}  # type: ignore[call-overload]
        assert session.execute(select(func.count()).select_from(Job)).scalar_one() == len(jobs)
        submitted = select(col(Transition.job_id)).where(col(Transition.seq) == 1, col(Transition.status) == "queued")
        with_transition = set(session.execute(submitted).scalars())
        with_label = set(session.execute(select(col(Label.job_id))).scalars())
    assert jobs == ledger.ids
    assert with_transition == with_label == set(jobs.values())


class Reader:
    """One who wants all rows of a job, and asks again when the service was killed under him."""

    def __init__(self, url: str, job_id: str) -> None:
        self._url, self._path = url, f"/jobs/{job_id}"
        self.rows: Rows = []
        self.interrupted = 0

    def poll(self) -> Rows:
        return self._ask(lambda since: {"since": since}, pause=0.1)

    def wait(self) -> Rows:
        return self._ask(lambda since: {"since": since, "wait": 10}, pause=0)

    def _ask(self, query: Callable[[int], dict[str, int]], pause: float) -> Rows:
        since, is_over = 0, False
        with httpx2.Client(base_url=self._url, timeout=30) as http:
            while not is_over:
                try:
                    body = http.get(f"{self._path}/metrics", params=query(since)).raise_for_status().json()
                except (httpx2.TransportError, httpx2.HTTPStatusError):
                    self.interrupted += 1
                    time.sleep(0.05)
                    continue
                self.rows += body["data"]
                since, is_over = body["next_since"], body["terminal"]
                time.sleep(pause)
        return self.rows

    def stream(self) -> Rows:
        with httpx2.Client(base_url=self._url, timeout=40) as http:
            while True:
                with suppress(httpx2.TransportError, httpx2.HTTPStatusError):
                    if self._follow(http):
                        return self.rows
                self.interrupted += 1
                time.sleep(0.05)

    def _follow(self, http: httpx2.Client) -> bool:
        """Goes on behind the last row. Whether the end came."""
        headers = {"Last-Event-ID": str(self.rows[-1]["seq"])} if self.rows else {}
        event: dict[str, str] = {}
        with http.stream("GET", f"{self._path}/stream", headers=headers) as answer:
            for line in answer.raise_for_status().iter_lines():
                name, _, value = line.partition(": ")
                if line:
                    event[name] = value
                    continue
                if event.get("event") == "end":
                    return True
                if event.get("event") == "metrics":
                    self.rows.append(json.loads(event["data"]))
                    assert event["id"] == str(self.rows[-1]["seq"])
                event = {}
        return False


def test_poll_and_stream_agree_through_restarts(tmp_path_factory: pytest.TempPathFactory) -> None:
    data_dir = small_data_dir(tmp_path_factory.mktemp("restarted"))
    with epochd(data_dir, SETTINGS) as server, ThreadPoolExecutor(3) as pool:
        job_id = server.submit(**LONG_JOB)
        poller, waiter, follower = readers = [Reader(server.url, job_id) for _ in range(3)]
        found = [pool.submit(read) for read in (poller.poll, waiter.wait, follower.stream)]
        for epoch in KILLED_AT:
            wait_for_row(follower, found[-1], epoch)
            assert kill_service(server)
        for each in found:
            each.result()
    assert [row["seq"] for row in poller.rows] == list(range(1, EPOCHS + 1))
    assert waiter.rows == poller.rows
    assert follower.rows == poller.rows
    assert all(reader.interrupted for reader in readers)
    assert follower.interrupted >= len(KILLED_AT)
    assert_nothing_is_wrong(data_dir, [job_id])


def wait_for_row(follower: Reader, following: "Future[Rows]", seq: int) -> None:
    """So it has a connection to lose."""
    deadline = time.monotonic() + 120
    while not follower.rows or follower.rows[-1]["seq"] < seq:
        assert not following.done(), "the job ended before all kills: its epochs are too short"
        assert time.monotonic() < deadline
        time.sleep(0.02)
