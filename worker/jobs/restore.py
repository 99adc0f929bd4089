"""Restoring a backup into an epochd that has nothing yet, on SQLite or PostgreSQL."""

import hashlib
import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Final

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col

from . import datasets, queue
from .backup import FILES, FORMAT, MANIFEST, ROWS, Entry, Manifest, copy_rows, scratch_folder
from .db import Database
from .errors import BadBackup, Conflict
from .files import fsync, is_unlocked
from .states import Outcome
from .tables import Dataset, Job

SCRATCH: Final = ".restore-"
_FOLDERS: Final = ("jobs", "datasets", "uploads", "weights")
_CHUNK: Final = 2**20
_MANIFEST_BYTES: Final = 2**28


def restore(db: Database, data_dir: Path, source: IO[bytes]) -> Manifest:
    """Everything or nothing. `db` is migrated.

    Raises Conflict where there is something already, BadBackup, SchemaTooNew, and OSError.
    """
    _require_nothing(db, data_dir)
    moved: list[Path] = []
    with scratch_folder(data_dir, SCRATCH) as scratch:
        manifest = _unpack(source, scratch)
        rows = Database(f"sqlite:///{scratch / ROWS}")
        try:
            rows.migrate()  # of an older epochd, perhaps
            _release(rows)
            os.sync()  # before rows say that the files are there
            _move(scratch / FILES, data_dir, moved)
            with rows.snapshot() as old, db.write() as session:
                copy_rows(old, session.connection())
        except BaseException as error:
            for path in moved:
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, SQLAlchemyError | ValueError):
                why = str(getattr(error, "orig", error)).splitlines()[0]
                raise BadBackup(f"The rows of the backup cannot be brought back: {why}") from error
            raise
        finally:
            rows.close()
    return manifest


def _move(files: Path, data_dir: Path, moved: list[Path]) -> None:
    """Each folder at once; `moved` says which are there."""
    for name in _FOLDERS:
        if (files / name).exists():
            with suppress(FileNotFoundError):
                (data_dir / name).rmdir()  # an empty one
            (files / name).rename(data_dir / name)
            moved.append(data_dir / name)
    fsync(data_dir)


def _require_nothing(db: Database, data_dir: Path) -> None:
    with db.read() as session:
        has_rows = any(session.execute(select(col(table.id)).limit(1)).first() for table in (Job, Dataset))
    if has_rows or any(True for name in _FOLDERS for _ in (data_dir / name).glob("*")):
        raise Conflict(
            "There are jobs, datasets, uploads or weights here already; restore into an empty data folder and database."
        )
    if any(not is_unlocked(path) for path in (data_dir / "workers").glob("*.lock")):
        raise Conflict("A worker is running on this data folder; stop it first.")


def _unpack(source: IO[bytes], scratch: Path) -> Manifest:
    """Into the folder, each file checked."""
    found: dict[str, Entry] = {}
    manifest = None
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for member in tar:
                contents = tar.extractfile(member) if member.isreg() and _is_ours(member.name) else None
                if contents is None or manifest is not None or member.name in found:
                    raise BadBackup
                if member.name == MANIFEST:
                    manifest = Manifest.model_validate_json(contents.read(_MANIFEST_BYTES))
                else:
                    found[member.name] = _write(contents, scratch / member.name)
    except (tarfile.TarError, ValidationError, EOFError) as error:
        raise BadBackup from error
    if manifest is None or manifest.entries != found or ROWS not in found:
        raise BadBackup("The backup is damaged: it is cut off, or a file in it is not what it was.")
    if manifest.format > FORMAT:
        raise BadBackup("The backup was made by a newer epochd; install that version.")
    return manifest


def _is_ours(name: str) -> bool:
    path = PurePosixPath(name)
    if name in (MANIFEST, ROWS):
        return True
    inside = path.parts[:1] == (FILES,) and len(path.parts) > 2 and path.parts[1] in _FOLDERS
    return inside and ".." not in path.parts and str(path) == name and "\0" not in name


def _write(contents: IO[bytes], path: Path) -> Entry:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        while chunk := contents.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return Entry(bytes=size, sha256=digest.hexdigest())


def _release(db: Database) -> None:
    """What was being worked on is given back: nobody is to blame for a backup."""
    with db.read() as session:
        jobs = session.execute(select(col(Job.id), col(Job.attempt)).where(col(Job.worker_id).is_not(None))).all()
        owned = select(col(Dataset.id), col(Dataset.attempt)).where(col(Dataset.worker_id).is_not(None))
        preparing = session.execute(owned).all()
    for job_id, attempt in jobs:
        queue.finish(db, job_id, attempt, Outcome.RELEASED, max_attempts=1)
    for dataset_id, attempt in preparing:
        datasets.finish(db, dataset_id, attempt, Outcome.RELEASED, max_attempts=1)
