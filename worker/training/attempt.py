"""One attempt at a job, from its row to its last checkpoint. Runs in a process of its own."""

import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from typing import Any, Final, get_args

import structlog
import torch

from worker.datasets.looks import Looks, summarise
from worker.datasets.opening import open_prepared
from worker.jobs import queue, records, suiting, versions
from worker.jobs.card import Card
from worker.jobs.db import DATABASE_AWAY, Database, insist
from worker.jobs.errors import DiskFull, Diverged, EpochdError, Internal, OutOfMemory, StaleAttempt
from worker.jobs.failures import JOB_CODES, Failure, traceback_tail
from worker.jobs.files import told_when_full
from worker.jobs.leftovers import remove_others
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED, Pulse, Stopped, cores
from worker.jobs.records import EpochResult, Resumed
from worker.jobs.settings import Settings
from worker.jobs.spec import Metric, Spec
from worker.jobs.states import EventKind, Outcome, Phase
from worker.jobs.tables import Job
from worker.networks import whole

from . import arithmetic, checkpoints, device, memory, provenance, threads
from .arithmetic import Arithmetic
from .engine import Engine
from .plan import check_single_pictures
from .progress import Reporter
from .resuming import resume
from .stopping import epochs_without_improvement

_OUT_OF_MEMORY: Final = OutOfMemory(
    "There is not enough memory beside the batches: for the network, the optimizer, or saving them.",
    hint="Take a smaller network or an optimizer that remembers less, such as sgd, or allow more memory.",
)
_NETWORK_SECONDS: Final = 60.0
_log = structlog.get_logger()


def run(
    settings: Settings,
    job_id: str,
    attempt: int,
    exact: Sequence[Arithmetic] = ("highest",),
    pulse: Callable[[Pulse], None] = lambda _: None,
) -> int:
    """Trains the job and settles it in the database. Returns the exit code of this process.

    `exact`: the fp32 arithmetics that are exact here, the fastest first; a job keeps the one that it began with.
    """
    socket.setdefaulttimeout(_NETWORK_SECONDS)  # of torchvision's downloads
    db = Database(settings.resolved_database_url)
    try:
        job = queue.get(db, job_id)
        if job.request_id is not None:
            structlog.contextvars.bind_contextvars(request_id=job.request_id)  # of the request that made the job
        seconds = settings.checkpoint_seconds
        reporter = Reporter(db, job_id, attempt, job.spec["epochs"], checkpoint_seconds=seconds, pulse=pulse)
        reporter.listen()
        failure = _failure(_Attempt(db, settings, job, attempt, reporter, exact), reporter)
        outcome = Outcome.FAILED if failure else Outcome.SUCCEEDED
        maximum = settings.max_attempts
        insist(lambda: queue.finish(db, job_id, attempt, outcome, failure, max_attempts=maximum))
    except StaleAttempt:
        _log.warning("attempt_stale")
        return EXIT_STALE
    except DATABASE_AWAY:  # for long; the job is not to blame, and goes on when it is back
        _log.exception("database_away")
        return EXIT_STOPPED
    except Stopped:
        return EXIT_STOPPED
    return EXIT_DONE


def _failure(attempt: "_Attempt", reporter: Reporter) -> Failure | None:
    """Trains. Returns what the job has failed of, if it has; raises what is not the job's end."""
    try:
        with told_when_full():
            attempt.train()
    except (StaleAttempt, *DATABASE_AWAY):
        raise
    except EpochdError as error:
        if isinstance(error, Diverged):
            attempt.note(EventKind.DIVERGED, reporter.epoch, error.detail)
        told = error if error.code in JOB_CODES else Internal(error.detail)
        return Failure.of(told, phase=reporter.phase)
    except Exception as error:
        _log.exception("attempt_failed")
        known = _OUT_OF_MEMORY if memory.is_out_of_memory(error) else Internal()
        return Failure.of(known, phase=reporter.phase, traceback_tail=traceback_tail(error))
    return None


