"""Lanes: the two kinds of work that a worker claims, launches, watches and settles, each with room of its own.

Trainings share the worker's slots and cores. One dataset at a time is prepared beside them, so that nobody waits for a
training of hours to learn that an upload is no good.
"""

import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from worker.jobs import datasets, queue, records, versions
from worker.jobs.attempt_logs import tail, training_log
from worker.jobs.db import Database
from worker.jobs.errors import StaleAttempt, Stalled
from worker.jobs.failures import Failure
from worker.jobs.leftovers import remove_others
from worker.jobs.processes import EXIT_STOPPED, EXIT_UNFIT_PARENT, cores
from worker.jobs.settings import Settings
from worker.jobs.states import Outcome, Wish
from worker.jobs.tables import Dataset, Job
from worker.launchers.local import LocalLauncher, Running, preparing_log

_DUMP_SECONDS: Final = 1.0
_log = structlog.get_logger()


@dataclass
class Watched:
    """An attempt of ours that is running."""

    process: Running
    stop_deadline: float | None = None  # when it will be killed, once asked to stop
    stall_deadline: float | None = None  # when it will be killed, because nothing moved


class Lane(Protocol):
    """What differs between the kinds of work. Ids and attempts are those of a job or of a dataset."""

    name: str
    room: int  # for so many at once
    stall_seconds: float | None  # after so long without a pulse an attempt is killed

    def claim(self, worker_id: str) -> Job | Dataset | None: ...

    def start(self, row_id: str, attempt: int) -> Running: ...

    def owned(self, worker_id: str) -> dict[str, tuple[int, Wish]]:
        """What the worker still owns: id -> (attempt, what is to become of it)."""

    def renew(self, worker_id: str, ids: Collection[str]) -> None: ...

    def failure(self, row_id: str, attempt: int, exit_code: int, *, stalled: bool) -> Failure: ...

    def clean(self, row_id: str, attempt: int) -> None:
        """Removes what an attempt that has left may have left behind."""

    def finish(self, row_id: str, attempt: int, outcome: Outcome, failure: Failure | None) -> str: ...


class TrainingLane:
    name = "training"

    def __init__(self, settings: Settings, db: Database, launcher: LocalLauncher) -> None:
        self._settings, self._db = settings, db
        self.room, self.start = settings.resolved_slots, launcher.train
        self.stall_seconds: float | None = settings.stall_seconds
        self._threads: dict[tuple[str, int], int] = {}  # of the attempts that run

    def claim(self, worker_id: str) -> Job | None:
        free, is_idle = cores() - sum(self._threads.values()), not self._threads
        # Asked much more often than there is work: reading locks nobody out.
        if not queue.has_waiting(self._db, cores=free, is_idle=is_idle):
            return None
        slots = self.room - len(self._threads)
        lease = self._settings.lease_seconds
        job = queue.claim(self._db, worker_id, lease, cores=free, slots=slots, is_idle=is_idle)
        if job is not None:
            self._threads[job.id, job.attempt] = job.threads or 1
        return job

    def owned(self, worker_id: str) -> dict[str, tuple[int, Wish]]:
        return queue.owned(self._db, worker_id)

    def renew(self, worker_id: str, ids: Collection[str]) -> None:
        queue.renew(self._db, worker_id, self._settings.lease_seconds, ids)

    def failure(self, row_id: str, attempt: int, exit_code: int, *, stalled: bool) -> Failure:
        phase = queue.phase(self._db, row_id)
        said = tail(self._settings.data_dir / training_log(row_id, attempt))
        if stalled:
            detail = f"Nothing moved for {self.stall_seconds:g} seconds, so the training was killed."
            hint = "The log says where; if a step may take so long, raise EPOCHD_STALL_SECONDS."
            return Failure.of(Stalled(detail, hint=hint), phase=phase, log_tail=said)
        hint = f"The attempt's log may say more: GET /jobs/{row_id}/logs?attempt={attempt}"
        return Failure.of_exit(exit_code, phase=phase, log_tail=said, hint=hint)

    def clean(self, row_id: str, attempt: int) -> None:
        remove_others(self._settings.data_dir, row_id, attempt, records.files(self._db, row_id))

    def finish(self, row_id: str, attempt: int, outcome: Outcome, failure: Failure | None) -> str:
        self._threads.pop((row_id, attempt), None)  # whatever the database says, they are free
        return queue.finish(self._db, row_id, attempt, outcome, failure, max_attempts=self._settings.max_attempts)


class PreparingLane:
    name = "preparing"
    room: int = 1
    stall_seconds: float | None = None  # it watches itself

    def __init__(self, settings: Settings, db: Database, launcher: LocalLauncher) -> None:
        self._settings, self._db = settings, db
        self.start = launcher.prepare

    def claim(self, worker_id: str) -> Dataset | None:
        if not datasets.has_waiting(self._db):
            return None
        return datasets.claim(self._db, worker_id, self._settings.lease_seconds)

    def owned(self, worker_id: str) -> dict[str, tuple[int, Wish]]:
        found = datasets.owned(self._db, worker_id)
        return {dataset_id: (attempt, Wish.GO_ON) for dataset_id, attempt in found.items()}

    def renew(self, worker_id: str, ids: Collection[str]) -> None:
        datasets.renew(self._db, worker_id, self._settings.lease_seconds, ids)

    def failure(self, row_id: str, attempt: int, exit_code: int, *, stalled: bool) -> Failure:  # noqa: ARG002
        phase, log = versions.by_id(self._db, row_id).step, preparing_log(row_id, attempt)
        said = tail(self._settings.data_dir / log)
        hint = f"The log of the attempt may say more: {log} in the data folder."
        return Failure.of_exit(exit_code, phase=phase, log_tail=said, hint=hint, what="preparing")

    def clean(self, row_id: str, attempt: int) -> None:
        """The sweep does that."""

    def finish(self, row_id: str, attempt: int, outcome: Outcome, failure: Failure | None) -> str:
        return datasets.finish(self._db, row_id, attempt, outcome, failure, max_attempts=self._settings.max_attempts)


