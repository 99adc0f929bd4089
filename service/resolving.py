"""Which checkpoint a request means, remembered for a moment: looking it up takes longer than the network does."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, NamedTuple

from starlette.concurrency import run_in_threadpool
from worker.jobs import aliases, queue, records
from worker.jobs.db import Database
from worker.jobs.owners import Caller
from worker.jobs.processes import cores
from worker.jobs.tables import Checkpoint

DEFAULT: Final = "default"  # the alias that answers when a request names neither job nor model
_FRESH_SECONDS: Final = 0.2
_USABLE_SECONDS: Final = 1.0  # while it is looked up anew: under load that takes a while, and nobody should wait for it
_MOST: Final = 1024


class Wanted(NamedTuple):
    """`best`, `last` or the number of an epoch, of a job or of the job that a model (an alias) points at."""

    caller: Caller
    job: str | None
    model: str | None
    which: str | None


class Resolver:
    def __init__(self, db: Database) -> None:
        self.db = db
        self._known: dict[Wanted, tuple[Checkpoint, float]] = {}  # and since when
        self._looking: dict[Wanted, asyncio.Task[Checkpoint]] = {}
        self.threads = 1  # for a prediction: a running job keeps its cores

    async def find(
        self, caller: Caller, *, job: str | None = None, model: str | None = None, which: str | None = None
    ) -> Checkpoint:
        """As it was up to 0.2 s ago, under load up to a second, unless `forget` was called since.

        Raises NotFound and NotReady.
        """
        wanted = Wanted(caller, job, model, which)
        row, age = self._remembered(wanted)
        if row is not None and age < _FRESH_SECONDS:
            return row
        looking = self._looking.get(wanted)
        if looking is None:
            looking = self._looking[wanted] = asyncio.create_task(self._look(wanted))
            looking.add_done_callback(_retrieved)
        if row is not None and age < _USABLE_SECONDS:
            return row
        return await asyncio.shield(looking)  # others wait for it too

    def forget(self) -> None:
        """Something changed that a name may mean."""
        self._known.clear()
        self._looking.clear()  # what they find may be of before

    def _remembered(self, wanted: Wanted) -> tuple[Checkpoint | None, float]:
        row, since = self._known.get(wanted, (None, 0.0))
        return row, time.monotonic() - since

    async def _look(self, wanted: Wanted) -> Checkpoint:
        task = asyncio.current_task()
        try:
            row, self.threads = await run_in_threadpool(self._find, wanted)
            if self._looking.get(wanted) is task:
                if len(self._known) >= _MOST:
                    self._known.clear()
                self._known[wanted] = row, time.monotonic()
            return row
        finally:
            if self._looking.get(wanted) is task:
                del self._looking[wanted]

    def _find(self, wanted: Wanted) -> tuple[Checkpoint, int]:
        threads = 1 if queue.is_any_owned(self.db) else cores()
        return find(self.db, wanted), threads


@dataclass(frozen=True)
class CallerResolver:
    """What a request's names mean to who sends it."""

    resolver: Resolver
    caller: Caller

    @property
    def threads(self) -> int:
        return self.resolver.threads

    async def find(self, *, job: str | None = None, model: str | None = None, which: str | None = None) -> Checkpoint:
        """See `Resolver.find`."""
        return await self.resolver.find(self.caller, job=job, model=model, which=which)

    def forget(self) -> None:
        self.resolver.forget()


def _retrieved(looking: asyncio.Task[Checkpoint]) -> None:
    if not looking.cancelled():
        looking.exception()  # whoever waited has it; asyncio would complain where nobody did


def find(db: Database, wanted: Wanted) -> Checkpoint:
    """As the database has it now. Raises NotFound and NotReady."""
    caller, job, model, which = wanted
    if job is None and model is None:
        if any(each.alias.name == DEFAULT for each in aliases.every(db, caller)):
            return find(db, Wanted(caller, None, DEFAULT, which))
        job = records.newest_succeeded(db, caller)
    if model is not None:
        if which is None:
            return aliases.target(db, model, caller)
        job = aliases.get(db, model, caller).job_id
    assert job is not None
    return records.checkpoint(db, queue.get(db, job, caller).id, which or "best").row
