"""Whether a long history makes anything slow: a full database beside a nearly empty one, and SQLite's plans."""

import argparse
import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from sqlalchemy import Engine, event

from service.whole import whole
from worker.jobs import following, listing, queue
from worker.jobs.db import Database
from worker.jobs.listing import Filter
from worker.jobs.states import Status

from . import places
from .asking import Connection, Tally
from .filling import LABEL, RARE_LABEL, Filled, fill
from .tables import spread, table

_FEW_JOBS: Final = 40
_ROUNDS: Final = 2
_PAGE: Final = 20
Plan = tuple[str, str, list[str]]  # what asked, the statement, and how it is looked up


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of epochs")
    parser.add_argument("--requests", type=int, default=500, help="of each kind, in each of two rounds")


def run(console: Console, scratch: Path, arguments: argparse.Namespace) -> bool:
    full, empty = places.database(scratch / "full"), places.database(scratch / "empty")
    filled = [fill(full, arguments.jobs, arguments.rows), fill(empty, _FEW_JOBS, 200)]
    console.print(f"filled: {arguments.jobs:,} jobs, {filled[0].rows:,} rows in {filled[0].seconds:.0f} s", style="dim")
    plans = list(_plans(full, filled[0]))
    full.close()
    empty.close()
    with places.service(scratch / "full") as large, places.service(scratch / "empty") as small:
        urls = [large.url, small.url]
        found = asyncio.run(_compare(urls, filled, arguments.requests))
    console.print(_compared(found, arguments), "", _looked_up(plans))
    scans = [each for each in plans if _scans(each)]
    for name, statement, plan in scans:
        console.print(f"{name} looks at a whole table: {'; '.join(plan)}: {statement}")
    errors = [tally.last_error for pair in found.values() for tally in pair if tally.errors]
    console.print(*errors, sep="\n")
    return not (scans or errors)


def _paths(filled: Filled) -> dict[str, str]:
    return {
        "list": "/jobs",
        "list, far behind": f"/jobs?after={filled.middle}",
        "list by status": "/jobs?status=succeeded",
        "list by rare status": "/jobs?status=paused",
        "list by label": f"/jobs?label.{LABEL[0]}={LABEL[1]}",
        "list by rare label": f"/jobs?label.{RARE_LABEL[0]}={RARE_LABEL[1]}",
        "list by status and label": f"/jobs?status=succeeded&label.{LABEL[0]}={LABEL[1]}",
        "detail": f"/jobs/{filled.long}",
        "detail of a queued job": f"/jobs/{filled.queued}",
        "metrics, 200 rows": f"/jobs/{filled.long}/metrics",
        "metrics since": f"/jobs/{filled.long}/metrics?since=199",
    }


def _asked(db: Database, filled: Filled) -> dict[str, Callable[[], object]]:
    """What the service does for each of them."""

    def jobs(wanted: Filter = listing.EVERY, after: str | None = None) -> Callable[[], object]:
        return lambda: listing.jobs(db, wanted, after=after, limit=_PAGE)

    return {
        "list": jobs(),
        "list, far behind": jobs(after=filled.middle),
        "list by status": jobs(Filter(Status.SUCCEEDED)),
        "list by rare status": jobs(Filter(Status.PAUSED)),
        "list by label": jobs(Filter(labels=(LABEL,))),
        "list by rare label": jobs(Filter(labels=(RARE_LABEL,))),
        "list by status and label": jobs(Filter(Status.SUCCEEDED, (LABEL,))),
        "detail": lambda: whole(db, queue.get(db, filled.long)),
        "detail of a queued job": lambda: whole(db, queue.get(db, filled.queued)),
        "metrics, 200 rows": lambda: following.page(db, filled.long, limit=1000),
        "metrics since": lambda: following.page(db, filled.long, since=199, limit=1000),
        "feed": lambda: following.marks(db, [filled.long, filled.queued]),
    }


async def _compare(urls: list[str], filled: list[Filled], requests: int) -> dict[str, list[Tally]]:
    """A B A B: the full one and the empty one take turns at each kind."""
    connections = [Connection(url) for url in urls]
    paths = [_paths(each) for each in filled]
    found = {name: [Tally(), Tally()] for name in paths[0]}
    for _ in range(_ROUNDS):
        for name, tallies in found.items():
            for connection, path, tally in zip(connections, paths, tallies, strict=True):
                await connection.ask("GET", path[name])  # to get warm
                for _ in range(requests):
                    await connection.tallied(tally, "GET", path[name])
    for connection in connections:
        connection.close()
    return found


def _compared(found: dict[str, list[Tally]], arguments: argparse.Namespace) -> Any:
    made = table(
        f"{arguments.jobs:,} jobs and {arguments.rows:,} rows beside {_FEW_JOBS} jobs and 200 rows, one connection",
        "GET", "full p50 ms", "p99 ms", "most ms", "empty p50 ms", "p99 ms", "most ms", "p50 ratio", "p99 ratio",
    )  # fmt: skip
    for name, (full, empty) in found.items():
        large, small = spread(full.seconds), spread(empty.seconds)
        ratios = (f"{large.p50 / small.p50:.2f}", f"{large.p99 / small.p99:.2f}")
        made.add_row(name, *large.cells, *small.cells, *ratios)
    return made


def _plans(db: Database, filled: Filled) -> Iterator[Plan]:
    for name, ask in _asked(db, filled).items():
        with _statements(db) as statements:
            ask()
        for statement, parameters in statements:
            with db.read() as session:
                rows = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            yield name, statement, [row[3] for row in rows]


@contextmanager
def _statements(db: Database) -> Iterator[list[tuple[str, Any]]]:
    engine: Engine = db._engine  # there is no other way to see what is asked
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT"):
            found.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


def _looked_up(plans: list[Plan]) -> Any:
    made = table("EXPLAIN QUERY PLAN, in the full database", "what", "of", "how")
    for name, statement, plan in plans:
        tables = re.findall(r"FROM (\w+)", statement)
        made.add_row(name, ", ".join(dict.fromkeys(tables)), "\n".join(plan))
    return made


def _scans(plan: Plan) -> bool:
    """A scan of an index in the list's own order ends with the page, where nothing is left out."""
    name, _, steps = plan
    scans = [step for step in steps if step.startswith("SCAN")]
    return any(" USING " not in step or name != "list" for step in scans)