class Attempts:
    """A worker's running attempts of one lane."""

    def __init__(self, lane: Lane, settings: Settings, worker_id: str) -> None:
        self._lane, self._settings, self._worker_id = lane, settings, worker_id
        self._running: dict[tuple[str, int], Watched] = {}

    def __iter__(self) -> Iterator[Running]:
        return iter([watched.process for watched in self._running.values()])

    def renew(self) -> None:
        if self._running:
            self._lane.renew(self._worker_id, [row_id for row_id, _ in self._running])

    def claim(self) -> bool:
        """Starts one more, when there is room and work. Raises RuntimeError when none can be started any more."""
        if len(self._running) >= self._lane.room:
            return False
        row = self._lane.claim(self._worker_id)
        if row is None:
            return False
        try:
            process = self._lane.start(row.id, row.attempt)
        except (EOFError, OSError) as error:  # the fault is this worker's: no row should pay for it
            self._finish(row.id, row.attempt, Outcome.RELEASED, None)
            raise RuntimeError("the preloaded process cannot be started; the log has its last words") from error
        self._running[row.id, row.attempt] = Watched(process)
        _log.info("attempt_started", lane=self._lane.name, id=row.id, attempt=row.attempt, pid=process.pid)
        return True

    def watch(self) -> bool:
        """Settles what has ended, stops what was cancelled, kills what is no longer ours. True when any has ended."""
        if not self._running:
            return False
        owned = self._lane.owned(self._worker_id)
        before = len(self._running)
        for (row_id, number), watched in list(self._running.items()):
            attempt, wish = owned.get(row_id, (None, Wish.GO_ON))
            if watched.process.exit_code is not None:
                self._settle(row_id, number, given_back=watched.stop_deadline is not None)
            elif attempt != number:
                self._kill_disowned(watched)
            elif wish is not Wish.GO_ON:
                self._stop(watched, at_once=wish is Wish.STOP_NOW)
            elif self._lane.stall_seconds is not None:
                self._end_stalled(watched, self._lane.stall_seconds)
        return len(self._running) < before

    def ask_to_stop(self) -> None:
        for each in self:
            each.stop()

    def give_back(self, *, kill: bool) -> None:
        """Returns what has left to the queue without counting the attempt."""
        for (row_id, number), watched in list(self._running.items()):
            if kill:
                watched.process.kill()
            if watched.process.exit_code is not None:
                self._settle(row_id, number, given_back=True)

    def _kill_disowned(self, watched: Watched) -> None:
        """An attempt without its row has a moment to leave by itself: it may just have finished."""
        if watched.stop_deadline is None:
            watched.stop_deadline = time.monotonic() + self._settings.heartbeat_seconds
        elif time.monotonic() > watched.stop_deadline:
            watched.process.kill()

    def _stop(self, watched: Watched, *, at_once: bool) -> None:
        if watched.stop_deadline is None:
            watched.process.stop()
            watched.stop_deadline = time.monotonic() + self._settings.cancel_seconds
        if at_once or time.monotonic() > watched.stop_deadline:
            watched.process.kill()

    def _end_stalled(self, watched: Watched, stall_seconds: float) -> None:
        """Says in the log where it hangs, then kills it."""
        if watched.stall_deadline is None and watched.process.seconds_still() > stall_seconds:
            _log.warning("attempt_stalled", pid=watched.process.pid, seconds=stall_seconds)
            watched.process.dump_stacks()
            watched.stall_deadline = time.monotonic() + _DUMP_SECONDS
        elif watched.stall_deadline is not None and time.monotonic() > watched.stall_deadline:
            watched.process.kill()

    def _settle(self, row_id: str, attempt: int, *, given_back: bool = False) -> None:
        """Ends an attempt whose process has left, unless it has already said itself how it ended.

        One that was asked to stop (`given_back`) is not to blame for how it went, even if it had to be killed.
        """
        watched = self._running[row_id, attempt]
        process, stalled = watched.process, watched.stall_deadline is not None
        code = process.exit_code
        assert code is not None
        process.kill()  # whatever it may have left behind in its session
        failure = None
        if given_back or code in (EXIT_STOPPED, EXIT_UNFIT_PARENT):
            outcome = Outcome.RELEASED
        else:
            failure = self._lane.failure(row_id, attempt, code, stalled=stalled)
            outcome = Outcome.STALLED if stalled else Outcome.KILLED if code < 0 else Outcome.CRASHED
        self._finish(row_id, attempt, outcome, failure)
        self._lane.clean(row_id, attempt)
        del self._running[row_id, attempt]
        if code == EXIT_UNFIT_PARENT:
            raise RuntimeError("the preloaded process is not fit to fork; see the attempt's log")

    def _finish(self, row_id: str, attempt: int, outcome: Outcome, failure: Failure | None) -> None:
        with suppress(StaleAttempt):  # the usual case: the attempt has settled itself
            status = self._lane.finish(row_id, attempt, outcome, failure)
            _log.info("attempt_settled", id=row_id, attempt=attempt, outcome=outcome, status=status)
