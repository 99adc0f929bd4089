"""How far sinks have got: a job is behind until everything is written, whatever happens to its rows meanwhile."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import event, select

from tests.worker.jobs.making import claim, finish, job_with_status, progress, record, running
from worker.jobs import control, queue, records, sinks, submitting
from worker.jobs.db import Database
from worker.jobs.records import Resumed
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, SinkKind, Status
from worker.jobs.tables import Job, SinkRow

CSV = SinkKind.CSV


def behind(db: Database, since: datetime | None = None) -> list[str]:
    """Found in both ways, or in neither."""
    everything = list(sinks.backlog(db, CSV))
    assert set(sinks.under_way(db, CSV, since)[0]) <= set(everything)
    return everything


def write(db: Database, job_id: str) -> bool:
    """As a sink that works; whether the job is done."""
    found = sinks.look(db, CSV, job_id)
    assert found is not None
    return sinks.record(db, found.job, CSV, found.newest)


def epochs(db: Database, job: Job, **more: Any) -> list[tuple[int, int]]:
    return [(row.seq, row.epoch) for rows in sinks.pages(db, job.id, **more) for row in rows]


def test_a_job_is_behind_from_its_start_and_after_each_epoch_until_it_is_written(db: Database) -> None:
    job = running(db)
    assert behind(db) == [job.id] == sinks.under_way(db, CSV, None)[0]
    assert write(db, job.id) is False
    assert behind(db) == []
    for epoch in (1, 2):
        record(db, job, epoch)
        assert behind(db) == [job.id] == sinks.under_way(db, CSV, None)[0]
        assert write(db, job.id) is False
        assert behind(db) == []
    assert list(sinks.backlog(db, SinkKind.MLFLOW)) == [job.id]  # of each sink by itself


def test_a_job_that_has_ended_is_behind_until_the_sink_knows(db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    write(db, job.id)
    _, since = sinks.under_way(db, CSV, None)
    finish(db, job, Outcome.SUCCEEDED)
    assert sinks.under_way(db, CSV, None)[0] == []  # the first look leaves it to the backlog
    assert behind(db) == [job.id] == sinks.under_way(db, CSV, since)[0]
    assert write(db, job.id) is True
    assert behind(db, since) == []


@pytest.mark.parametrize("status", [Status.QUEUED, Status.PAUSED])
def test_a_job_that_waits_and_has_no_rows_is_nothing_to_write(db: Database, status: Status) -> None:
    job = submitting.enqueue(db, Spec())
    if status is Status.PAUSED:
        control.pause(db, job.id)
    assert behind(db) == []
    control.cancel(db, job.id)
    assert behind(db) == [job.id]
    assert write(db, job.id) is True


def test_epochs_that_are_forgotten_or_recorded_again_are_noticed(db: Database) -> None:
    job = running(db)
    for epoch in (1, 2, 3):
        record(db, job, epoch)
    write(db, job.id)
    finish(db, job, Outcome.RELEASED)
    again = claim(db)
    resumed = Resumed(epoch=1, batch=0, differences=[])
    records.record_start(db, job.id, again.attempt, {}, resumed)  # its checkpoints of 2 and 3 are lost
    assert behind(db) == [job.id]
    for epoch in (2, 3):
        record(db, again, epoch)
    assert behind(db) == [job.id]
    assert epochs(db, job, until=100) == [(1, 1), (4, 2), (5, 3)]


def test_a_job_that_goes_on_after_its_end_is_behind_again(db: Database) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    write(db, job.id)
    control.extend(db, job.id, 1)
    assert behind(db) == [job.id]
    assert write(db, job.id) is False  # not done any more


def test_a_job_that_goes_on_while_its_end_is_written_is_not_done(db: Database) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    found = sinks.look(db, CSV, job.id)
    assert found is not None
    control.extend(db, job.id, 1)
    assert sinks.record(db, found.job, CSV, found.newest) is False
    record(db, claim(db), 2)
    assert behind(db) == [job.id]


def test_pages_end_where_they_were_told_to_and_hold_no_epoch_twice(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "ROWS", 2)
    job = running(db, epochs=9)
    for epoch in range(1, 7):
        record(db, job, epoch)
    assert [len(rows) for rows in sinks.pages(db, job.id, until=5)] == [2, 2, 1]
    assert epochs(db, job, until=6, since=3) == [(4, 4), (5, 5), (6, 6)]
    pages = sinks.pages(db, job.id, until=6)
    read = [*next(pages), *next(pages)]
    finish(db, job, Outcome.RELEASED)
    again = claim(db)
    records.record_start(db, job.id, again.attempt, {}, Resumed(epoch=2, batch=0, differences=[]))
    for epoch in range(3, 8):
        record(db, again, epoch)
    read += [row for rows in pages for row in rows]
    assert [row.epoch for row in read] == [1, 2, 3, 4]


def test_of_a_job_that_is_gone_nothing_is_kept(db: Database) -> None:
    job = job_with_status(db, Status.SUCCEEDED)
    write(db, job.id)
    found = sinks.look(db, CSV, job.id)
    assert found is not None
    control.delete(db, job.id)
    assert sinks.look(db, CSV, job.id) is None
    sinks.begin(db, job.id, CSV)
    assert sinks.record(db, found.job, CSV, 0) is True
    with db.read() as session:
        assert session.execute(select(SinkRow)).all() == []


def test_a_sink_that_was_begun_before_a_kill_is_known_to_the_next_process(db: Database) -> None:
    job = job_with_status(db, Status.FAILED)
    sinks.begin(db, job.id, CSV)
    found = sinks.look(db, CSV, job.id)
    assert found is not None
    assert found.known is not None
    assert behind(db) == [job.id]
    assert sinks.record(db, found.job, CSV, 0, "run") is True
    assert behind(db) == []
    sinks.forget(db, CSV)
    assert behind(db) == [job.id]


def test_the_backlog_is_read_in_pages(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_JOBS", 2)
    jobs = [job_with_status(db, Status.SUCCEEDED).id for _ in range(5)] + [running(db).id]
    assert set(behind(db)) == set(jobs)
    assert len(behind(db)) == 6
    for job_id in sinks.backlog(db, CSV):  # written while it is read
        write(db, job_id)
    assert behind(db) == []


def test_a_look_reads_no_rows_of_jobs_that_are_done(db: Database) -> None:
    """There may be very many of them, and each is as wide as its spec: indexes tell what there is to do."""
    if not db.is_sqlite:
        pytest.skip("PostgreSQL plans by the sizes of tables")
    plans: list[str] = []
    job = job_with_status(db, Status.SUCCEEDED)
    write(db, job.id)
    _, since = sinks.under_way(db, CSV, None)

    def explain(_connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT"):
            cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in cursor.fetchall())

    with db.read() as session:
        engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", explain)
    try:
        sinks.under_way(db, CSV, since)
        list(sinks.backlog(db, CSV))
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    of_jobs = [plan for plan in plans if " jobs " in plan]
    assert len(of_jobs) >= 10
    assert all("COVERING INDEX" in plan for plan in of_jobs), of_jobs
    assert not [plan for plan in plans if plan.startswith("SCAN")]


def test_progress_alone_is_nothing_to_write(db: Database) -> None:
    job = running(db)
    write(db, job.id)
    records.record_progress(db, job.id, job.attempt, progress(1))
    assert queue.get(db, job.id).status == Status.RUNNING
    assert behind(db) == []
