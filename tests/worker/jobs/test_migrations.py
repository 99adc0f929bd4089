"""A database of an older epochd: its upgrade loses nothing, and one that dies half-way has changed nothing."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import MetaData, event, text
from sqlalchemy.exc import IntegrityError

from tests.worker.jobs.making import record, upgrade
from worker.jobs import aliases, control, queue, records, versions
from worker.jobs.db import Database
from worker.jobs.errors import Conflict
from worker.jobs.failures import Failure
from worker.jobs.ids import is_id

OLD = "1" * 24  # a job, and another one
OTHER = "2" * 24
SENTENCE = "Lower the learning rate."
FAILED = {"code": "diverged", "message": "The loss became nan.", "phase": "training", "suggestion": SENTENCE}
QUIET = {"code": "killed", "message": "It was killed.", "signal": "SIGKILL", "suggestion": None}
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def _rows_of_the_third_revision() -> dict[str, list[dict[str, object]]]:
    """Of every table: two jobs with all that attempts left at that time."""
    dataset: dict[str, object] = {"name": "shoes", "created_at": AT, "attempt": 1, "lost": 0, "done": 0, "total": 0}
    job: dict[str, object] = {
        "labels": {"team": "é"},
        "spec": {"epochs": 2},
        "created_at": AT,
        "last_seq": 2,
        "threads": 2,
        "batches": 7,
    }
    numbers: dict[str, object] = {
        "learning_rate": 0.1,
        "samples_per_second": 1.5,
        "train_seconds": 2.5,
        "test_seconds": 0.5,
    }
    rows: dict[str, list[dict[str, object]]] = {
        "api_keys": [{"sha256": "ab" * 32, "prefix": "ab", "created_at": AT}],
        "workers": [{"id": "worker-1", "host": "host", "started_at": AT, "heartbeat_at": AT}],
        "datasets": [
            dataset | {"id": "3" * 24, "version": 1, "status": "ready", "card": {"name": "shoes"}, "findings": []},
            dataset | {"id": "4" * 24, "version": 2, "status": "invalid", "error": FAILED, "form": {"name": "shoes"}},
        ],
        "jobs": [
            job
            | {"id": OLD, "name": "a", "status": "failed", "finished_at": AT, "error": FAILED, "epoch": 2, "batch": 7}
            | {"dataset_id": "3" * 24, "attempt": 2, "provenance": {"seed": 0}, "started_at": AT},
            job
            | {"id": OTHER, "name": None, "status": "running", "worker_id": "worker-1", "lease_expires_at": AT}
            | {"dataset_id": "3" * 24, "attempt": 2, "epoch": 1, "batch": 3, "phase": "training", "started_at": AT},
        ],
    }
    named: dict[str, object] = dict.fromkeys(("path", "sha256", "state_path", "state_sha256"), "x")
    for job_id in (OLD, OTHER):
        attempt: dict[str, object] = {"job_id": job_id, "worker_id": "worker-1", "started_at": AT}
        ended = {"ended_at": AT, "outcome": "failed", "error": FAILED, "resumed_from": 1} if job_id == OLD else {}
        each: dict[str, list[dict[str, object]]] = {
            "attempts": [
                attempt | {"number": 1, "first_batch_at": AT, "ended_at": AT, "outcome": "killed", "error": QUIET},
                attempt | {"number": 2} | ended,
            ],
            "transitions": [
                {"job_id": job_id, "seq": seq, "status": status, "at": AT, "reason": "because"}
                for seq, status in enumerate(("queued", "running", "queued", "running"), start=1)
            ],
            "epochs": [
                {"job_id": job_id, "epoch": epoch, "seq": epoch, "attempt": 1, "recorded_at": AT, "test_f1": 0.25}
                | numbers
                for epoch in (1, 2)
            ],
            "checkpoints": [
                named | {"job_id": job_id, "epoch": epoch, "attempt": 1, "created_at": AT, "bytes": 2**40}
                for epoch in (1, 2)
            ],
            "events": [
                {"job_id": job_id, "seq": 1, "at": AT, "attempt": 1, "epoch": 1, "kind": "diverged", "detail": "é"}
            ],
            "reports": [{"job_id": job_id, "epoch": 2, "contents": {"epoch": 2}}],
        }
        for name, more in each.items():
            rows.setdefault(name, []).extend(more)
    return rows


def _rows_of_the_fourth_revision() -> dict[str, list[dict[str, object]]]:
    """With what came with it: jobs that can be paused, and checkpoints inside an epoch."""
    rows = _rows_of_the_third_revision()
    for job, stop_now in zip(rows["jobs"], (False, True), strict=True):
        job |= {"forgiven": 1, "stop_now": stop_now}
    for attempt in rows["attempts"]:
        attempt |= {"resumed_batch": 3, "resume": "approximate", "resume_reason": "other threads"}
    inside: dict[str, object] = {"attempt": 2, "created_at": AT, "epoch": 3, "batch": 4, "path": "x", "sha256": "y"}
    return rows | {"step_checkpoints": [inside | {"job_id": job_id, "bytes": 2**40} for job_id in (OLD, OTHER)]}


_NEW = ("aliases", "parities", "turns", "deliveries", "sweeps", "sinks")  # tables, without rows
_LABELS = [{"job_id": each, "key": "team", "value": "é"} for each in (OLD, OTHER)]
_OF_NO_KEY = {"owner": "", "priority": 0, "idempotency_key": None, "request_sha256": None, "request_id": None}
_OF_NO_SWEEP = {"sweep_id": None, "trial": None}
_MAY_DO_EVERYTHING = {"owner": "", "name": None, "scopes": ["admin"], "expires_at": None, "revoked_at": None}


def _stored(db: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row, in the columns that its table has now."""
    metadata = MetaData()
    with db.read() as session:
        metadata.reflect(session.connection())
        return {
            table.name: [
                dict(row) for row in session.execute(table.select().order_by(*table.primary_key)).mappings().all()
            ]
            for table in metadata.sorted_tables
        }


