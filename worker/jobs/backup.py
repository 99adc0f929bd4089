"""Backups: one tar file with all rows and every file that they name, of an epochd that goes on working meanwhile.

`rows.db` is a SQLite database, whichever database the rows are from, so that they can go back into either. The files
are linked into a folder of their own first: what is deleted meanwhile is still there to be copied. `manifest.json`
comes last, with the digest of everything: what has none is no backup.
"""

import fcntl
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import IO, Final

from pydantic import BaseModel
from sqlalchemy import Connection, select, text
from sqlmodel import Session, SQLModel, col

from . import versions
from .attempt_logs import training_log
from .db import Database
from .states import DatasetStatus
from .tables import Attempt, Checkpoint, Dataset, StepCheckpoint, Worker

FORMAT: Final = 1
MANIFEST, ROWS, FILES = "manifest.json", "rows.db", "files"
SCRATCH: Final = ".backup-"  # begins the name of the folder in which a backup is put together
_SNAPSHOTS: Final = 10
_ROWS: Final = 1000  # at once
_UNPREPARED: Final = (DatasetStatus.UPLOADED, DatasetStatus.PREPARING)


class Entry(BaseModel):
    bytes: int
    sha256: str


class Manifest(BaseModel):
    format: int
    epochd: str  # the version that wrote it
    revision: str  # of its rows' schema
    created_at: datetime  # its rows are as of then
    entries: dict[str, Entry]  # by their names in the tar file


@dataclass(frozen=True)
class Written:
    files: int
    bytes: int
    missing: list[str]  # that rows name, but that are not there


def write(db: Database, data_dir: Path, target: IO[bytes]) -> Written:
    """Streams a backup. Raises OSError."""
    with scratch_folder(data_dir, SCRATCH) as scratch:
        rows = _collect(db, data_dir, scratch)
        entries: dict[str, Entry] = {}
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(path for path in scratch.rglob("*") if path.is_file()):
                name = str(path.relative_to(scratch))
                entries[name] = _add(tar, path, name)
            manifest = Manifest(
                format=FORMAT,
                epochd=installed_version("epochd"),
                revision=rows.revision,
                created_at=rows.at,
                entries=entries,
            )
            said = scratch / MANIFEST
            said.write_text(manifest.model_dump_json())
            _add(tar, said, MANIFEST)
        return Written(len(entries) - 1, sum(entry.bytes for entry in entries.values()), rows.missing)


def copy_rows(source: Connection, target: Connection) -> None:
    """All but the workers': those are of this moment."""
    for table in SQLModel.metadata.sorted_tables:
        if table.name == Worker.__tablename__:
            continue
        rows = source.execution_options(yield_per=_ROWS).execute(table.select()).mappings()
        for part in rows.partitions(_ROWS):
            target.execute(table.insert(), [dict(row) for row in part])


@contextmanager
def scratch_folder(data_dir: Path, prefix: str) -> Iterator[Path]:
    """A folder that goes at the end. It is locked until then: one that is not is what a kill left behind."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=data_dir))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@dataclass(frozen=True)
class _Rows:
    at: datetime
    revision: str
    missing: list[str]  # files that are not there, even behind several snapshots


def _collect(db: Database, data_dir: Path, scratch: Path) -> _Rows:
    """The rows and links to their files."""
    for _ in range(_SNAPSHOTS):
        for name in (ROWS, FILES):
            path = scratch / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        rows = Database(f"sqlite:///{scratch / ROWS}")
        rows.migrate()
        at = datetime.now(UTC)
        try:
            with db.snapshot() as source, rows.write() as target:
                # At once: a checkpoint that is not kept may go any moment.
                missing = [path for path in _named(source, data_dir) if not _link(data_dir, path, scratch / FILES)]
                copy_rows(source, target.connection())
                revision = target.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        finally:
            rows.close()  # which writes everything into the one file
        if not missing:
            break
    return _Rows(at, revision, missing)


def _named(source: Connection, data_dir: Path) -> list[str]:
    """The files that rows name, and the logs and weights that there are. Relative to the data folder."""
    with Session(bind=source) as session:
        found = list(session.execute(select(col(StepCheckpoint.path))).scalars())
        checkpoints = select(col(Checkpoint.path), col(Checkpoint.state_path)).order_by(col(Checkpoint.epoch).desc())
        found += [path for row in session.execute(checkpoints) for path in row if path is not None]
        attempts = session.execute(select(col(Attempt.job_id), col(Attempt.number))).all()
        datasets = list(session.execute(select(Dataset)).scalars())
    optional = [training_log(row.job_id, row.number) for row in attempts]
    optional += [str(path.relative_to(data_dir)) for path in (data_dir / "weights").glob("*")]
    for dataset in datasets:
        if dataset.status in _UNPREPARED and dataset.form is not None:
            found.append(versions.archive_path(dataset.id))
        if dataset.status == DatasetStatus.READY:
            folder = data_dir / versions.folder(dataset)
            found += [str(path.relative_to(data_dir)) for path in folder.glob("*")] or [versions.folder(dataset)]
    return found + [path for path in optional if (data_dir / path).is_file()]


def _link(data_dir: Path, path: str, files: Path) -> bool:
    """Whether it was there. What rows name is never changed in place, so a link keeps it as it is."""
    source, target = data_dir / path, files / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:  # a file system without links, or with a file of somebody else's
        with suppress(FileNotFoundError, IsADirectoryError):  # a folder, where a prepared dataset has no files
            shutil.copyfile(source, target)
            return True
        return False
    return True


def _add(tar: tarfile.TarFile, path: Path, name: str) -> Entry:
    with path.open("rb") as file:
        info = tarfile.TarInfo(name)
        info.size = os.fstat(file.fileno()).st_size  # a log may grow meanwhile
        info.mode = 0o600
        info.mtime = int(path.stat().st_mtime)
        reading = _Hashing(file)
        tar.addfile(info, reading)
    return Entry(bytes=info.size, sha256=reading.digest.hexdigest())


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self.digest.update(chunk)
        return chunk
