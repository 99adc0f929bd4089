"""What there is, counted: by questions that an index answers."""

from datetime import timedelta

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection

from tests.worker.jobs.making import claim, finish, job_with_status, progress, running
from worker.jobs import control, records, stock, submitting, workers
from worker.jobs.db import Database, now
from worker.jobs.spec import Spec
from worker.jobs.states import DeliveryStatus, Outcome, Status
from worker.jobs.tables import Delivery, Job, Worker


def test_an_empty_house_is_all_zeros(db: Database) -> None:
    found = stock.take(db)
    assert found.jobs == dict.fromkeys(Status, 0)
    assert found.datasets == {"uploaded": 0, "preparing": 0, "ready": 1, "invalid": 0, "deleted": 0}
    assert found.deliveries == {"pending": 0, "delivered": 0, "given_up": 0}
    assert (found.oldest_queued_seconds, found.samples_per_second, found.workers) == (0, 0, 0)
    assert found.heartbeat_age_seconds is None
    assert not found.open_jobs


def test_jobs_are_counted_by_status(db: Database) -> None:
    last = sorted(Status, key=lambda status: status is Status.QUEUED)  # or another one would be claimed for it
    made = {status: job_with_status(db, status).id for status in last}
    found = stock.take(db)
    assert found.jobs == dict.fromkeys(Status, 1)
    ended = {made[status] for status in (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED)}
    assert found.open_jobs == set(made.values()) - ended


def test_the_oldest_queued_job_says_how_old_the_queue_is(db: Database) -> None:
    for minutes in (3, 2):
        job = submitting.enqueue(db, Spec())
        with db.write() as session:
            session.get_one(Job, job.id).created_at -= timedelta(minutes=minutes)
    assert 180 <= stock.take(db).oldest_queued_seconds < 240
    claim(db)
    assert 120 <= stock.take(db).oldest_queued_seconds < 180


def test_the_speeds_of_what_runs_are_added_up(db: Database) -> None:
    for speed in (100.0, 50.5):
        job = running(db)
        records.record_progress(db, job.id, job.attempt, progress(samples_per_second=speed))
    ended = running(db)
    records.record_progress(db, ended.id, ended.attempt, progress(samples_per_second=1000.0))
    finish(db, ended, Outcome.SUCCEEDED)
    assert stock.take(db).samples_per_second == 150.5


def test_workers_are_counted_and_the_one_heard_last_says_when(db: Database) -> None:
    workers.register(db, "worker-1", "host")
    workers.register(db, "worker-2", "host")
    with db.write() as session:
        for worker, seconds in (("worker-1", 300), ("worker-2", 60)):
            session.get_one(Worker, worker).heartbeat_at -= timedelta(seconds=seconds)
    found = stock.take(db)
    assert found.workers == 2
    assert found.heartbeat_age_seconds is not None
    assert 60 <= found.heartbeat_age_seconds < 120


def test_deliveries_are_counted_by_status(db: Database) -> None:
    job = submitting.enqueue(db, Spec())
    with db.write() as session:
        at = now(session)
        for number, status in enumerate([DeliveryStatus.PENDING, *[DeliveryStatus.DELIVERED] * 2]):
            pending = status is DeliveryStatus.PENDING
            session.add(
                Delivery(
                    id=f"{number:024x}",
                    job_id=job.id,
                    hook=0,
                    event="job.succeeded",
                    payload={},
                    created_at=at,
                    status=status,
                    next_at=at if pending else None,
                )
            )
    assert stock.take(db).deliveries == {"pending": 1, "delivered": 2, "given_up": 0}


def test_of_the_jobs_asked_for_those_that_ended_say_how_and_how_long_they_took(db: Database) -> None:
    succeeded, failed, under_way, gone = running(db), running(db), running(db), running(db)
    with db.write() as session:
        for job, minutes in ((succeeded, 3), (failed, 10)):
            started_at = session.get_one(Job, job.id).started_at
            assert started_at is not None
            session.get_one(Job, job.id).started_at = started_at - timedelta(minutes=minutes)
    finish(db, succeeded, Outcome.SUCCEEDED)
    finish(db, failed, Outcome.FAILED)
    finish(db, gone, Outcome.SUCCEEDED)
    control.delete(db, gone.id)
    never_started = submitting.enqueue(db, Spec())
    control.cancel(db, never_started.id)
    asked = [each.id for each in (succeeded, failed, under_way, gone, never_started)]
    found = dict(stock.ended(db, asked))
    assert found.keys() == {"succeeded", "failed"}
    assert 180 <= found["succeeded"] < 240
    assert 600 <= found["failed"] < 660
    assert stock.ended(db, []) == []


def test_more_jobs_than_one_question_can_ask_for_are_found(db: Database) -> None:
    job = running(db)
    finish(db, job, Outcome.SUCCEEDED)
    others = [f"{number:024x}" for number in range(1200)]
    assert [status for status, _ in stock.ended(db, [*others, job.id])] == ["succeeded"]


@pytest.mark.parametrize("db", ["sqlite"], indirect=True)
def test_no_question_reads_a_table_from_end_to_end(db: Database) -> None:
    """Of those that grow: an index that holds the answer is read instead."""
    asked: list[tuple[str, object]] = []

    def note(_connection: Connection, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(db._engine, "before_cursor_execute", note)
    try:
        stock.take(db)
        stock.ended(db, ["0" * 24])
    finally:
        event.remove(db._engine, "before_cursor_execute", note)
    questions = [each for each in asked if each[0].startswith("SELECT")]
    assert len(questions) >= 7
    with db.read() as session:
        for statement, parameters in questions:
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)  # type: ignore[arg-type]
            for step in (row[-1] for row in plan):
                assert "INDEX" in step or "SCAN workers" in step, (statement, step)