@pytest.fixture
def third(empty_url: str) -> Iterator[Database]:
    """A database of the third revision, with rows in every table."""
    yield from _filled(empty_url, "0003", _rows_of_the_third_revision())


@pytest.fixture
def fourth(empty_url: str) -> Iterator[Database]:
    yield from _filled(empty_url, "0004", _rows_of_the_fourth_revision())


@pytest.fixture(params=[("0003", _rows_of_the_third_revision), ("0004", _rows_of_the_fourth_revision)])
def older(request: pytest.FixtureRequest, empty_url: str) -> Iterator[Database]:
    revision, rows = request.param
    yield from _filled(empty_url, revision, rows())


def _filled(url: str, revision: str, rows: dict[str, list[dict[str, object]]]) -> Iterator[Database]:
    db = Database(url)
    upgrade(db, revision)
    metadata = MetaData()
    with db.write() as session:
        metadata.reflect(session.connection())
        assert {table.name for table in metadata.sorted_tables} == {*rows, "alembic_version"}
        for table in metadata.sorted_tables:
            for row in rows.get(table.name, []):
                session.execute(table.insert().values(row))
    yield db
    db.close()


def _hinted(row: dict[str, Any]) -> dict[str, Any]:
    error: dict[str, Any] = row.get("error") or {}
    is_told = error.get("suggestion") == SENTENCE
    return row | {"error": error | {"suggestion": None, "hint": SENTENCE}} if is_told else row


def _assert_foreign_keys_hold(db: Database, *more: str) -> None:
    if db.is_sqlite:
        with db.write() as session:
            assert session.execute(text("PRAGMA foreign_keys")).scalar_one() == 1
            assert session.execute(text("PRAGMA foreign_key_check")).all() == []
    for table in ("attempts", "transitions", "epochs", "checkpoints", "events", "reports", *more):
        with pytest.raises(IntegrityError), db.write() as session:
            session.execute(text(f"UPDATE {table} SET job_id = 'nobody' WHERE job_id = '{OLD}'"))


def test_a_database_of_before_jobs_could_be_paused_keeps_every_row(third: Database) -> None:
    before = _stored(third)
    third.migrate()
    after = _stored(third)
    assert [after.pop(name) for name in ("step_checkpoints", *_NEW)] == [[]] * (1 + len(_NEW))
    assert after.pop("labels") == _LABELS
    assert after.pop("alembic_version") != before.pop("alembic_version")
    assert set(after) == set(before)
    for name, rows in after.items():
        assert len(before[name]) == len(rows) > 0, name
        for old, new in zip(before[name], rows, strict=True):
            assert new | _hinted(old) == new, name
            assert {column: new[column] for column in new.keys() - old.keys()} == {
                "jobs": {"forgiven": 0, "stop_now": False, "imported": False, **_OF_NO_KEY, **_OF_NO_SWEEP},
                "reports": {"answers": None},
                "attempts": {"resumed_batch": None, "resume": None, "resume_reason": None},
                "datasets": {"owner": ""},
                "api_keys": {"id": new.get("id"), **_MAY_DO_EVERYTHING},
            }.get(name, {})
    _assert_foreign_keys_hold(third)
    with third.write() as session:
        session.execute(text(f"DELETE FROM jobs WHERE id = '{OLD}'"))
    left = _stored(third)
    assert all({row["job_id"] for row in left[name]} == {OTHER} for name in ("attempts", "epochs", "checkpoints"))


