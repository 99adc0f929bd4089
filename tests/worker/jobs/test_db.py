"""The discipline of the database: driver, journal, how transactions begin, and the schema's history."""

import sqlite3.dbapi2
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DatabaseError
from sqlmodel import SQLModel

from tests.postgres import Server
from tests.worker.jobs.making import BACKENDS, make_ready, record, running, upgrade
from worker.jobs import db as db_module
from worker.jobs import listing, queue, records, submitting, versions
from worker.jobs.db import Database, journal_mode
from worker.jobs.errors import SchemaTooNew
from worker.jobs.spec import Spec
from worker.jobs.tables import Job

OLD = "1" * 24  # a job
_MIGRATE_EACH_LINE = """
import sys
from worker.jobs.db import Database

for url in sys.stdin:
    db = Database(url.strip())
    db.migrate()
    db.close()
    print("migrated", flush=True)
"""


def _pragma(db: Database, name: str) -> object:
    with db.read() as session:
        return session.execute(text(f"PRAGMA {name}")).scalar_one()


def _tables(db: Database) -> set[str]:
    with db.read() as session:
        return set(inspect(session.connection()).get_table_names())


@pytest.mark.parametrize(
    ("version", "mode"),
    [
        ((3, 40, 1), "DELETE"),
        ((3, 44, 5), "DELETE"),
        ((3, 44, 6), "WAL"),
        ((3, 45, 0), "DELETE"),
        ((3, 46, 1), "DELETE"),
        ((3, 50, 6), "DELETE"),
        ((3, 50, 7), "WAL"),
        ((3, 51, 0), "DELETE"),
        ((3, 51, 2), "DELETE"),
        ((3, 51, 3), "WAL"),
        ((3, 53, 4), "WAL"),
        ((4, 0, 0), "WAL"),
    ],
)
def test_wal_is_used_only_where_it_cannot_lose_rows(version: tuple[int, int, int], mode: str) -> None:
    assert journal_mode(version) == mode


def test_sqlite_is_a_fixed_one_in_wal_and_durable(sqlite_path: Path) -> None:
    db = Database(f"sqlite:///{sqlite_path}")
    db.migrate()
    with db.read() as session:
        version = session.execute(text("SELECT sqlite_version()")).scalar_one()
    major, minor, patch = map(int, version.split("."))
    assert journal_mode((major, minor, patch)) == "WAL"
    assert _pragma(db, "journal_mode") == "wal"
    assert _pragma(db, "synchronous") == 2
    assert _pragma(db, "foreign_keys") == 1
    assert sqlite_path.with_name("epochd.db-wal").exists()
    db.close()


def test_every_connection_of_the_pool_is_durable(sqlite_path: Path) -> None:
    db = Database(f"sqlite:///{sqlite_path}")
    start = threading.Barrier(4)

    def pragmas(_: int) -> tuple[object, object]:
        with db.read() as session:
            start.wait()
            names = ("synchronous", "foreign_keys")
            synchronous, foreign_keys = (session.execute(text(f"PRAGMA {name}")).scalar_one() for name in names)
            return synchronous, foreign_keys

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(pragmas, range(4))) == [(2, 1)] * 4
    db.close()


def test_an_affected_sqlite_does_without_wal(sqlite_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_module, "_sqlite_driver", lambda: sqlite3.dbapi2)
    monkeypatch.setattr(sqlite3.dbapi2, "sqlite_version_info", (3, 46, 1))
    db = Database(f"sqlite:///{sqlite_path}")
    db.migrate()
    assert _pragma(db, "journal_mode") == "delete"
    db.close()


def test_writers_that_read_first_wait_for_each_other(sqlite_path: Path) -> None:
    db = Database(f"sqlite:///{sqlite_path}")
    db.migrate()
    job = running(db)
    start = threading.Barrier(4)

    def add_one_many_times(_: int) -> None:
        start.wait()
        for _ in range(25):
            with db.write() as session:
                found = session.get_one(Job, job.id)
                found.batch += 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_one_many_times, range(4)))
    assert queue.get(db, job.id).batch == 100
    db.close()


def test_a_file_that_another_process_is_just_making_is_waited_for(sqlite_path: Path) -> None:
    maker: sqlite3.Connection = db_module._sqlite_driver().connect(
        sqlite_path, isolation_level=None, check_same_thread=False
    )
    maker.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.1, lambda: maker.execute("COMMIT"))
    done.start()
    db = Database(f"sqlite:///{sqlite_path}")
    try:
        db.migrate()
    finally:
        done.join()
        maker.close()
        db.close()


def test_readers_do_not_wait_for_a_writer(db: Database) -> None:
    job = running(db)
    with db.write() as session:
        session.get_one(Job, job.id).batch = 5
        session.flush()
        assert queue.get(db, job.id).batch == 0
    assert queue.get(db, job.id).batch == 5


def test_a_transaction_that_fails_writes_nothing(db: Database) -> None:
    job = running(db)

    def write_and_fail() -> None:
        with db.write() as session:
            session.get_one(Job, job.id).batch = 5
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert queue.get(db, job.id).batch == 0


def test_reading_does_not_write(db: Database) -> None:
    job = running(db)
    with db.read() as session:
        session.get_one(Job, job.id).batch = 5
        session.flush()
    assert queue.get(db, job.id).batch == 0


def test_the_time_is_aware_and_in_utc(db: Database) -> None:
    with db.read() as session:
        at = db_module.now(session)
    assert at.utcoffset() == timedelta(0)
    assert abs(at - datetime.now(UTC)) < timedelta(seconds=5)


