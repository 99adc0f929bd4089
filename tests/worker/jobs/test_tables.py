"""What the database itself refuses, whoever writes: each named constraint, met by raw SQL."""

import pytest
from sqlalchemy import CheckConstraint, text
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel

from tests.worker.jobs.making import (
    everything,
    job_with_status,
    progress,
    record,
    report,
    result,
    running,
    saved,
    saved_steps,
)
from worker.jobs import queue, records, submitting
from worker.jobs.db import Database, now
from worker.jobs.ids import new_id
from worker.jobs.spec import Spec
from worker.jobs.states import EventKind, Outcome, Phase, Resume, SinkKind, Status
from worker.jobs.tables import Alias, Delivery, Job, Label, ParityRow, SinkRow

_TIME = "'2026-01-01 00:00:00.000000'"
VIOLATIONS = {
    "jobs_status_known": ["UPDATE jobs SET status = 'done'"],
    "jobs_phase_known": ["UPDATE jobs SET phase = 'thinking'"],
    "jobs_finished_at_iff_terminal": [
        f"UPDATE jobs SET finished_at = {_TIME}",
        f"UPDATE jobs SET status = 'paused', finished_at = {_TIME}",
        "UPDATE jobs SET status = 'succeeded'",
        "UPDATE jobs SET status = 'cancelled'",
    ],
    "jobs_worker_iff_owned": [
        f"UPDATE jobs SET worker_id = 'worker-1', lease_expires_at = {_TIME}",
        "UPDATE jobs SET status = 'running'",
        "UPDATE jobs SET status = 'pausing'",
        "UPDATE jobs SET status = 'cancelling'",
    ],
    "jobs_lease_iff_worker": [f"UPDATE jobs SET lease_expires_at = {_TIME}"],
    "jobs_trial_iff_sweep": ["UPDATE jobs SET trial = 1"],
    "datasets_status_known": ["UPDATE datasets SET status = 'done'"],
    "datasets_worker_iff_preparing": [
        f"UPDATE datasets SET worker_id = 'worker-1', lease_expires_at = {_TIME}",
        "UPDATE datasets SET status = 'preparing'",
    ],
    "datasets_lease_iff_worker": [f"UPDATE datasets SET lease_expires_at = {_TIME}"],
    "datasets_card_if_ready": ["UPDATE datasets SET card = NULL"],
    "datasets_error_iff_invalid": ["UPDATE datasets SET status = 'invalid'"],
    "attempts_outcome_known": [f"UPDATE attempts SET outcome = 'bored', ended_at = {_TIME}"],
    "attempts_ended_at_iff_outcome": [
        f"UPDATE attempts SET ended_at = {_TIME}",
        "UPDATE attempts SET outcome = 'killed'",
    ],
    "attempts_resume_known": ["UPDATE attempts SET resume = 'nearly'"],
    "aliases_previous_whole": [
        f"INSERT INTO aliases SELECT '', 'a', id, 1, 1, id, NULL, {_TIME}, {_TIME} FROM jobs",
        f"INSERT INTO aliases SELECT '', 'a', id, 1, 1, NULL, 1, {_TIME}, {_TIME} FROM jobs",
    ],
    "deliveries_status_known": [
        f"INSERT INTO deliveries SELECT 'a', id, 0, 'x', '{{}}', {_TIME}, 'lost', 0, NULL, NULL, NULL FROM jobs"
    ],
    "deliveries_next_at_iff_pending": [
        f"INSERT INTO deliveries SELECT 'a', id, 0, 'x', '{{}}', {_TIME}, 'pending', 0, NULL, NULL, NULL FROM jobs",
        f"INSERT INTO deliveries SELECT 'a', id, 0, 'x', '{{}}', {_TIME}, 'given_up', 0, {_TIME}, NULL, NULL FROM jobs",
    ],
    "parities_contents_or_error": [
        f"INSERT INTO parities SELECT id, 1, 'ab', {_TIME}, NULL, NULL FROM jobs",
        f"INSERT INTO parities SELECT id, 1, 'ab', {_TIME}, '{{}}', 'It was not.' FROM jobs",
    ],
    "sinks_kind_known": ["INSERT INTO sinks SELECT id, 'paper', 0, false, NULL FROM jobs"],
    "events_kind_known": [
        f"INSERT INTO events SELECT id, 1, {_TIME}, 1, 1, 'bored', 'It is.' FROM jobs",
    ],
}