def test_a_database_of_before_prediction_keeps_every_row(fourth: Database) -> None:
    before = _stored(fourth)
    fourth.migrate()
    after = _stored(fourth)
    assert [after.pop(name) for name in _NEW] == [[]] * len(_NEW)
    assert after.pop("labels") == _LABELS
    assert after.pop("alembic_version") != before.pop("alembic_version")
    for row in after["jobs"]:
        assert row.pop("imported") is False
        assert {name: row.pop(name) for name in _OF_NO_KEY} == _OF_NO_KEY
        assert {name: row.pop(name) for name in _OF_NO_SWEEP} == _OF_NO_SWEEP
    for row in after["reports"]:
        assert row.pop("answers") is None
    for row in after["api_keys"]:
        assert is_id(row.pop("id"))
        assert {name: row.pop(name) for name in _MAY_DO_EVERYTHING} == _MAY_DO_EVERYTHING
    for row in after["datasets"]:
        assert row.pop("owner") == ""
    assert after == before
    assert all(after.values())
    _assert_foreign_keys_hold(fourth, "step_checkpoints")


def test_a_job_of_before_prediction_can_be_named_and_one_without_state_stored(fourth: Database) -> None:
    fourth.migrate()
    assert aliases.put(fourth, "shoes", OLD, "best").alias.epoch == 1
    with pytest.raises(Conflict, match="The alias shoes points at this job"):
        control.delete(fourth, OLD)
    with fourth.write() as session:
        session.execute(text(f"UPDATE checkpoints SET state_path = NULL, state_sha256 = NULL WHERE job_id = '{OLD}'"))
    assert records.files(fourth, OLD) == ["x", "x", "x"]
    aliases.remove(fourth, "shoes")
    control.delete(fourth, OLD)
    assert {row["job_id"] for row in _stored(fourth)["checkpoints"]} == {OTHER}


def test_what_was_a_sentence_is_a_hint_and_no_patch(third: Database) -> None:
    third.migrate()
    failed = queue.get(third, OLD)
    told = Failure.model_validate(failed.error)
    assert (told.hint, told.suggestion, told.message) == (SENTENCE, None, "The loss became nan.")
    quiet, last = (Failure.model_validate(each.error) for each in records.attempts(third, OLD))
    assert (quiet.hint, quiet.suggestion, last.hint) == (None, None, SENTENCE)
    assert Failure.model_validate(versions.by_id(third, "4" * 24).error).hint == SENTENCE
    with pytest.raises(Conflict, match="no suggestion"):
        control.retry(third, OLD, apply_suggestion=True)


def test_a_job_of_before_jobs_could_be_paused_goes_on(third: Database) -> None:
    third.migrate()
    assert control.pause(third, OTHER).status == "pausing"
    assert queue.rescue(third, max_attempts=1) == [OTHER]
    control.resume(third, OTHER)
    control.retry(third, OLD)
    taken = [queue.claim(third, "worker-2", 60), queue.claim(third, "worker-2", 60)]
    assert [(job.id, job.attempt) for job in taken if job] == [(OLD, 3), (OTHER, 3)]
    record(third, queue.get(third, OTHER), 3)
    assert [row.epoch for row in records.epochs(third, OTHER)] == [1, 2, 3]


class _Died(Exception):
    pass


@contextmanager
def _dying_at(db: Database, number: int) -> Iterator[None]:
    """Raises before the statement of this number, from 0."""
    left = itertools.count(number, -1)

    def die(*_: object) -> None:
        if next(left) == 0:
            raise _Died

    event.listen(db._engine, "before_cursor_execute", die)
    try:
        yield
    finally:
        event.remove(db._engine, "before_cursor_execute", die)


def test_an_upgrade_that_dies_half_way_leaves_the_database_as_it_was(older: Database) -> None:
    before = _stored(older)
    for number in itertools.count(step=4):
        try:
            with _dying_at(older, number):
                older.migrate()
        except _Died:
            assert _stored(older) == before
        else:
            break
        if number % 20 == 0:
            _assert_foreign_keys_hold(older)
    assert number > 10
    assert len(_stored(older)["attempts"]) == 4
    _assert_foreign_keys_hold(older)
