"""Lists of jobs: pages that neither skip nor repeat while jobs arrive, and what may be asked for."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import event

from worker.jobs import control, listing, submitting
from worker.jobs.db import Database
from worker.jobs.listing import Filter
from worker.jobs.owners import Caller
from worker.jobs.spec import Spec
from worker.jobs.states import Status
from worker.jobs.submitting import Origin

ANN, BOB = Caller("ann", sees_all=False), Caller("bob", sees_all=False)


def submit(db: Database, caller: Caller = ANN, **labels: str) -> str:
    return submitting.enqueue(db, Spec(labels=labels), Origin(caller)).id


def ids(db: Database, wanted: Filter = listing.EVERY, caller: Caller = ANN) -> list[str]:
    return [job.id for job in listing.jobs(db, wanted, limit=100, caller=caller)[0]]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pages_hold_every_job_once_while_others_arrive_and_go(db: Database, size: int) -> None:
    there = [submit(db) for _ in range(7)]
    seen: list[str] = []
    after, has_more = None, True
    while has_more:
        page, has_more = listing.jobs(db, after=after, limit=size, caller=ANN)
        seen += [job.id for job in page]
        after = page[-1].id if page else None
        submit(db)
        if len(seen) == 2:  # one that was shown goes
            control.cancel(db, seen[-1])
            control.delete(db, seen[-1])
    assert seen == there[::-1]


def test_who_asks_sees_own_jobs_and_an_admin_everybodys(db: Database) -> None:
    mine, other = submit(db), submit(db, BOB)
    assert ids(db) == [mine]
    assert ids(db, caller=BOB) == [other]
    assert ids(db, caller=Caller("", sees_all=True)) == [other, mine]


def test_labels_narrow_down_and_several_do_together(db: Database) -> None:
    red, blue = submit(db, team="red", size="l"), submit(db, team="blue", size="l")
    assert ids(db, Filter(labels=(("team", "red"),))) == [red]
    assert ids(db, Filter(labels=(("size", "l"),))) == [blue, red]
    assert ids(db, Filter(labels=(("size", "l"), ("team", "blue")))) == [blue]
    assert ids(db, Filter(labels=(("team", "green"),))) == []
    assert ids(db, Filter(labels=(("team' OR '1'='1", "red"),))) == []


def test_status_and_time_narrow_down(db: Database) -> None:
    old, new = submit(db), submit(db)
    control.cancel(db, old)
    assert ids(db, Filter(Status.CANCELLED)) == [old]
    moment = listing.jobs(db, caller=ANN)[0][1].created_at
    assert ids(db, Filter(created_after=moment)) == [new]
    assert ids(db, Filter(created_after=moment - timedelta(microseconds=1))) == [new, old]
    assert ids(db, Filter(created_after=datetime.now(UTC) + timedelta(days=400))) == []
    for hours in (-14, 0, 14):
        zone = timezone(timedelta(hours=hours))
        assert ids(db, Filter(created_after=datetime(1, 1, 1, tzinfo=zone))) == [new, old]
        assert ids(db, Filter(created_after=datetime.max.replace(tzinfo=zone))) == []


def test_no_list_looks_at_every_job(db: Database) -> None:
    if not db.is_sqlite:
        pytest.skip("PostgreSQL plans by the number of rows")
    wanted = (
        Filter(),
        Filter(Status.QUEUED),
        Filter(labels=(("team", "red"),)),
        Filter(created_after=datetime.now(UTC)),
    )
    statements: list[tuple[str, Any]] = []
    event.listen(db._engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    for caller in (ANN, Caller("", sees_all=True)):
        for each in wanted:
            listing.jobs(db, each, after="f" * 24, caller=caller)
    asked = [each for each in statements if each[0].startswith("SELECT")]
    assert len(asked) == 2 * len(wanted)
    with db.read() as session:
        raw = session.connection().connection.dbapi_connection
        assert raw is not None
        for statement, values in asked:
            plan = [row[3] for row in raw.cursor().execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()]
            assert not [step for step in plan if step.startswith("SCAN")], (statement, plan)
