"""One sink, kept up with the database.

What has been written is recorded afterwards, so a process that is killed in between finds it again as not written:
what it has not begun itself, a process begins with all rows of the job. Rows are added behind those that it knows to
be there, and only while the newest of them is still one of the job's.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from threading import Event
from typing import Final

import structlog
from worker.jobs import sinks
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.sinks import Look
from worker.jobs.states import SinkKind
from worker.jobs.tables import Epoch

from .sink import Sink

_LOOK_SECONDS: Final = 1.0  # between looks at what is trained
_BACKLOG_SECONDS: Final = 300.0  # between looks at all jobs
_SHARE_SECONDS: Final = 1.0  # of a round, for what was missed long ago
_RETRY_SECONDS: Final = 60.0  # at most
_IN_A_ROW: Final = 3  # so many jobs that cannot be written: it is not the jobs
_SAY_SECONDS: Final = 60.0
_log = structlog.get_logger()


@dataclass
class _Held:
    """What this process has written of a job that goes on."""

    attempt: int
    seq: int
    run_id: str | None


@dataclass
class _Delay:
    """After something failed: when it is tried again."""

    tries: int = 0
    until: float = 0.0

    def grow(self) -> float:
        self.tries += 1
        seconds = min(2.0 ** (self.tries - 1), _RETRY_SECONDS)
        self.until = time.monotonic() + seconds
        return seconds


class Pump:
    def __init__(self, kind: SinkKind, db: Database, open_sink: Callable[[], Sink]) -> None:
        self._kind, self._db, self._open = kind, db, open_sink
        self._sink: Sink | None = None
        self._held: dict[str, _Held] = {}
        self._since: datetime | None = None
        self._backlog: Iterator[str] | None = None
        self._backlog_at = 0.0
        self._delay = _Delay()  # of the sink,
        self._delays: dict[str, _Delay] = {}  # and of jobs that alone cannot be written
        self._failures, self._said_at = 0, 0.0

    def run(self, stop: Event) -> None:
        """Until `stop`. Nothing that fails ends it."""
        while not stop.is_set():
            seconds = _LOOK_SECONDS
            try:
                self.turn(stop)
            except Exception as error:
                seconds = self._delay.grow()
                self._say(error, seconds)
            else:
                self._delay = _Delay()
            stop.wait(seconds)

    def turn(self, stop: Event) -> None:
        """Writes what is behind, once. Raises when it is not for one job that it cannot be done."""
        sink = self._sink or self._opened()
        ids, at = sinks.under_way(self._db, self._kind, self._since)
        due = [job_id for job_id, delay in self._delays.items() if delay.until <= time.monotonic()]
        in_a_row = 0
        for job_id in chain(ids, self._for_a_while(chain(due, self._missed()))):
            if stop.is_set():
                return
            if job_id in self._delays and job_id not in due:
                continue
            try:
                self._write(sink, job_id)
                in_a_row = 0
            except DATABASE_AWAY:
                raise
            except Exception as error:
                in_a_row += 1
                self._put_off(job_id, error)
                if in_a_row == _IN_A_ROW:
                    raise
        self._since = at

    def _opened(self) -> Sink:
        sink = self._open()
        if sink.is_new():
            sinks.forget(self._db, self._kind)
        self._sink = sink
        return sink

    def _missed(self) -> Iterator[str]:
        """All jobs that are behind, where the turn before has stopped; now and then from the beginning."""
        if self._backlog is None and time.monotonic() >= self._backlog_at:
            self._backlog = sinks.backlog(self._db, self._kind)
        while self._backlog is not None:  # not `yield from`, which would close it with this
            job_id = next(self._backlog, None)
            if job_id is None:
                self._backlog, self._backlog_at = None, time.monotonic() + _BACKLOG_SECONDS
                return
            yield job_id

    def _for_a_while(self, ids: Iterator[str]) -> Iterator[str]:
        """Until the next look at what is trained is due."""
        deadline = time.monotonic() + _SHARE_SECONDS
        while time.monotonic() < deadline and (job_id := next(ids, None)) is not None:
            yield job_id

    def _write(self, sink: Sink, job_id: str) -> None:
        """Everything that the sink is behind with in one job."""
        found = sinks.look(self._db, self._kind, job_id)
        if found is None:  # deleted
            self._held.pop(job_id, None)
        if found is None or not found.is_behind:
            self._delays.pop(job_id, None)
            return
        job = found.job
        if found.has_ended and job.attempt == 0 and not found.newest:  # never trained
            sinks.record(self._db, job, self._kind, 0)
            return
        held = self._held.pop(job_id, None)  # if something fails, nobody knows what is there
        if held is None or held.attempt != job.attempt or not self._add(sink, found, held):
            held = self._begin(sink, found)
        if found.has_ended:
            sink.end(job, held.run_id)
        is_done = sinks.record(self._db, job, self._kind, held.seq, held.run_id)
        if not is_done:
            self._held[job_id] = held
        self._worked(job_id)

    def _begin(self, sink: Sink, found: Look) -> _Held:
        job = found.job
        if found.known is None:
            sinks.begin(self._db, job.id, self._kind)
        held = _Held(job.attempt, 0, None)

        def noted() -> Iterator[list[Epoch]]:
            for rows in sinks.pages(self._db, job.id, until=found.newest):
                held.seq = rows[-1].seq
                yield rows

        held.run_id = sink.begin(job, noted(), found.known)
        return held

    def _add(self, sink: Sink, found: Look, held: _Held) -> bool:
        """Whether what is held is still there; if not, nothing is written."""
        pages = sinks.pages(self._db, found.job.id, until=found.newest, since=max(held.seq - 1, 0))
        if held.seq:
            first = next(pages, [])
            if not first or first[0].seq != held.seq:
                return False
            pages = chain([first[1:]], pages)
        for rows in filter(None, pages):
            sink.add(found.job, rows, held.run_id)
            held.seq = rows[-1].seq
        return True

    def _put_off(self, job_id: str, error: Exception) -> None:
        seconds = self._delays.setdefault(job_id, _Delay()).grow()
        self._say(error, seconds, job_id)

    def _say(self, error: Exception, seconds: float, job_id: str | None = None) -> None:
        """Now and then."""
        self._failures += 1
        if self._failures > 1 and time.monotonic() - self._said_at < _SAY_SECONDS:
            return
        self._said_at = time.monotonic()
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        _log.warning(
            "sink_failed",
            sink=self._kind,
            job=job_id,
            reason=reason,
            failures=self._failures,
            again_in_seconds=seconds,
        )

    def _worked(self, job_id: str) -> None:
        self._delays.pop(job_id, None)
        if self._failures and not self._delays:
            _log.info("sink_works_again", sink=self._kind, failures=self._failures)
            self._failures = 0
