"""Whether rows agree with each other and with the files: for `epochd admin check`."""

import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Integer, case, cast, func, select, text
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from . import files, versions
from .backup import SCRATCH as BACKUP_SCRATCH
from .card import FILES
from .db import Database
from .leftovers import attempt_of
from .restore import SCRATCH as RESTORE_SCRATCH
from .states import OWNED, DatasetStatus, EventKind, Status
from .tables import Alias, Attempt, Checkpoint, Dataset, Epoch, Event, Job, StepCheckpoint

_YOUNG_SECONDS: Final = 60.0  # somebody may just be making it
_CARD: Final = "card.json"


@dataclass(frozen=True)
class Finding:
    subject: str  # a job's id, an alias, or a path relative to the data folder
    sentence: str
    is_orphan: bool = False  # a file or folder that nothing names


def check(db: Database, data_dir: Path, *, digests: bool = False) -> list[Finding]:
    """Everything that is wrong, as far as it can be told while epochd works."""
    seen = _files(data_dir)  # before the rows: what is written meanwhile is not in here
    with db.snapshot() as connection, Session(bind=connection) as session:
        found = [*_of_database(session), *_of_jobs(session), *_of_sequences(session), *_of_aliases(session)]
        named = _named(session)
        known = _Known(session)
    found += _of_files(db, data_dir, named, digests=digests)
    found += [
        Finding(path, "nothing names this.", is_orphan=True)
        for path in seen
        if not known.speaks_for(path, named) and (data_dir / path).exists()  # it may be gone with its row by now
    ]
    return found


def counts(db: Database) -> dict[str, int]:
    """How much there is to be wrong."""
    tables = {"jobs": Job, "checkpoints": Checkpoint, "datasets": Dataset}
    with db.read() as session:
        return {
            name: session.execute(select(func.count()).select_from(each)).scalar_one() for name, each in tables.items()
        }


@dataclass(frozen=True)
class _File:
    owner: str  # the job or dataset
    bytes: int | None = None
    sha256: str | None = None


def _of_database(session: Session) -> Iterator[Finding]:
    if session.get_bind().dialect.name != "sqlite":
        return
    for row in session.execute(text("PRAGMA integrity_check")):
        if row[0] != "ok":
            yield Finding("database", f"{row[0]}.")
    for row in session.execute(text("PRAGMA foreign_key_check")):
        yield Finding("database", f"a row of {row[0]} refers to a row of {row[2]} that is not there.")


def _of_jobs(session: Session) -> Iterator[Finding]:
    """What each job says of itself, beside what its rows say."""
    epochs = (
        select(
            col(Epoch.job_id).label("job_id"),
            func.count().label("rows"),
            func.max(Epoch.epoch).label("last"),
            func.max(Epoch.seq).label("seq"),
        )
        .group_by(col(Epoch.job_id))
        .subquery()
    )
    checkpoints = (
        select(col(Checkpoint.job_id).label("job_id"), func.max(Checkpoint.epoch).label("last"))
        .group_by(col(Checkpoint.job_id))
        .subquery()
    )
    inside = select(col(StepCheckpoint.job_id).label("job_id"), col(StepCheckpoint.epoch).label("epoch")).subquery()
    attempts = (
        select(
            col(Attempt.job_id).label("job_id"),
            func.count().label("rows"),
            func.max(Attempt.number).label("last"),
            func.sum(case((col(Attempt.outcome).is_(None), 1), else_=0)).label("open"),
        )
        .group_by(col(Attempt.job_id))
        .subquery()
    )
    early = select(col(Event.job_id)).where(col(Event.kind) == EventKind.STOPPED_EARLY)
    query = (
        select(
            col(Job.id),
            col(Job.status),
            col(Job.attempt),
            col(Job.last_seq),
            col(Job.imported),
            cast(Job.spec["epochs"].as_string(), Integer).label("wanted"),
            func.coalesce(epochs.c.rows, 0).label("epochs"),
            func.coalesce(epochs.c.last, 0).label("last_epoch"),
            func.coalesce(epochs.c.seq, 0).label("seq"),
            func.coalesce(checkpoints.c.last, 0).label("last_checkpoint"),
            func.coalesce(inside.c.epoch, 0).label("inside"),
            func.coalesce(attempts.c.rows, 0).label("attempts"),
            func.coalesce(attempts.c.last, 0).label("last_attempt"),
            func.coalesce(attempts.c.open, 0).label("open"),
            col(Job.id).in_(early).label("stopped_early"),
        )
        .outerjoin(epochs, epochs.c.job_id == col(Job.id))
        .outerjoin(checkpoints, checkpoints.c.job_id == col(Job.id))
        .outerjoin(inside, inside.c.job_id == col(Job.id))
        .outerjoin(attempts, attempts.c.job_id == col(Job.id))
        .order_by(col(Job.id))
    )
    for row in session.execute(query):
        yield from (Finding(row.id, sentence) for sentence in _of_job(row))


