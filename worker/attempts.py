"""A worker's running attempts: started, watched, stopped, settled, whichever lane they are of."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from worker.jobs.errors import StaleAttempt
from worker.jobs.failures import Failure
from worker.jobs.processes import EXIT_STOPPED, EXIT_UNFIT_PARENT
from worker.jobs.settings import Settings
from worker.jobs.states import Outcome, Wish
from worker.jobs.tables import Job
from worker.lanes import Lane
from worker.launchers.local import Running

_DUMP_SECONDS: Final = 1.0  # for the stacks of a stalled attempt
_log = structlog.get_logger()


@dataclass
class Watched:
    """An attempt of ours that is running."""

    process: Running
    stop_deadline: float | None = None  # when it will be killed, once asked to stop
    stall_deadline: float | None = None  # when it will be killed, because nothing moved


class Attempts:
    """Those of one lane."""

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
        about = self._about(row.id, row.attempt)
        if isinstance(row, Job) and row.request_id is not None:
            about["request_id"] = row.request_id  # of the request that made it: from here on the job's id says enough
        _log.info("attempt_started", pid=process.pid, **about)
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
            else:
                self._end_if_stalled(row_id, number, watched)
        return len(self._running) < before

    def end_stalled(self) -> None:
        """What of watching needs no database."""
        for (row_id, number), watched in self._running.items():
            self._end_if_stalled(row_id, number, watched)

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

    def _end_if_stalled(self, row_id: str, attempt: int, watched: Watched) -> None:
        """Says in the log where it hangs, then kills it."""
        stall_seconds = self._lane.stall_seconds
        if stall_seconds is None:
            return
        if watched.stall_deadline is None and watched.process.seconds_still() > stall_seconds:
            pid = watched.process.pid
            _log.warning("attempt_stalled", pid=pid, seconds=stall_seconds, **self._about(row_id, attempt))
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
            _log.info("attempt_settled", outcome=outcome, status=status, **self._about(row_id, attempt))

    def _about(self, row_id: str, attempt: int) -> dict[str, object]:
        """What a line of the log says it is about: the attempt's own lines call it so too."""
        return {"job" if self._lane.name == "training" else "dataset": row_id, "attempt": attempt}
