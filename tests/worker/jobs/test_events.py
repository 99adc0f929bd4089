"""What a training did by itself is told in order, and stays told."""

from datetime import UTC, datetime, timedelta

from tests.worker.jobs.making import claim, finish, running
from worker.jobs import records
from worker.jobs.db import Database
from worker.jobs.states import EventKind, Outcome


def test_events_are_told_in_order_across_attempts(db: Database) -> None:
    job = running(db)
    records.record_event(db, job.id, 1, 2, EventKind.MICRO_BATCH, "64 pictures at once did not fit; now 32 do.")
    records.record_event(db, job.id, 1, 2, EventKind.MICRO_BATCH, "32 pictures at once did not fit; now 16 do.")
    finish(db, job, Outcome.KILLED)
    claim(db)
    records.record_event(db, job.id, 2, 7, EventKind.STOPPED_EARLY, "test_loss has not got better for 5 epochs.")
    found = records.events(db, job.id)
    assert [(each.seq, each.attempt, each.epoch, each.kind) for each in found] == [
        (1, 1, 2, "micro_batch"),
        (2, 1, 2, "micro_batch"),
        (3, 2, 7, "stopped_early"),
    ]
    assert found[1].detail == "32 pictures at once did not fit; now 16 do."
    times = [each.at for each in found]
    assert times == sorted(times)
    assert abs(datetime.now(UTC) - times[0]) < timedelta(seconds=20)


def test_events_of_another_job_are_not_told(db: Database) -> None:
    job, other = running(db), running(db)
    records.record_event(db, other.id, 1, 1, EventKind.DIVERGED, "The loss became nan.")
    assert records.events(db, job.id) == []
    records.record_event(db, job.id, 1, 1, EventKind.DIVERGED, "The loss became inf.")
    assert [(each.seq, each.detail) for each in records.events(db, job.id)] == [(1, "The loss became inf.")]


def test_a_long_detail_is_cut(db: Database) -> None:
    job = running(db)
    records.record_event(db, job.id, 1, 1, EventKind.DIVERGED, "é" * 5000)
    assert [each.detail for each in records.events(db, job.id)] == ["é" * 300]
