"""What happens to jobs, for all who wait to hear of it: long polls and event streams.

One look into the database at a time serves everybody: it asks for the state of the jobs that somebody follows, and
wakes those whose job has changed. What is new is read once for all of them; who comes later, or is slow, reads what he
missed by himself, from where he is: nobody loses anything, and nobody who is slow costs memory.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import structlog
from starlette.concurrency import run_in_threadpool
from worker.jobs import following, records
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import TooManyStreams
from worker.jobs.following import Mark

from .bodies.metrics import MetricsRow

_RECENT: Final = 256  # rows of a job that are remembered for those who follow it
_LOOK_SECONDS: Final = 0.25
_log = structlog.get_logger()


class Row(NamedTuple):
    """One epoch's metrics, as JSON."""

    seq: int
    json: str


def rows(db: Database, job_id: str, since: int, limit: int | None = None) -> list[Row]:
    found = records.epochs(db, job_id, since=since, limit=limit)
    return [Row(each.seq, MetricsRow.model_validate(each).model_dump_json()) for each in found]


class _Followed:
    """A job that somebody follows."""

    def __init__(self) -> None:
        self.mark: Mark | None = None  # as of the last look; None before the first
        self.is_gone = False
        self.followers = 0
        self.changed = asyncio.Event()
        self.recent: deque[Row] = deque(maxlen=_RECENT)  # what came while somebody followed

    def news(self, since: int) -> list[Row] | None:
        """The rows behind `since`; None when some of them are not remembered."""
        if self.mark is None or since < (self.recent[0].seq - 1 if self.recent else self.mark.last_seq):
            return None
        return [row for row in self.recent if row.seq > since]


class Feed:
    def __init__(self, db: Database, most: int) -> None:
        self.db, self._most = db, most
        self._jobs: dict[str, _Followed] = {}
        self._looking: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.open = 0  # streams and long polls
        self._closing = asyncio.Event()

    @property
    def is_closing(self) -> bool:
        return self._closing.is_set()

    def close_soon(self) -> None:
        """From a signal's handler."""
        self._loop.call_soon_threadsafe(self.close)

    def close(self) -> None:
        """Lets everybody go: the service is about to stop."""
        self._closing.set()
        for job in self._jobs.values():
            job.changed.set()
        if self._looking is not None:
            self._looking.cancel()

    @contextmanager
    def follow(self, job_id: str) -> Iterator["Follower"]:
        """Raises TooManyStreams."""
        if self.open >= self._most:
            raise TooManyStreams
        job = self._jobs.setdefault(job_id, _Followed())
        job.followers += 1
        self.open += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            yield Follower(self, job_id, job)
        finally:
            self.open -= 1
            job.followers -= 1
            if not job.followers:
                del self._jobs[job_id]

    async def _look(self) -> None:
        """As long as there is anybody."""
        while self._jobs:
            wanted = {job_id: job.mark.last_seq if job.mark else None for job_id, job in self._jobs.items()}
            try:
                marks, news = await run_in_threadpool(self._read, wanted)
            except DATABASE_AWAY:
                _log.warning("feed_without_database")
            except Exception:  # whatever it is, those who follow are not left alone
                _log.exception("feed_failed")
            else:
                for job_id in wanted:
                    self._note(job_id, marks.get(job_id), news.get(job_id, []))
            await asyncio.sleep(_LOOK_SECONDS)

    def _read(self, wanted: dict[str, int | None]) -> tuple[dict[str, Mark], dict[str, list[Row]]]:
        """Where the jobs stand, and what came since the last look."""
        marks = following.marks(self.db, list(wanted))
        grown = {job_id: seq for job_id, seq in wanted.items() if seq is not None and job_id in marks}
        since = {job_id: seq for job_id, seq in grown.items() if marks[job_id].last_seq > seq}
        return marks, {job_id: rows(self.db, job_id, seq, _RECENT) for job_id, seq in since.items()}

    def _note(self, job_id: str, mark: Mark | None, news: list[Row]) -> None:
        job = self._jobs.get(job_id)
        if job is None or (job.mark == mark and mark is not None):
            return
        if mark is not None and job.mark is not None and mark.last_seq != job.mark.last_seq:
            # A row that was written between the two questions is new again at the next look.
            known = [row for row in news if row.seq <= mark.last_seq]
            if not known or known[-1].seq != mark.last_seq:  # more than are read at once: who follows reads by himself
                job.recent.clear()
            else:
                job.recent.extend(known)
        job.mark, job.is_gone = mark, mark is None
        job.changed.set()
        job.changed = asyncio.Event()  # who waits has the one of before


class Follower:
    """One who follows a job."""

    def __init__(self, feed: Feed, job_id: str, job: _Followed) -> None:
        self._feed, self._job_id, self._job = feed, job_id, job

    @property
    def is_over(self) -> bool:
        """Nothing more will be told here: the job was deleted, or the service is about to stop."""
        return self._job.is_gone or self._feed.is_closing

    async def change(self, since: Mark | None, seconds: float) -> Mark | None:
        """Waits until the job is not as at `since` any more, so long at most. None: nothing changed, or `is_over`."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not self.is_over:
            if self._job.mark is not None and self._job.mark != since:
                return self._job.mark
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._job.changed.wait(), left)
        return None

    async def news(self, since: int, limit: int) -> list[Row]:
        """The rows behind `since`, up to so many: those that all followers share, or from the database."""
        remembered = self._job.news(since)
        if remembered is not None:
            return remembered[:limit]
        return await run_in_threadpool(rows, self._feed.db, self._job_id, since, limit)
