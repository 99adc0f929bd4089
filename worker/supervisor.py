"""The worker's parent process: gives both lanes their turns, keeps the leases, rescues what dead workers left.

It never loads torch. Signals set a flag; the one loop below acts on it.
"""

import fcntl
import math
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from worker.attempts import Attempts
from worker.jobs import datasets, queue, sweeps, workers
from worker.jobs.db import DATABASE_AWAY, Database, insist
from worker.jobs.files import is_unlocked
from worker.jobs.settings import Settings
from worker.lanes import PreparingLane, TrainingLane
from worker.launchers.local import LocalLauncher, wait_any
from worker.sweeping import retain, sweep

BUSY_SECONDS: Final = 2.0  # who waited longer for a lock would not see a training hang that holds it
_DATABASE_RETRY_SECONDS: Final = 1.0
_SWEEP_SECONDS: Final = 60.0
_BUSY_POLLS: Final = 10
_log = structlog.get_logger()


class Judge:
    """Whether this worker may take another's lease for run out.

    Who was kept from his own heartbeat (by a database that was away or locked, a machine that slept, a clock that was
    set) has to suppose that others were too, and gives them the time of a lease to renew theirs.
    """

    def __init__(self, settings: Settings) -> None:
        self._lease = settings.lease_seconds
        self._longest = max(2 * settings.heartbeat_seconds, settings.lease_seconds / 2)  # between two heartbeats
        self._steady, self._wall = time.monotonic(), time.time()
        self._not_before = -math.inf

    def may(self) -> bool:
        """Asked once a heartbeat, behind it."""
        steady, wall = time.monotonic(), time.time()
        passed, drift = steady - self._steady, (wall - self._wall) - (steady - self._steady)
        self._steady, self._wall = steady, wall
        if passed > self._longest or abs(drift) > self._longest / 2:
            self._not_before = steady + self._lease
        return steady >= self._not_before


class Supervisor:
    def __init__(self, settings: Settings, db: Database, launcher: LocalLauncher) -> None:
        self._settings, self._db, self._launcher = settings, db, launcher
        self._id = str(uuid.uuid4())  # a new one at each start: a restarted host is not the same worker
        lanes = (TrainingLane(settings, db, launcher), PreparingLane(settings, db, launcher))
        self._lanes = [Attempts(lane, settings, self._id) for lane in lanes]
        self._signals: list[int] = []
        self._judge = Judge(settings)
        self._next_heartbeat = self._next_sweep = 0.0

    def run(self) -> None:
        """Works until SIGTERM or SIGINT; gives its jobs back then. A second signal leaves at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        with self._lock():
            insist(lambda: self._rescue(judge_leases=True))
            self._launcher.warm_up()
            # Only now: who cannot fork is no worker.
            insist(lambda: workers.register(self._db, self._id, socket.gethostname()))
            _log.info("worker_ready", worker=self._id, slots=self._settings.resolved_slots)
            while not self._signals:
                try:
                    self._tick()
                except DATABASE_AWAY:  # the jobs train on meanwhile
                    _log.exception("database_away")
                    for attempts in self._lanes:
                        attempts.end_stalled()  # one of them may be what holds the database
                    time.sleep(_DATABASE_RETRY_SECONDS)
            self._give_back()
            with suppress(*DATABASE_AWAY):  # then the next worker finds the lock let go of
                workers.deregister(self._db, self._id)
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
            workers.heartbeat(self._db, self._id)
            for attempts in self._lanes:
                attempts.renew()
            self._next_heartbeat = time.monotonic() + self._settings.heartbeat_seconds
            self._rescue(judge_leases=self._judge.may())
        training, preparing = self._lanes
        if training.watch():
            self._settle_sweeps()
        if preparing.watch():
            self._tidy(now=True)
        claimed = [attempts.claim() for attempts in self._lanes]
        if not any(claimed):  # else there may be more
            self._wait()

    def _tidy(self, *, now: bool = False) -> None:
        """What follows from a dataset's or a job's end, whoever saw it end."""
        if failed := queue.fail_hopeless(self._db):
            _log.warning("jobs_without_dataset", jobs=failed)
        self._settle_sweeps()
        if now or time.monotonic() >= self._next_sweep:
            sweep(self._db, self._settings.data_dir)
            has_more = retain(self._db, self._settings)
            self._next_sweep = time.monotonic() + (0 if has_more else _SWEEP_SECONDS)  # 0: with the next heartbeat

    def _settle_sweeps(self) -> None:
        for sweep_id in sweeps.settle(self._db):
            _log.info("sweep_settled", sweep=sweep_id)

    def _wait(self) -> None:
        """An idle worker looks often, so that a job begins at once; a busy one seldom, so that it does not take the
        jobs' cores from them: threads that wait for one another lose more than the time that one of them loses."""
        running = [process for attempts in self._lanes for process in attempts]
        seconds = self._settings.poll_seconds * (_BUSY_POLLS if running else 1)
        until_heartbeat = self._next_heartbeat - time.monotonic()
        wait_any(running, min(seconds, until_heartbeat) if until_heartbeat > 0 else seconds)

    def _give_back(self) -> None:
        """Asks every attempt to stop, and returns its job to the queue without counting the attempt."""
        for attempts in self._lanes:
            attempts.ask_to_stop()
        deadline = time.monotonic() + self._settings.cancel_seconds
        while any(True for attempts in self._lanes for _ in attempts):
            self._wait()
            kill = len(self._signals) > 1 or time.monotonic() > deadline
            for attempts in self._lanes:
                with suppress(*DATABASE_AWAY):  # the next round tries again
                    attempts.give_back(kill=kill)

    def _rescue(self, *, judge_leases: bool) -> None:
        dead = [path.stem for path in self._lock_files() if is_unlocked(path)]
        maximum = self._settings.max_attempts
        prepared = datasets.rescue(self._db, max_attempts=maximum, dead_workers=dead, expired=judge_leases)
        rescued = queue.rescue(self._db, max_attempts=maximum, dead_workers=dead, expired=judge_leases)
        for worker_id in dead:
            (self._settings.data_dir / "workers" / f"{worker_id}.lock").unlink(missing_ok=True)
        if prepared or rescued:
            _log.warning("rescued", jobs=rescued, datasets=prepared)
        self._tidy()

    def _lock_files(self) -> list[Path]:
        folder = self._settings.data_dir / "workers"
        return [path for path in folder.glob("*.lock") if path.stem != self._id]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