def _of_job(row: Any) -> Iterator[str]:
    if row.epochs != row.last_epoch and not row.imported:
        yield f"it has {row.epochs} rows of metrics for {row.last_epoch} epochs."
    if row.last_checkpoint != row.last_epoch:
        yield f"its newest checkpoint is of epoch {row.last_checkpoint}, its newest metrics of epoch {row.last_epoch}."
    if row.inside > row.last_epoch + 1:  # a smaller one is of an epoch that is done: nobody goes on from it
        yield f"it has a checkpoint inside epoch {row.inside}, its newest metrics are of epoch {row.last_epoch}."
    if row.last_seq < row.seq:
        yield f"its last seq is {row.last_seq}, that of its newest metrics {row.seq}."
    if not row.attempts == row.last_attempt == row.attempt:
        yield f"it is at attempt {row.attempt} and has {row.attempts}, up to number {row.last_attempt}."
    if row.open != (row.status in OWNED):
        yield f"it is {row.status} and has {row.open} attempts that have not ended."
    is_short = row.last_epoch != row.wanted and not row.stopped_early and not row.imported
    if row.status == Status.SUCCEEDED and is_short:
        yield f"it has succeeded with {row.last_epoch} of {row.wanted} epochs."


def _of_sequences(session: Session) -> Iterator[Finding]:
    after = aliased(Epoch)
    falls = (
        select(col(Epoch.job_id), col(Epoch.epoch))
        .join(after, (col(after.job_id) == col(Epoch.job_id)) & (col(after.epoch) == col(Epoch.epoch) + 1))
        .where(col(after.seq) <= col(Epoch.seq))
    )
    for job_id, epoch in session.execute(falls):
        yield Finding(job_id, f"the seq of epoch {epoch + 1} is not above that of epoch {epoch}.")


def _of_aliases(session: Session) -> Iterator[Finding]:
    whole = (col(Checkpoint.job_id) == col(Alias.job_id)) & (col(Checkpoint.epoch) == col(Alias.epoch))
    lost = select(Alias).outerjoin(Checkpoint, whole).where(col(Checkpoint.epoch).is_(None)).order_by(col(Alias.name))
    for alias in session.execute(lost).scalars():
        sentence = f"it points at epoch {alias.epoch} of {alias.job_id}, whose checkpoint is gone."
        yield Finding(f"alias {alias.name}", sentence)


