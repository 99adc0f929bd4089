"""The worker's parent process: claims jobs, launches attempts, watches them, settles them, rescues lost ones.

It never loads torch. Signals set a flag; the one loop below acts on it.
"""

import fcntl
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from worker.jobs import queue
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import StaleAttempt
from worker.jobs.failures import Failure
from worker.jobs.processes import EXIT_STOPPED, EXIT_UNFIT_PARENT
from worker.jobs.settings import Settings
from worker.jobs.tables import Outcome, Status
from worker.launchers.local import LocalLauncher, Running, wait_any

_DATABASE_RETRY_SECONDS: Final = 1.0
_log = structlog.get_logger()


@dataclass
class Watched:
    """An attempt of ours that is running."""

    process: Running
    stop_deadline: float | None = None  # when it will be killed, once asked to stop


class Supervisor:
    def __init__(self, settings: Settings, db: Database, launcher: LocalLauncher) -> None:
        self._settings, self._db, self._launcher = settings, db, launcher
        self._id = str(uuid.uuid4())  # a new one at each start: a restarted host is not the same worker
        self._running: dict[tuple[str, int], Watched] = {}
        self._signals: list[int] = []
        self._next_heartbeat = 0.0

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; gives its jobs back then. A second signal leaves at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with self._lock():
            self._rescue()
            self._launcher.warm_up()
            queue.register(self._db, self._id, socket.gethostname())  # only now: who cannot fork is no worker
            _log.info("worker_ready", worker=self._id, slots=self._settings.slots)
            while not self._signals:
                try:
                    self._tick()
                except DATABASE_AWAY:  # the jobs train on meanwhile
                    _log.exception("database_away")
                    time.sleep(_DATABASE_RETRY_SECONDS)
            self._give_back()
            queue.deregister(self._db, self._id)
        _log.info("worker_stopped", worker=self._id)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Holds a lock that the kernel lets go of when this process dies, however it dies.

        Its file stays when something goes wrong: whoever finds it unlocked knows at once that this worker is gone.
        """
        folder = self._settings.data_dir / "workers"
        folder.mkdir(parents=True, exist_ok=True)
        lock, unlocked = folder / f"{self._id}.lock", folder / f".{self._id}"
        with unlocked.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            unlocked.rename(lock)  # no other worker ever sees it unlocked while this one lives
            yield
            lock.unlink()

    def _tick(self) -> None:
        if time.monotonic() >= self._next_heartbeat:
            watched = [job_id for job_id, _ in self._running]
            queue.heartbeat(self._db, self._id, self._settings.lease_seconds, watched)
            self._next_heartbeat = time.monotonic() + self._settings.heartbeat_seconds
            self._rescue()
        self._watch()
        if len(self._running) < self._settings.slots and queue.has_queued(self._db):
            self._claim()
        wait_any([each.process for each in self._running.values()], self._settings.poll_seconds)

    def _claim(self) -> None:
        job = queue.claim(self._db, self._id, self._settings.lease_seconds)
        if job is None:
            return
        try:
            process = self._launcher.start(job.id, job.attempt)
        except (EOFError, OSError) as error:  # the fault is this worker's: no job should pay for it
            self._finish(job.id, job.attempt, Outcome.RELEASED, None)
            raise RuntimeError("the preloaded process cannot be started; the log has its last words") from error
        self._running[job.id, job.attempt] = Watched(process)
        _log.info("attempt_started", job=job.id, attempt=job.attempt, pid=process.pid)

    def _watch(self) -> None:
        """Settles what has ended, stops what was cancelled, kills what is no longer ours."""
        if not self._running:
            return
        owned = queue.owned(self._db, self._id)
        for (job_id, number), watched in list(self._running.items()):
            attempt, status = owned.get(job_id, (None, None))
            if watched.process.exit_code is not None:
                self._settle(job_id, number, given_back=watched.stop_deadline is not None)
            elif attempt != number:
                self._kill_disowned(watched)
            elif status is Status.CANCELLING:
                self._stop(watched)

    def _kill_disowned(self, watched: Watched) -> None:
        """An attempt without its job has a moment to leave by itself: it may just have finished."""
        if watched.stop_deadline is None:
            watched.stop_deadline = time.monotonic() + self._settings.heartbeat_seconds
        elif time.monotonic() > watched.stop_deadline:
            watched.process.kill()

    def _stop(self, watched: Watched) -> None:
        if watched.stop_deadline is None:
            watched.process.stop()
            watched.stop_deadline = time.monotonic() + self._settings.cancel_seconds
        elif time.monotonic() > watched.stop_deadline:
            watched.process.kill()

    def _settle(self, job_id: str, attempt: int, *, given_back: bool = False) -> None:
        """Ends an attempt whose process has left, unless it has already said itself how it ended.

        One that was asked to stop (`given_back`) is not to blame for how it went, even if it had to be killed.
        """
        process = self._running[job_id, attempt].process
        code = process.exit_code
        assert code is not None
        process.kill()  # whatever it may have left behind in its session
        failure = None
        if given_back or code in (EXIT_STOPPED, EXIT_UNFIT_PARENT):
            outcome = Outcome.RELEASED
        else:
            log = f"jobs/{job_id}/attempt-{attempt}.log"
            failure = Failure.of_exit(code, log=log, phase=queue.get(self._db, job_id).phase)
            outcome = Outcome.KILLED if code < 0 else Outcome.CRASHED
        self._finish(job_id, attempt, outcome, failure)
        del self._running[job_id, attempt]
        if code == EXIT_UNFIT_PARENT:
            raise RuntimeError("the preloaded process is not fit to fork; see the attempt's log")

    def _finish(self, job_id: str, attempt: int, outcome: Outcome, failure: Failure | None) -> None:
        maximum = self._settings.max_attempts
        with suppress(StaleAttempt):  # the usual case: the attempt has settled itself
            status = queue.finish(self._db, job_id, attempt, outcome, failure, max_attempts=maximum)
            _log.info("attempt_settled", job=job_id, attempt=attempt, outcome=outcome, status=status)

    def _give_back(self) -> None:
        """Asks every attempt to stop, and returns its job to the queue without counting the attempt."""
        for watched in self._running.values():
            watched.process.stop()
        deadline = time.monotonic() + self._settings.cancel_seconds
        while self._running:
            if len(self._signals) > 1 or time.monotonic() > deadline:
                for watched in self._running.values():
                    watched.process.kill()
            wait_any([each.process for each in self._running.values()], self._settings.poll_seconds)
            for (job_id, number), watched in list(self._running.items()):
                if watched.process.exit_code is not None:
                    with suppress(*DATABASE_AWAY):  # the next round tries again
                        self._settle(job_id, number, given_back=True)

    def _rescue(self) -> None:
        dead = [path.stem for path in self._lock_files() if _is_unlocked(path)]
        rescued = queue.rescue(self._db, max_attempts=self._settings.max_attempts, dead_workers=dead)
        for worker_id in dead:
            (self._settings.data_dir / "workers" / f"{worker_id}.lock").unlink(missing_ok=True)
        if rescued:
            _log.warning("jobs_rescued", jobs=rescued)

    def _lock_files(self) -> list[Path]:
        folder = self._settings.data_dir / "workers"
        return [path for path in folder.glob("*.lock") if path.stem != self._id]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)


def _is_unlocked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