def test_the_folder_of_a_sqlite_file_is_made(tmp_path: Path) -> None:
    db = Database(f"sqlite:///{tmp_path / 'new' / 'folder' / 'epochd.db'}")
    db.migrate()
    assert "jobs" in _tables(db)
    db.close()


def test_migrating_again_changes_nothing(empty_url: str) -> None:
    for _ in range(2):
        db = Database(empty_url)
        db.migrate()
        db.migrate()
        assert _tables(db) == {*SQLModel.metadata.tables, "alembic_version"}
        submitting.enqueue(db, Spec())
        db.close()
    db = Database(empty_url)
    assert len(listing.jobs(db)[0]) == 2
    db.close()


@pytest.fixture(scope="module")
def migrators() -> Iterator[list["subprocess.Popen[str]"]]:
    """Two processes that migrate whatever database they are told."""
    processes = [
        subprocess.Popen([sys.executable, "-c", _MIGRATE_EACH_LINE], stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    yield processes
    complaints = [process.communicate()[1] for process in processes]
    assert complaints == ["", ""]


@pytest.mark.parametrize("backend", BACKENDS)
def test_processes_that_start_together_migrate_once(
    backend: str, migrators: "list[subprocess.Popen[str]]", tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if backend == "sqlite":
        for number in range(4):
            _migrate_together(migrators, f"sqlite:///{tmp_path / f'{number}.db'}")
    else:
        server: Server = request.getfixturevalue("postgres_server")
        _migrate_together(migrators, server.new_database())


def _migrate_together(processes: "list[subprocess.Popen[str]]", url: str) -> None:
    for process in processes:
        assert process.stdin
        process.stdin.write(f"{url}\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "migrated\n", process.communicate()[1]
    db = Database(url)
    assert _tables(db) == {*SQLModel.metadata.tables, "alembic_version"}
    db.close()


def test_the_migrated_schema_is_the_one_that_the_code_describes(db: Database) -> None:
    with db.read() as session:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(session.connection(), opts=options)
        assert compare_metadata(context, SQLModel.metadata) == []


def test_the_migrated_constraints_are_those_that_the_code_describes(empty_url: str) -> None:
    """Alembic compares neither CHECK constraints nor what a deletion does to the rows of others."""
    db = Database(empty_url)
    with db.write() as session:
        SQLModel.metadata.create_all(session.connection())
    described = _constraints(db)
    with db.write() as session:
        SQLModel.metadata.drop_all(session.connection())
    db.migrate()
    assert _constraints(db) == described
    assert any(described["jobs"])
    db.close()


def _constraints(db: Database) -> dict[str, list[str]]:
    with db.read() as session:
        schema = inspect(session.connection())
        return {
            table: sorted(map(repr, [*schema.get_check_constraints(table), *schema.get_foreign_keys(table)]))
            for table in SQLModel.metadata.tables
        }


def test_a_database_of_before_there_were_datasets_keeps_its_jobs(empty_url: str) -> None:
    db = Database(empty_url)
    upgrade(db, "0001")
    at = "'2026-01-01 00:00:00.000000'"
    with db.write() as session:
        for statement in (
            (
                "INSERT INTO jobs (id, labels, spec, status, created_at, attempt, last_seq, epoch, batch, batches) "
                f"VALUES ('{OLD}', '{{}}', '{{}}', 'queued', {at}, 1, 1, 0, 0, 0)"
            ),
            f"INSERT INTO attempts (job_id, number, worker_id, started_at) VALUES ('{OLD}', 1, 'worker-1', {at})",
            (
                "INSERT INTO epochs (job_id, epoch, seq, attempt, recorded_at, test_accuracy, learning_rate, "
                f"samples_per_second, train_seconds, test_seconds) VALUES ('{OLD}', 1, 1, 1, {at}, 0.5, 0.1, 1, 1, 1)"
            ),
        ):
            session.execute(text(statement))
    db.migrate()
    (dataset,) = versions.newest(db)
    assert (dataset.name, dataset.version, dataset.status) == ("fashion-mnist", 1, "uploaded")
    assert queue.get(db, OLD).dataset_id == dataset.id
    assert len(records.attempts(db, OLD)) == 1
    (row,) = records.epochs(db, OLD)
    assert (row.test_accuracy, row.test_f1, row.gradient_norm, row.peak_memory_bytes) == (0.5, None, None, None)
    assert records.events(db, OLD) == []
    assert records.checkpoints(db, OLD) == []
    assert queue.claim(db, "worker-1", 60) is None
    make_ready(db)
    job = queue.claim(db, "worker-1", 60, cores=2)
    assert job is not None
    assert (job.id, job.threads) == (OLD, 2)
    record(db, job, 2, test_accuracy=0.4)
    assert [(each.row.epoch, each.is_best) for each in records.checkpoints(db, OLD)] == [(2, True)]
    assert Spec.model_validate(job.spec) == Spec()
    db.close()


def test_a_database_of_a_newer_epochd_is_left_alone(empty_url: str) -> None:
    db = Database(empty_url)
    db.migrate()
    with db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNew):
        db.migrate()
    with db.read() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    db.close()


def test_a_server_that_dropped_its_connections_costs_no_error(postgres_server: Server) -> None:
    url = postgres_server.new_database()
    db = Database(url)
    db.migrate()
    submitting.enqueue(db, Spec())
    with postgres_server.connect() as connection:
        name = make_url(url).database
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
    assert len(listing.jobs(db)[0]) == 1
    db.close()


def test_a_file_that_is_no_database_is_a_database_error(sqlite_path: Path) -> None:
    sqlite_path.write_bytes(b"certainly not a database" * 100)
    db = Database(f"sqlite:///{sqlite_path}")
    with pytest.raises(DatabaseError, match="not a database"):
        listing.jobs(db)
    db.close()
