"""Lanes: the two kinds of work that a worker claims, launches, watches and settles, each with room of its own.

Trainings share the worker's slots and cores. One dataset at a time is prepared beside them, so that nobody waits for a
training of hours to learn that an upload is no good.
"""

from collections.abc import Collection
from typing import Protocol

from worker.jobs import datasets, queue, records, versions
from worker.jobs.attempt_logs import tail, training_log
from worker.jobs.db import Database
from worker.jobs.errors import Stalled
from worker.jobs.failures import Failure
from worker.jobs.leftovers import remove_others
from worker.jobs.processes import cores
from worker.jobs.settings import Settings
from worker.jobs.states import Outcome, Wish
from worker.jobs.tables import Dataset, Job
from worker.launchers.local import LocalLauncher, Running, preparing_log


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
