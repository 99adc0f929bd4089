"""How many jobs a second are taken in, each of them on the disk when it is answered (SQLite, `synchronous=FULL`)."""

import argparse
import asyncio
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from sqlalchemy import func, select

from tests.end_to_end.serving import epochd
from worker.jobs.tables import Job

from . import places
from .asking import Connection, Tally
from .tables import spread, table

_LONG_JOB = {"threads": 1, "epochs": 1000, "checkpoints": {"keep": "last"}}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--training", action="store_true", help="while a job trains in a worker")


def run(console: Console, scratch: Path, arguments: argparse.Namespace) -> bool:
    db = places.database(scratch)
    fsyncs = places.fsync_seconds(scratch)
    with _serving(scratch, training=arguments.training) as (url, others):
        tally, seconds = asyncio.run(_submit(url, arguments.connections, arguments.seconds))
    fsyncs += places.fsync_seconds(scratch)
    with db.read() as session:
        rows = session.execute(select(func.count()).select_from(Job)).scalar_one() - others
    db.close()
    beside = " while a job trains" if arguments.training else ""
    made = table(
        f"POST /jobs, {arguments.connections} connections, {seconds:.0f} s{beside}",
        "", "per second", "p50 ms", "p99 ms", "most ms", "errors", "201", "rows",
    )  # fmt: skip
    created = len(tally.seconds)
    rate = f"{created / seconds:,.0f}"
    made.add_row("submit", rate, *spread(tally.seconds).cells, str(tally.errors), str(created), str(rows))
    made.add_row("the disk's fsync of 4 KiB", "", *spread(fsyncs).cells)
    console.print(made, tally.last_error)
    return not tally.errors and rows == created


@contextmanager
def _serving(data_dir: Path, *, training: bool) -> Iterator[tuple[str, int]]:
    """An address, and how many jobs there are already. None of those that come is begun."""
    if not training:
        with places.service(data_dir) as service:
            yield service.url, 0
        return
    with epochd(data_dir, dict(places.UNLIMITED) | {"EPOCHD_SLOTS": "1"}) as server:
        server.wait(server.submit(**_LONG_JOB), lambda job: job["progress"]["batch"] > 0)
        yield server.url, 1


async def _submit(url: str, connections: int, seconds: float) -> tuple[Tally, float]:
    """Also how long it took until the last one was answered."""
    tally, numbers, started = Tally(), itertools.count(), time.perf_counter()

    async def one() -> None:
        connection = Connection(url)
        while time.perf_counter() - started < seconds:
            await connection.tallied(tally, "POST", "/jobs", b'{"seed": %d}' % next(numbers))
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return tally, time.perf_counter() - started