class _Attempt:
    def __init__(
        self, db: Database, settings: Settings, job: Job, attempt: int, reporter: Reporter, exact: Sequence[Arithmetic]
    ) -> None:
        assert job.dataset_id is not None
        self._db, self._settings, self._number, self._reporter = db, settings, attempt, reporter
        self._job, self._spec = job, Spec.model_validate(job.spec)
        self._threads = job.threads or cores()
        began_with = (job.provenance or {}).get("arithmetic")
        self._exact = next((each for each in exact if each == began_with), exact[0])
        self._dataset = versions.by_id(db, job.dataset_id)
        self._place = checkpoints.Place(settings.data_dir, job.id, attempt, settings.min_free_bytes)

    def train(self) -> None:
        """Raises what ends the attempt."""
        self._reporter.begin(Phase.PREPARING)
        self._prepare()
        resumed = self._resume()
        done = resumed.epoch if resumed else 0
        records.record_start(self._db, self._job.id, self._number, self._provenance(), resumed)
        self._remove_others(records.files(self._db, self._job.id))  # what attempts that died have left
        watched = [_watched(self._spec, vars(row)) for row in records.epochs(self._db, self._job.id)]
        del watched[done:]  # of epochs that will be trained again
        if done and self._is_over(done, watched):  # the attempt before died after its last epoch
            return
        for epoch in range(done + 1, self._spec.epochs + 1):
            result = self._one_epoch(epoch)
            watched.append(_watched(self._spec, vars(result)))
            if self._is_over(epoch, watched):
                return
            self._reporter.stop_if_asked()

    def _prepare(self) -> None:
        spec, settings = self._spec, self._settings
        threads.use(self._threads)
        self._device = device.choose(spec.device)
        arithmetic.use(self._exact, spec.precision, self._device)
        pinned = Card.model_validate(self._dataset.card)
        data = open_prepared(settings.data_dir / versions.folder(self._dataset), pinned.sha256)
        suiting.check(spec, data.card.task, data.card)
        check_single_pictures(spec, data.card)
        if spec.memory_limit_mb is None:
            memory.keep_freed()
        memory.limit(self._device, spec.memory_limit_mb)
        self._train = data.train
        self._card, self._preprocessing = data.card, whole.preprocessing(spec, data.card)
        torch.manual_seed(spec.seed)
        network = whole.network(spec, self._preprocessing, data.card.outputs)
        self._engine = Engine(spec, data, self._preprocessing, network, self._device, self._on_smaller)

    def _resume(self) -> Resumed | None:
        """Goes on from the newest checkpoint that is whole, or begins with the spec's weights."""
        db, data_dir = self._db, self._settings.data_dir
        epoch, batch = resume(db, data_dir, self._job.id, self._engine, self._on_corrupt)
        if not epoch and not batch:
            with self._reporter.waiting():
                whole.begin_with(
                    self._engine.network,
                    self._spec,
                    data_dir / "weights",
                    allow_download=self._settings.allow_download,
                )
            return None
        return Resumed(epoch, batch, provenance.differences(self._job.provenance or {}, self._provenance()))

    def _one_epoch(self, epoch: int) -> EpochResult:
        trained = self._engine.run_epoch(epoch, self._reporter, partial(self._save_inside, epoch))
        self._reporter.begin(Phase.SAVING)
        weights, state = self._engine.served.state_dict(), self._engine.state_dict()
        saved = checkpoints.save(self._place, self._metadata(trained.result), weights, state)
        progress = self._reporter.epoch_done()
        record = partial(records.record_epoch, self._db, self._job.id, self._number)
        answers = None if trained.answers is None else trained.answers.pack()
        kept = insist(lambda: record(trained.result, saved, progress, trained.report, answers))
        self._remove_others(kept)
        _log.info("epoch_done", **asdict(trained.result))
        return trained.result

    def _save_inside(self, epoch: int, state: dict[str, Any]) -> None:
        """Never the reason for which a job fails. Raises StaleAttempt."""
        try:
            saved = checkpoints.save_steps(self._place, epoch, state["batch"], state)
            kept = records.record_steps(self._db, self._job.id, self._number, saved)
        except (DiskFull, RuntimeError, MemoryError, *DATABASE_AWAY) as error:
            if isinstance(error, RuntimeError) and not memory.is_out_of_memory(error):
                raise
            _log.exception("not_saved_inside_epoch", epoch=epoch, batch=state["batch"])
            return
        self._remove_others(kept)
        _log.info("saved_inside_epoch", epoch=epoch, batch=saved.batch, bytes=saved.bytes)

    def _remove_others(self, kept: list[str]) -> None:
        remove_others(self._settings.data_dir, self._job.id, self._number, kept)

    def _is_over(self, epoch: int, watched: list[float | None]) -> bool:
        early = self._spec.early_stopping
        if early is None or epoch == self._spec.epochs:
            return False
        passed = epochs_without_improvement(watched, early)
        if passed < early.patience:
            return False
        detail = f"{early.metric} has not got better for {passed} epochs; stopped after epoch {epoch}."
        if all(event.kind != EventKind.STOPPED_EARLY for event in records.events(self._db, self._job.id)):
            self.note(EventKind.STOPPED_EARLY, epoch, detail)
        return True

    def _on_corrupt(self, epoch: int, sentence: str) -> None:
        self.note(EventKind.CHECKPOINT_CORRUPT, epoch, f"{sentence}; the training goes on from before it.")

    def _on_smaller(self, tried: int, now: int) -> None:
        detail = f"{tried} pictures at once did not fit into memory; from here on {now} go through the network at once."
        _log.warning("micro_batch_halved", tried=tried, now=now)
        self.note(EventKind.MICRO_BATCH, self._reporter.epoch, detail)

    def note(self, kind: EventKind, epoch: int, detail: str) -> None:
        insist(lambda: records.record_event(self._db, self._job.id, self._number, epoch, kind, detail))

    def _metadata(self, result: EpochResult) -> checkpoints.Metadata:
        return checkpoints.Metadata(
            job=self._job.id,
            epoch=result.epoch,
            spec=self._spec.model_copy(update={"webhooks": []}),  # their addresses are no part of a network
            classes=self._card.classes,
            targets=self._card.targets,
            preprocessing=self._preprocessing,
            looks=self._looks,
            dataset_sha256=self._card.sha256,
            metrics={name: value for name in get_args(Metric) if (value := getattr(result, name)) is not None},
        )

    @cached_property
    def _looks(self) -> Looks:
        """When the first checkpoint wants it, so that the first step does not wait."""
        return summarise(self._train.images)

    def _provenance(self) -> dict[str, Any]:
        return provenance.of(
            self._spec,
            dataset_sha256=self._card.sha256,
            network=self._engine.network,
            device=self._device,
            arithmetic=self._exact,
            channels_last=self._engine.memory_format == torch.channels_last,
        )


def _watched(spec: Spec, metrics: dict[str, Any]) -> float | None:
    """The number that early stopping looks at."""
    if spec.early_stopping is None:
        return None
    value: float | None = metrics[spec.early_stopping.metric]
    return value if value is not None and math.isfinite(value) else None