def _named(session: Session) -> dict[str, _File]:
    """The files that rows name, by their paths relative to the data folder."""
    named = {}
    for checkpoint in session.execute(select(Checkpoint)).scalars():
        named[checkpoint.path] = _File(checkpoint.job_id, checkpoint.bytes, checkpoint.sha256)
        if checkpoint.state_path is not None:  # an imported one has none
            named[checkpoint.state_path] = _File(checkpoint.job_id, None, checkpoint.state_sha256)
    for steps in session.execute(select(StepCheckpoint)).scalars():
        named[steps.path] = _File(steps.job_id, steps.bytes, steps.sha256)
    for dataset in session.execute(select(Dataset)).scalars():
        if dataset.status == DatasetStatus.READY:
            folder = versions.folder(dataset)
            named |= {f"{folder}/{name}": _File(f"dataset {dataset.name}") for name in (_CARD, *FILES)}
        elif dataset.status in (DatasetStatus.UPLOADED, DatasetStatus.PREPARING) and dataset.form is not None:
            named[versions.archive_path(dataset.id)] = _File(f"dataset {dataset.name}")
    return named


def _of_files(db: Database, data_dir: Path, named: dict[str, _File], *, digests: bool) -> list[Finding]:
    found = [
        Finding(path, f"{problem} It is of {file.owner}.")
        for path, file in named.items()
        if (problem := _problem(data_dir / path, file, digests=digests))
    ]
    if found:  # a checkpoint that is not kept may be gone by now, and its row too
        with db.read() as session:
            still = _named(session)
        found = [finding for finding in found if finding.subject in still]
    return found


def _problem(path: Path, file: _File, *, digests: bool) -> str | None:
    try:
        if file.bytes is not None and path.stat().st_size != file.bytes:
            return f"it has {path.stat().st_size} bytes instead of {file.bytes}."
        if not path.is_file():
            return "it is missing."
        if digests and file.sha256 is not None and files.sha256(path) != file.sha256:
            return "its contents have changed."
    except OSError:
        return "it is missing."
    return None


def _files(data_dir: Path) -> list[str]:
    """What there is and is not just being made, as far as rows should speak for it."""
    found = [*(data_dir / "jobs").glob("*"), *(data_dir / "jobs").glob("*/checkpoints/*")]
    found += (data_dir / "datasets").glob("*")
    locked = [*(data_dir / "uploads").glob("*"), *data_dir.glob(f"{BACKUP_SCRATCH}*")]  # while somebody is at it
    locked += data_dir.glob(f"{RESTORE_SCRATCH}*")
    found += [path for path in locked if not _is_held(path)]
    return [str(path.relative_to(data_dir)) for path in found if _age(path) > _YOUNG_SECONDS]


def _is_held(path: Path) -> bool:
    """Whether a process has this file or folder locked, or may have for all that can be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


class _Known:
    """The jobs and datasets that there are."""

    def __init__(self, session: Session) -> None:
        jobs = session.execute(select(col(Job.id), col(Job.attempt), col(Job.status))).all()
        self._jobs = {row.id: row for row in jobs}
        datasets = session.execute(select(Dataset)).scalars().all()
        self._datasets = {key: each.status for each in datasets for key in (each.id, Path(versions.folder(each)).name)}

    def speaks_for(self, path: str, named: dict[str, _File]) -> bool:
        top, *rest = Path(path).parts
        if path in named:
            return True
        if top == "jobs" and len(rest) == 1:
            return rest[0] in self._jobs
        if top == "jobs":
            job = self._jobs.get(rest[0])  # without a row its whole folder is found
            return job is None or (job.status in OWNED and attempt_of(Path(path)) == job.attempt)
        return top == "datasets" and self._of_dataset(rest[0])

    def _of_dataset(self, name: str) -> bool:
        """What is being made, what is made (one of which the row does not say so yet waits to be found), and logs."""
        if name.startswith(versions.SCRATCH):
            made = name.removeprefix(versions.SCRATCH).rpartition("-")[0]
            return self._datasets.get(made) == DatasetStatus.PREPARING
        folder, is_log, _ = name.partition(".")
        gone = (None, DatasetStatus.DELETED) if is_log else (None, DatasetStatus.DELETED, DatasetStatus.INVALID)
        return self._datasets.get(folder) not in gone
