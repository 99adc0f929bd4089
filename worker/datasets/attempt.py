"""One attempt at preparing a dataset, in a process of its own, as an attempt at a job is."""

import errno
import gc
import os
import signal
import time
from functools import partial
from types import FrameType
from typing import Final

import structlog
import torch

from worker.jobs import datasets, versions
from worker.jobs.db import DATABASE_AWAY, Database, insist
from worker.jobs.errors import Crashed, DatasetInvalid, DiskFull, EpochdError, Internal, StaleAttempt, Stalled
from worker.jobs.failures import Failure, traceback_tail
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED, Stopped, limit_memory
from worker.jobs.settings import Settings
from worker.jobs.states import Outcome
from worker.jobs.tables import Dataset

from .decoding import DecoderDied
from .preparing import prepare

_REPORT_SECONDS: Final = 0.5
_STALL_SECONDS: Final = 300
_MEMORY_BYTES: Final = 2 * 2**30  # on top of what the preloaded process has mapped
_NICENESS: Final = 10  # a training that runs meanwhile goes first
_log = structlog.get_logger()


def run(settings: Settings, dataset_id: str, attempt: int) -> int:
    """Prepares the dataset and settles it in the database. Returns the exit code of this process."""
    os.nice(_NICENESS)
    gc.freeze()  # what the preloaded process holds, and what 200,000 pictures are noted in, is no garbage:
    gc.set_threshold(100_000)  # looking through it again and again was a third of the time
    torch.set_num_threads(1)  # decoding forks, and who forks must not have run a parallel operation
    db = Database(settings.resolved_database_url)
    dataset = versions.by_id(db, dataset_id)
    if dataset.form is not None:  # strangers' bytes
        limit_memory(_MEMORY_BYTES)
    watch = Watcher(db, dataset_id, attempt)
    watch.listen()
    try:
        _prepare(db, settings, dataset, attempt, watch)
    except StaleAttempt:
        _log.warning("attempt_stale")
        return EXIT_STALE
    except Stopped:
        return EXIT_STOPPED
    return EXIT_DONE


def _prepare(db: Database, settings: Settings, dataset: Dataset, attempt: int, watch: "Watcher") -> None:
    try:
        card = prepare(settings, dataset, watch)
    except (StaleAttempt, *DATABASE_AWAY):
        raise
    except Exception as error:
        told, is_final = _judged(error)
        tail = None if isinstance(error, EpochdError) else traceback_tail(error)
        failure = Failure.of(told, phase=watch.step, traceback_tail=tail)
        _log.error("preparing_failed", code=failure.code, exc_info=error)
        if is_final:
            found = told.card if isinstance(told, DatasetInvalid) else None
            insist(lambda: datasets.set_invalid(db, dataset.id, attempt, failure, found))
        else:
            end = partial(datasets.finish, db, dataset.id, attempt, Outcome.CRASHED, failure)
            insist(partial(end, max_attempts=settings.max_attempts))
            return  # the next attempt needs the archive
    else:
        insist(lambda: datasets.set_ready(db, dataset.id, attempt, card))
        _log.info("dataset_ready", train=card.train_count, test=card.test_count, sha256=card.sha256)
    (settings.data_dir / versions.archive_path(dataset.id)).unlink(missing_ok=True)


def _judged(error: Exception) -> tuple[EpochdError, bool]:
    """What to say of an error, and whether another attempt would meet it again."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(), True
    if isinstance(error, MemoryError):
        return DatasetInvalid("Preparing would take more memory than it may have."), True
    if isinstance(error, DecoderDied):
        return Crashed(str(error)), False
    if isinstance(error, EpochdError):
        return error, not isinstance(error, Stalled)
    return Internal("Preparing stopped on an unexpected error."), False


class Watcher:
    """The attempt's voice: what it does and how far it is; and whether it should stop."""

    def __init__(self, db: Database, dataset_id: str, attempt: int) -> None:
        self._db, self._dataset_id, self._attempt = db, dataset_id, attempt
        self._stop_requested = False
        self._reported = 0.0
        self.step = ""

    def listen(self) -> None:
        """From now on SIGTERM asks this attempt to stop, and a long silence ends it."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGALRM, _on_stall)
        signal.alarm(_STALL_SECONDS)

    def __call__(self, step: str, done: int, total: int) -> None:
        """Raises Stopped and StaleAttempt. A database that is away costs a report, never the work."""
        if self._stop_requested:
            raise Stopped
        at = time.monotonic()
        if step == self.step and at - self._reported < _REPORT_SECONDS:
            return
        self.step, self._reported = step, at
        signal.alarm(0 if step == "fetching" else _STALL_SECONDS)  # who fetches has time limits of his own
        try:
            datasets.record_progress(self._db, self._dataset_id, self._attempt, step, done, total)
        except DATABASE_AWAY:
            _log.exception("progress_not_recorded")

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop_requested = True


def _on_stall(_signal: int, _frame: FrameType | None) -> None:
    raise Stalled(f"Preparing did not get on for {_STALL_SECONDS} seconds.")
