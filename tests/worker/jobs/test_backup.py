"""A backup is whole, comes back whole or not at all, and is taken while everything goes on."""

import fcntl
import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlmodel import Session, SQLModel, col

from tests.postgres import Server
from tests.worker.jobs.imported import imported
from tests.worker.jobs.kept_files import contents, filled, make_old, put, record_with_files
from tests.worker.jobs.making import BACKENDS, claim, everything, upgrade
from worker.jobs import aliases, backup, checking, control, datasets, queue, submitting
from worker.jobs.backup import MANIFEST, ROWS
from worker.jobs.db import Database, now
from worker.jobs.errors import BadBackup, Conflict, EpochdError, SchemaTooNew
from worker.jobs.restore import restore
from worker.jobs.spec import Checkpoints, Spec
from worker.jobs.states import DatasetStatus, Outcome, Status
from worker.jobs.tables import Dataset, ParityRow

New = Callable[[str], tuple[Database, Path]]
Change = Callable[[tarfile.TarInfo, bytes], list[tuple[tarfile.TarInfo, bytes]]]


@pytest.fixture
def new(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[New]:
    """Makes an epochd that has nothing yet: its database and its data folder."""
    made = []

    def make(backend: str) -> tuple[Database, Path]:
        data_dir = tmp_path_factory.mktemp("data")
        if backend == "sqlite":
            url = f"sqlite:///{data_dir / 'epochd.db'}"
        else:
            server: Server = request.getfixturevalue("postgres_server")
            url = server.new_database()
        db = Database(url)
        db.migrate()
        made.append(db)
        return db, data_dir

    yield make
    for db in made:
        db.close()


def taken(db: Database, data_dir: Path) -> bytes:
    out = io.BytesIO()
    written = backup.write(db, data_dir, out)
    assert written.missing == []
    return out.getvalue()


def rows(db: Database) -> dict[str, dict[tuple[Any, ...], dict[str, Any]]]:
    """Of each table, by their keys; but for the workers'."""
    with db.read() as session:
        return {
            table.name: {
                tuple(row[column.name] for column in table.primary_key): dict(row)
                for row in session.execute(table.select()).mappings()
            }
            for table in SQLModel.metadata.sorted_tables
            if table.name != "workers"
        }


@pytest.mark.parametrize("origin", BACKENDS)
@pytest.mark.parametrize("target", BACKENDS)
def test_what_was_backed_up_comes_back(new: New, origin: str, target: str) -> None:
    db, data_dir = new(origin)
    job = filled(db, data_dir)
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    brought = imported(db, data_dir)
    for each in (job, brought):
        aliases.put(db, "shoes", each.id, "best")
    with db.write() as session:
        session.add(ParityRow(job_id=job.id, epoch=1, sha256="ab", made_at=now(session), contents={"pictures": 9}))
    saved = taken(db, data_dir)
    other, other_dir = new(target)
    restore(other, other_dir, io.BytesIO(saved))
    assert rows(other) == rows(db)
    assert all(rows(other)[name] for name in ("aliases", "parities"))
    assert aliases.target(other, "shoes").job_id == brought.id
    assert aliases.rollback(other, "shoes").alias.job_id == job.id
    assert contents(other_dir) == contents(data_dir)
    assert checking.check(other, other_dir, digests=True) == []
    assert not list(data_dir.glob(".backup-*"))
    assert not list(other_dir.glob(".restore-*"))


def test_what_was_being_worked_on_is_given_back_and_costs_nothing(new: New) -> None:
    db, data_dir = new("sqlite")
    job = filled(db, data_dir)
    other, other_dir = new("sqlite")
    restore(other, other_dir, io.BytesIO(taken(db, data_dir)))
    assert queue.get(db, job.id).status == Status.RUNNING
    again = queue.get(other, job.id)
    assert (again.status, again.worker_id) == (Status.QUEUED, None)
    assert claim(other).id == job.id
    with other.read() as session:
        found = session.execute(select(col(Dataset.lost), col(Dataset.status))).all()
    assert {row.lost for row in found} == {0}
    assert {row.status for row in found} == {DatasetStatus.READY, DatasetStatus.UPLOADED}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backup_of_an_epochd_that_works_agrees_with_itself(new: New, backend: str) -> None:
    db, data_dir = new(backend)
    job = filled(db, data_dir)
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    submitting.enqueue(db, Spec(epochs=100_000, checkpoints=Checkpoints(keep="last")))
    trained = [claim(db) for _ in range(3)][-1]
    done = threading.Event()

    def train() -> None:
        epoch = 0
        while not done.is_set():
            epoch += 1
            time.sleep(0.02)  # to train
            kept = record_with_files(db, data_dir, trained, epoch)
            for path in (data_dir / "jobs" / trained.id / "checkpoints").iterdir():
                if str(path.relative_to(data_dir)) not in kept:
                    path.unlink()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        backups = [taken(db, data_dir) for _ in range(5)]
    finally:
        done.set()
        thread.join()
    for saved in backups:
        other, other_dir = new("sqlite")
        restore(other, other_dir, io.BytesIO(saved))
        assert checking.check(other, other_dir, digests=True) == []


def test_a_file_that_is_missing_is_named_and_the_rest_is_backed_up(new: New) -> None:
    db, data_dir = new("sqlite")
    job = filled(db, data_dir)
    (damaged,) = (data_dir / "jobs" / job.id / "checkpoints").glob("*.safetensors")
    damaged.unlink()
    out = io.BytesIO()
    written = backup.write(db, data_dir, out)
    assert written.missing == [str(damaged.relative_to(data_dir))]
    other, other_dir = new("sqlite")
    restore(other, other_dir, io.BytesIO(out.getvalue()))
    (finding,) = checking.check(other, other_dir)
    assert finding.subject == written.missing[0]


def retarred(saved: bytes, change: Change) -> bytes:
    """The backup with each of its members replaced."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(saved)) as old, tarfile.open(fileobj=out, mode="w") as changed:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            for info, body in change(member, file.read()):
                info.size = len(body) if info.isreg() else 0
                changed.addfile(info, io.BytesIO(body))
    return out.getvalue()


def stranger(name: str, kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info, b""


def before_manifest(name: str, kind: bytes = tarfile.REGTYPE) -> Change:
    return lambda info, body: [*([stranger(name, kind)] if info.name == MANIFEST else []), (info, body)]


TAMPERED: dict[str, Change] = {
    "a bit": lambda info, body: [(info, body if info.name in (MANIFEST, ROWS) else body[:-1] + b"?")],
    "a file less": lambda info, body: [] if "state" in info.name else [(info, body)],
    "a file more": before_manifest("files/jobs/x/more"),
    "no manifest": lambda info, body: [] if info.name == MANIFEST else [(info, body)],
    "no rows": lambda info, body: [] if info.name == ROWS else [(info, body)],
    "a file behind the manifest": lambda info, body: [
        (info, body),
        *([stranger("files/jobs/x/more")] if info.name == MANIFEST else []),
    ],
    "a way out": before_manifest("files/jobs/../../../outside"),
    "an absolute path": before_manifest("/tmp/outside"),
    "a link": before_manifest("files/jobs/link", tarfile.SYMTYPE),
    "a device": before_manifest("files/jobs/device", tarfile.CHRTYPE),
    "another folder": before_manifest("files/workers/x.lock"),
    "a name twice": lambda info, body: [(info, body), (info, body)],
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_backup_that_was_tampered_with_is_refused_and_leaves_nothing(new: New, how: str) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    other, other_dir = new("sqlite")
    before = {path.name for path in other_dir.iterdir()}
    with pytest.raises(BadBackup):
        restore(other, other_dir, io.BytesIO(retarred(taken(db, data_dir), TAMPERED[how])))
    assert {path.name for path in other_dir.iterdir()} == before
    assert all(not found for found in everything(other).values())
    assert not (other_dir.parent / "outside").exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_backup_that_is_cut_off_is_refused(new: New, share: float) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    saved = taken(db, data_dir)
    other, other_dir = new("sqlite")
    with pytest.raises(BadBackup):
        restore(other, other_dir, io.BytesIO(saved[: int(share * len(saved))]))
    assert not (other_dir / "jobs").exists()


def with_rows(saved: bytes, change: Callable[[Path], None], folder: Path) -> bytes:
    """The backup with other rows, and a manifest that says so."""
    path = folder / ROWS
    entries: dict[str, dict[str, object]] = {}

    def changed(info: tarfile.TarInfo, body: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
        if info.name == ROWS:
            path.write_bytes(body)
            change(path)
            body = path.read_bytes()
        if info.name == MANIFEST:
            body = json.dumps(json.loads(body) | {"entries": entries}).encode()
        entries[info.name] = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        return [(info, body)]

    return retarred(saved, changed)


def execute(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        db = Database(f"sqlite:///{path}")
        with db.write() as session:
            for statement in statements:
                session.execute(text(statement))
        db.close()

    return change


def no_database(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


NO_ROWS: dict[str, tuple[Callable[[Path], None], type[EpochdError]]] = {
    "no database": (no_database, BadBackup),
    "a newer epochd's": (execute("UPDATE alembic_version SET version_num = '9999'"), SchemaTooNew),
    "no tables": (execute("DROP TABLE events"), BadBackup),
    "a row too much": (execute("PRAGMA ignore_check_constraints=1", "UPDATE jobs SET status = 'x'"), BadBackup),
}


@pytest.mark.parametrize("what", NO_ROWS)
@pytest.mark.parametrize("target", BACKENDS)
def test_rows_that_cannot_be_taken_over_are_refused_and_leave_nothing(
    new: New, tmp_path: Path, target: str, what: str
) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    change, error = NO_ROWS[what]
    saved = with_rows(taken(db, data_dir), change, tmp_path)
    other, other_dir = new(target)
    before = {path.name for path in other_dir.iterdir()}
    with pytest.raises(error):
        restore(other, other_dir, io.BytesIO(saved))
    assert {path.name for path in other_dir.iterdir()} == before
    assert all(not found for found in everything(other).values())


def test_rows_of_an_older_epochd_are_brought_up_to_date(new: New, tmp_path: Path) -> None:
    def older(path: Path) -> None:
        path.unlink()
        db = Database(f"sqlite:///{path}")
        upgrade(db, "0003")
        with db.write() as session:
            session.execute(text("INSERT INTO api_keys VALUES ('ab', 'a', '2026-01-02 03:04:05')"))
            session.execute(
                text(
                    "INSERT INTO jobs (id, labels, spec, status, created_at, attempt, last_seq, epoch, batch, batches) "
                    "VALUES ('1', '{}', '{\"epochs\": 2}', 'queued', '2026-01-02 03:04:05', 0, 0, 0, 0, 0)"
                )
            )
        db.close()

    db, data_dir = new("sqlite")
    saved = with_rows(taken(db, data_dir), older, tmp_path)
    other, other_dir = new("postgresql")
    restore(other, other_dir, io.BytesIO(saved))
    (job,) = rows(other)["jobs"].values()
    assert (job["id"], job["forgiven"], job["created_at"]) == ("1", 0, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))


class Once(Database):
    """A database that goes away after one transaction that writes."""

    written = 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        self.written += 1
        assert self.written == 1
        with super().write() as session:
            yield session


@pytest.mark.parametrize("asked", [control.pause, control.cancel, None])
def test_what_was_being_worked_on_is_given_back_in_the_transaction_that_brings_it(
    new: New, asked: Callable[..., Any] | None
) -> None:
    db, data_dir = new("sqlite")
    job = filled(db, data_dir)
    assert datasets.claim(db, "preparer", 60) is not None
    if asked is not None:
        asked(db, job.id)
    other, other_dir = new("sqlite")
    restore(Once(f"sqlite:///{other_dir / 'epochd.db'}"), other_dir, io.BytesIO(taken(db, data_dir)))
    ends = {None: Status.QUEUED, control.pause: Status.PAUSED, control.cancel: Status.CANCELLED}
    assert queue.get(other, job.id).status == ends[asked]
    assert {row["status"] for row in rows(other)["datasets"].values()} == {"ready", "uploaded"}
    assert checking.check(other, other_dir) == []


def test_what_is_being_backed_up_or_restored_is_no_orphan_however_long_it_takes(new: New) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    looked = []

    class Slow(io.BytesIO):
        def write(self, data: Any) -> int:
            make_old(data_dir)
            looked.append(checking.check(db, data_dir))
            return super().write(data)

    backup.write(db, data_dir, saved := Slow())
    other, other_dir = new("sqlite")

    class SlowSource(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            make_old(other_dir)
            looked.append(checking.check(other, other_dir))
            return super().read(size)

    restore(other, other_dir, SlowSource(saved.getvalue()))
    assert len(looked) > 2
    assert not any(looked)


def test_where_files_cannot_be_linked_they_are_copied(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    """exFAT says that it is not permitted."""

    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    db, data_dir = new("sqlite")
    filled(db, data_dir)
    monkeypatch.setattr(os, "link", link)
    saved = taken(db, data_dir)
    other, other_dir = new("sqlite")
    restore(other, other_dir, io.BytesIO(saved))
    assert contents(other_dir) == contents(data_dir)


def test_a_manifest_says_which_epochd_wrote_it_and_of_when_its_rows_are(new: New) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    began = []

    class Target(io.BytesIO):
        def write(self, data: Any) -> int:
            began.append(datetime.now(UTC))
            time.sleep(0.01)
            return super().write(data)

    written = Target()
    backup.write(db, data_dir, written)
    with tarfile.open(fileobj=io.BytesIO(written.getvalue())) as tar:
        file = tar.extractfile(MANIFEST)
        assert file is not None
        manifest = json.load(file)
    with db.read() as session:
        revision = session.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    assert (manifest["epochd"], manifest["revision"]) == (installed_version("epochd"), revision)
    assert datetime.fromisoformat(manifest["created_at"]) < began[0]


def test_nothing_is_restored_beside_a_worker(new: New) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    saved = taken(db, data_dir)
    other, other_dir = new("sqlite")
    put(other_dir, "workers/1.lock")
    with (other_dir / "workers/1.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Conflict, match="worker"):
            restore(other, other_dir, io.BytesIO(saved))
    restore(other, other_dir, io.BytesIO(saved))


def test_nothing_is_restored_over_what_there_is(new: New) -> None:
    db, data_dir = new("sqlite")
    filled(db, data_dir)
    saved = taken(db, data_dir)
    before = rows(db), contents(data_dir)
    with pytest.raises(Conflict, match="already"):
        restore(db, data_dir, io.BytesIO(saved))
    assert (rows(db), contents(data_dir)) == before