_OF_A_JOB = (
    *("attempts", "transitions", "epochs", "checkpoints", "step_checkpoints", "events", "reports", "parities"),
    *("labels", "deliveries", "sinks"),
)


def _queued_job_with_an_attempt(db: Database) -> str:
    job = submitting.enqueue(db, Spec())
    with db.write() as session:
        session.execute(
            text(
                f"INSERT INTO attempts (job_id, number, worker_id, started_at) VALUES (:job_id, 1, 'worker-1', {_TIME})"
            ),
            {"job_id": job.id},
        )
    return job.id


def _leave_everything(db: Database, job: Job) -> None:
    """What an attempt can leave behind."""
    records.record_epoch(db, job.id, job.attempt, result(1), saved(1), progress(1), report(1))
    records.record_steps(db, job.id, job.attempt, saved_steps(2))
    records.record_event(db, job.id, job.attempt, 1, EventKind.MICRO_BATCH, "It did not fit.")
    with db.write() as session:
        session.add(Label(job_id=job.id, key="team", value="a"))
        session.add(SinkRow(job_id=job.id, kind=SinkKind.CSV))
        at = now(session)
        told = Delivery(id=new_id(), job_id=job.id, hook=0, event="x", payload={}, created_at=at, next_at=at)
        session.add(told)
        session.add(ParityRow(job_id=job.id, epoch=1, sha256="ab", made_at=now(session), error="It was not."))


def test_the_table_of_violations_is_whole() -> None:
    tables = SQLModel.metadata.tables.values()
    checks = {each.name for table in tables for each in table.constraints if isinstance(each, CheckConstraint)}
    assert checks == set(VIOLATIONS)


@pytest.mark.parametrize(("name", "statement"), [(name, each) for name in VIOLATIONS for each in VIOLATIONS[name]])
def test_a_constraint_refuses_by_its_name(db: Database, name: str, statement: str) -> None:
    _queued_job_with_an_attempt(db)
    before = everything(db)
    with pytest.raises(IntegrityError, match=name), db.write() as session:
        session.execute(text(statement))
    assert everything(db) == before


def test_every_member_of_the_enums_is_accepted(db: Database) -> None:
    for status in Status:
        job_with_status(db, status)
    _queued_job_with_an_attempt(db)
    with db.write() as session:
        for phase in Phase:
            session.execute(text("UPDATE jobs SET phase = :phase"), {"phase": phase})
        for outcome in Outcome:
            session.execute(text(f"UPDATE attempts SET outcome = :outcome, ended_at = {_TIME}"), {"outcome": outcome})
        for resume in Resume:
            session.execute(text("UPDATE attempts SET resume = :resume"), {"resume": resume})
    job = running(db)
    with db.write() as session:
        for sink in SinkKind:
            session.add(SinkRow(job_id=job.id, kind=sink))
    for kind in EventKind:
        records.record_event(db, job.id, 1, 1, kind, "It happened.")
    assert [each.kind for each in records.events(db, job.id)] == list(EventKind)


def test_all_tables_of_a_job_are_known() -> None:
    tables = SQLModel.metadata.tables.values()
    assert {table.name for table in tables if "job_id" in table.columns} == {*_OF_A_JOB, "aliases"}


def test_a_job_that_an_alias_points_at_stays(db: Database) -> None:
    job = running(db)
    with db.write() as session:
        session.add(Alias(name="shoes", job_id=job.id, epoch=1, created_at=now(session), updated_at=now(session)))
    with pytest.raises(IntegrityError), db.write() as session:
        session.execute(text("DELETE FROM jobs"))
    assert queue.get(db, job.id).id == job.id


@pytest.mark.parametrize("table", _OF_A_JOB)
def test_nothing_belongs_to_a_job_that_is_not_there(db: Database, table: str) -> None:
    _leave_everything(db, running(db))
    with pytest.raises(IntegrityError), db.write() as session:
        session.execute(text(f"UPDATE {table} SET job_id = 'nobody'"))


def test_what_belongs_to_a_job_goes_with_it(db: Database) -> None:
    _leave_everything(db, running(db))
    before = everything(db)
    job = running(db)
    _leave_everything(db, job)
    with db.write() as session:
        session.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": job.id})
    assert everything(db) == before


def test_a_job_has_a_seq_only_once(db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    record(db, job, 2)
    with pytest.raises(IntegrityError), db.write() as session:
        session.execute(text("UPDATE epochs SET seq = 1"))
    assert [row.seq for row in records.epochs(db, job.id)] == [1, 2]
