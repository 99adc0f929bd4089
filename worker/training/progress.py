"""What runs beside the loops: an iterable around the dataloader that reports progress and can stop between steps."""

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

import structlog

from worker.jobs import records
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.processes import Pulse, Stopped
from worker.jobs.records import Progress
from worker.jobs.states import Phase

from .loops import Batch

_REPORT_SECONDS = 1.0
_SAVE_SHARE = 50  # a save inside an epoch is followed by at least so many times of its own seconds
_log = structlog.get_logger()


class Dataloader(Iterable[Batch], Sized, Protocol):
    """Batches that know how many they are."""


class Reporter:
    """An attempt's voice: where it is, about once a second; and whether it should save, or stop."""

    def __init__(
        self,
        db: Database,
        job_id: str,
        attempt: int,
        epochs: int,
        *,
        checkpoint_seconds: float = math.inf,
        pulse: Callable[[Pulse], None] = lambda _: None,
    ) -> None:
        """`checkpoint_seconds`: how often to save inside an epoch. `pulse` tells the worker that something moves."""
        self._db, self._job_id, self._attempt, self._epochs = db, job_id, attempt, epochs
        self._checkpoint_seconds, self._pulse = checkpoint_seconds, pulse
        self._save: Callable[[int], None] = lambda _: None  # behind which batch of this epoch
        self._save_at = math.inf
        self._stop_requested = False
        self._trained_seconds = 0.0  # in finished epochs of this attempt, testing and saving included
        self._trained_epochs = 0
        self._epoch_started = time.monotonic()
        self._reported = -math.inf
        self._first_batch_pending = True
        self._first = self._batch = 0  # of the epoch's training
        self._now = Progress(Phase.PREPARING, 0, 0, 0, None, None)

    @property
    def phase(self) -> Phase:
        return self._now.phase

    @property
    def place(self) -> str:
        """Where the training is, in words."""
        if self._now.phase is Phase.TESTING:
            return f"in the test of epoch {self._now.epoch}"
        return f"in batch {min(self._batch + 1, self._now.batches)} of epoch {self._now.epoch}"

    @property
    def epoch(self) -> int:
        return self._now.epoch

    def listen(self) -> None:
        """From now on SIGTERM asks this attempt to stop at the next batch."""
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def stop_if_asked(self) -> None:
        """Raises Stopped."""
        if self._stop_requested:
            raise Stopped

    def beat(self) -> None:
        """Something moved."""
        if self._is_time():
            self._pulse(Pulse.MOVED)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Nothing will move in this block, which has time limits of its own."""
        self._pulse(Pulse.WAITING)
        yield
        self._pulse(Pulse.MOVED)

    def begin(self, phase: Phase) -> None:
        """Enters a phase. It is told at once only if nothing was for a while: most are over before anybody looks."""
        self._pulse(Pulse.MOVED)
        self._now = Progress(**vars(self._now) | {"phase": phase})
        self._record_in_time()

    def train(
        self,
        batches: Dataloader,
        epoch: int,
        samples: int,
        *,
        first: int = 0,
        save: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Batch]:
        """Watches an epoch's training batches, of which `first` are trained and do not come any more.

        `save` is called with the number of batches that are trained: from time to time, and when the training is to
        stop.
        """
        self._epoch_started, self._first, self._batch = time.monotonic(), first, first
        self._save, self._save_at = save, time.monotonic() + self._checkpoint_seconds
        self._now = Progress(Phase.TRAINING, epoch, 0, len(batches), None, self._now.eta_seconds)
        self._record_in_time()
        for data in batches:
            yield data
            self._batch += 1
            if self._stop_requested or self._first_batch_pending or self._is_time():  # all that most batches pay for
                self._now = self._trained(samples)
                self._between_batches()
                self._save_in_time()
        self._now = self._trained(samples)

    def test(self, batches: Dataloader) -> Iterator[Batch]:
        """Watches the test batches."""
        self.begin(Phase.TESTING)
        for data in batches:
            yield data
            self._between_batches()

    def epoch_done(self) -> Progress:
        """Progress as of the end of an epoch, for the transaction that records it."""
        self._trained_epochs += 1
        self._trained_seconds += time.monotonic() - self._epoch_started
        left = self._epochs - self._now.epoch
        eta = left * self._trained_seconds / self._trained_epochs
        self._now = Progress(**vars(self._now) | {"eta_seconds": eta})
        return self._now

    def _trained(self, samples: int) -> Progress:
        elapsed, now = time.monotonic() - self._epoch_started, self._now
        own = (self._batch - self._first) / now.batches  # an attempt before this one may have trained the first ones
        if not own:
            return Progress(Phase.TRAINING, now.epoch, self._batch, now.batches, None, now.eta_seconds)
        eta = self._eta(self._batch / now.batches, elapsed / own)
        return Progress(Phase.TRAINING, now.epoch, self._batch, now.batches, own * samples / elapsed, eta)

    def _eta(self, share: float, epoch_seconds: float) -> float:
        """Seconds until the job is done: by whole epochs once there are some, by batches before."""
        left = self._epochs - self._now.epoch + 1 - share
        if self._trained_epochs:
            return left * self._trained_seconds / self._trained_epochs
        return left * epoch_seconds

    def _between_batches(self) -> None:
        if self._stop_requested:
            self._save(self._batch)
            raise Stopped
        if self._first_batch_pending and self._now.phase is Phase.TRAINING:
            self._first_batch_pending = False
            self._record(records.record_first_batch)
        else:
            self._record_in_time()

    def _save_in_time(self) -> None:
        if time.monotonic() < self._save_at or self._batch == self._now.batches:  # the epoch itself is saved soon
            return
        started = time.monotonic()
        self._save(self._batch)
        seconds = time.monotonic() - started
        self._save_at = time.monotonic() + max(self._checkpoint_seconds, _SAVE_SHARE * seconds)

    def _record_in_time(self) -> None:
        if self._is_time():
            self._record()

    def _is_time(self) -> bool:
        return time.monotonic() - self._reported >= _REPORT_SECONDS

    def _record(self, record: Callable[[Database, str, int, Progress], None] = records.record_progress) -> None:
        """Raises StaleAttempt. A database that is away costs a report, never the training."""
        self._pulse(Pulse.MOVED)
        try:
            record(self._db, self._job_id, self._attempt, self._now)
        except DATABASE_AWAY:
            _log.exception("progress_not_recorded")
        self._reported = time.monotonic()

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop_requested = True
