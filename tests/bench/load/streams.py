"""A thousand who follow one job: nothing that happens is lost on any of them, and others are answered meanwhile."""

import argparse
import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from tests.worker.jobs.making import finish, record, running
from worker.jobs.db import Database
from worker.jobs.states import Outcome
from worker.jobs.tables import Job

from . import places
from .asking import Connection, Tally
from .tables import spread, table

_LEASE_SECONDS = 86_400.0
_AT_ONCE = 50  # subscribers that connect
_LOOK_SECONDS = 0.1
_END_SECONDS = 30.0  # to hear of it


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--subscribers", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1, help="rows a second")


@dataclass
class _Watch:
    written: dict[int, float] = field(default_factory=dict)  # by seq: when the writing began
    delivered: list[float] = field(default_factory=list)  # seconds from there
    received: list[list[int]] = field(default_factory=list)  # of each subscriber
    ends: int = 0
    broken: list[str] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    looks: Tally = field(default_factory=Tally)

    @property
    def wrong(self) -> int:
        """Rows that did not come, came twice, or in another order."""
        wanted = sorted(self.written)
        return sum(len(set(wanted) ^ set(got)) + len(got) - len(set(got)) for got in self.received) + sum(
            got != sorted(got) for got in self.received
        )


def run(console: Console, scratch: Path, arguments: argparse.Namespace) -> bool:
    places.many_files()
    db = places.database(scratch)
    job = running(db, "stand-in", _LEASE_SECONDS, epochs=1000, checkpoints={"keep": "last"})
    watch = _Watch()
    with places.service(scratch) as service:
        empty = places.resident_bytes(service.pid)
        asyncio.run(_follow(db, job, service, arguments, watch))
    db.close()
    made = table(
        f"{arguments.subscribers} streams of one job, {len(watch.written)} rows, {arguments.rate:g} a second",
        "", "count", "p50 ms", "p99 ms", "most ms", "wrong or lost",
    )  # fmt: skip
    made.add_row("rows, write to receipt", str(len(watch.delivered)), *spread(watch.delivered).cells, str(watch.wrong))
    looks = watch.looks
    made.add_row("GET /jobs/{id}", str(len(looks.seconds)), *spread(looks.seconds).cells, str(looks.errors))
    most = max(watch.resident)
    memory = f"resident: {empty / 1e6:,.0f} MB before, {most / 1e6:,.0f} MB at most"
    missed = arguments.subscribers - watch.ends
    console.print(made, f"{memory}; streams without an end: {missed}", *watch.broken[:3], looks.last_error, sep="\n")
    return not (watch.wrong or missed or looks.errors)


async def _follow(
    db: Database, job: Job, service: places.Service, arguments: argparse.Namespace, watch: _Watch
) -> None:
    gate, all_there = asyncio.Semaphore(_AT_ONCE), asyncio.Semaphore(0)

    def there() -> None:
        gate.release()
        all_there.release()

    followers = []
    for _ in range(arguments.subscribers):
        await gate.acquire()
        followers.append(asyncio.create_task(_subscribe(service.url, job.id, watch, there)))
    for _ in followers:
        await all_there.acquire()
    looking = asyncio.create_task(_look(service, job.id, watch))
    count = math.ceil(arguments.seconds * arguments.rate)
    await asyncio.to_thread(_write, db, job, count, 1 / arguments.rate, watch)
    await asyncio.wait(followers, timeout=_END_SECONDS)
    for task in (looking, *followers):
        task.cancel()
    await asyncio.gather(looking, *followers, return_exceptions=True)


async def _subscribe(url: str, job_id: str, watch: _Watch, there: Callable[[], None]) -> None:
    got: list[int] = []
    watch.received.append(got)
    is_there = False
    try:
        async for event in Connection(url).events(f"/jobs/{job_id}/stream"):
            if not is_there:
                is_there = True
                there()
            if event.get("event") == "metrics":
                seq = int(event["id"])
                got.append(seq)
                watch.delivered.append(time.perf_counter() - watch.written[seq])
            elif event.get("event") == "end":
                watch.ends += 1
    except OSError as error:
        watch.broken.append(f"a stream broke: {error}")
    finally:
        if not is_there:
            there()


def _write(db: Database, job: Job, count: int, pause: float, watch: _Watch) -> None:
    """As a worker would."""
    started = time.perf_counter()
    for number in range(1, count + 1):
        time.sleep(max(0.0, started + number * pause - time.perf_counter()))
        watch.written[number] = time.perf_counter()
        record(db, job, number)
    finish(db, job, Outcome.SUCCEEDED)


async def _look(service: places.Service, job_id: str, watch: _Watch) -> None:
    connection = Connection(service.url)
    while True:
        await connection.tallied(watch.looks, "GET", f"/jobs/{job_id}")
        with suppress(OSError):
            watch.resident.append(places.resident_bytes(service.pid))
        await asyncio.sleep(_LOOK_SECONDS)
