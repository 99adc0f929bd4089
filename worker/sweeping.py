"""Files that no row speaks for any more: what a kill leaves behind, and what was deleted; and old jobs."""

import shutil
import time
from pathlib import Path
from typing import Final

import structlog

from worker.jobs import retention, versions
from worker.jobs.db import Database
from worker.jobs.files import DELETED, is_unlocked
from worker.jobs.leftovers import remove_job, remove_others
from worker.jobs.settings import Settings
from worker.jobs.states import DatasetStatus

_ROW_SECONDS: Final = 24 * 3600  # an archive has its row in an instant, unless the database is the wrong one
_LOCK_SECONDS: Final = 10  # what is being received is locked before it is this old
_GONE = (DatasetStatus.INVALID, DatasetStatus.DELETED)
_log = structlog.get_logger()


def sweep(db: Database, data_dir: Path) -> None:
    """Removes archives that are prepared or given up, half-made folders, and what a deleted upload left.

    Prepared folders that have no row at all are left alone: the database may be the wrong one.
    """
    archives = list((data_dir / "uploads").glob("*"))
    half_made = list((data_dir / "datasets").glob(f"{versions.SCRATCH}*"))
    made = [path for path in (data_dir / "datasets").glob("*") if not path.name.startswith(".")]
    states = versions.states(db)  # after the files, so that none of them is younger than what is known
    for path in archives:
        state = states.get(path.stem)
        is_broken_off = path.suffix in (".receiving", ".pictures") and _age(path) > _LOCK_SECONDS and is_unlocked(path)
        is_forgotten = path.suffix == ".archive" and state is None and _age(path) > _ROW_SECONDS
        if state in (DatasetStatus.READY, *_GONE) or is_broken_off or is_forgotten:
            _remove(path)
    for path in half_made:
        if states.get(path.name.removeprefix(versions.SCRATCH).rpartition("-")[0]) is not DatasetStatus.PREPARING:
            _remove(path)
    for path in made:
        state = states.get(path.name.partition(".")[0])
        if state is DatasetStatus.DELETED or (path.is_dir() and state is DatasetStatus.INVALID):  # its log stays
            _remove(path)


def retain(db: Database, settings: Settings) -> bool:
    """Lets go of ended jobs, and of their checkpoints, when they have the age that the settings say: some at a time.

    Returns whether there may be more.
    """
    data_dir, has_more = settings.data_dir, False
    for doomed in (data_dir / "jobs").glob(f"{DELETED}*"):
        _remove(doomed)
    if settings.retain_jobs_days is not None:
        for job_id in retention.delete_old(db, settings.retain_jobs_days):
            has_more = True
            _log.info("job_deleted", job=job_id)
            remove_job(data_dir, job_id)
    if settings.retain_checkpoints_days is not None:
        for job_id, (attempt, kept) in retention.thin_old(db, settings.retain_checkpoints_days).items():
            has_more = True
            _log.info("checkpoints_thinned", job=job_id)
            remove_others(data_dir, job_id, attempt, kept)  # it may have been retried meanwhile
    return has_more


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    _log.info("swept", path=path.name)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
