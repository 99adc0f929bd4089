"""One attempt at a job, from its row to its last checkpoint. Runs in a process of its own."""

import math
import platform
from dataclasses import asdict
from functools import partial
from typing import Any, Final, get_args

import structlog
import torch
import torchvision

from worker.datasets.opening import open_prepared
from worker.jobs import queue, records, suiting, versions
from worker.jobs.card import Card
from worker.jobs.db import DATABASE_AWAY, Database, insist
from worker.jobs.errors import CheckpointCorrupt, Diverged, EpochdError, Internal, OutOfMemory, StaleAttempt
from worker.jobs.failures import Failure, traceback_tail
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED, Stopped, cores
from worker.jobs.records import EpochResult
from worker.jobs.settings import Settings
from worker.jobs.spec import Metric, Spec
from worker.jobs.states import EventKind, Outcome, Phase
from worker.jobs.tables import Job
from worker.networks import whole

from . import arithmetic, checkpoints, device, memory
from .arithmetic import Arithmetic
from .engine import Engine
from .plan import check_single_pictures
from .progress import Reporter
from .stopping import epochs_without_improvement

_OUT_OF_MEMORY: Final = OutOfMemory(
    "There is not enough memory beside the batches: for the network, the optimizer, or saving them.",
    suggestion="Take a smaller network or an optimizer that remembers less, such as sgd, or allow more memory.",
)
_log = structlog.get_logger()


def run(settings: Settings, job_id: str, attempt: int, exact: Arithmetic = "highest") -> int:
    """Trains the job and settles it in the database. Returns the exit code of this process.

    `exact`: the fp32 arithmetic that is exact and fast here; a job that began with another keeps that.
    """
    db = Database(settings.resolved_database_url)
    job = queue.get(db, job_id)
    reporter = Reporter(db, job_id, attempt, job.spec["epochs"])
    reporter.listen()
    try:
        try:
            _Attempt(db, settings, job, attempt, reporter, exact).train()
            outcome, failure = Outcome.SUCCEEDED, None
        except (StaleAttempt, *DATABASE_AWAY):
            raise
        except EpochdError as error:
            outcome, failure = Outcome.FAILED, Failure.of(error, phase=reporter.phase)
            if isinstance(error, Diverged):
                note = partial(records.record_event, db, job_id, attempt, reporter.epoch)
                insist(partial(note, EventKind.DIVERGED, error.detail))
        except Exception as error:
            _log.exception("attempt_failed")
            known = _OUT_OF_MEMORY if memory.is_out_of_memory(error) else Internal()
            tail = traceback_tail(error)
            outcome, failure = Outcome.FAILED, Failure.of(known, phase=reporter.phase, traceback_tail=tail)
        maximum = settings.max_attempts
        insist(lambda: queue.finish(db, job_id, attempt, outcome, failure, max_attempts=maximum))
    except StaleAttempt:
        _log.warning("attempt_stale")
        return EXIT_STALE
    except Stopped:
        return EXIT_STOPPED
    return EXIT_DONE


class _Attempt:
    def __init__(
        self, db: Database, settings: Settings, job: Job, attempt: int, reporter: Reporter, exact: Arithmetic
    ) -> None:
        assert job.dataset_id is not None
        self._db, self._settings, self._number, self._reporter = db, settings, attempt, reporter
        self._job_id, self._spec = job.id, Spec.model_validate(job.spec)
        self._threads = job.threads or cores()
        began_with = (job.provenance or {}).get("arithmetic", exact)
        self._exact: Arithmetic = exact if began_with == "medium" else "highest"  # "medium" need not be exact here
        self._dataset = versions.by_id(db, job.dataset_id)

    def train(self) -> None:
        """Raises what ends the attempt."""
        self._reporter.begin(Phase.PREPARING)
        self._prepare()
        done = self._resume()
        if not done:
            allow = self._settings.allow_download
            whole.begin_with(
                self._engine.network, self._spec, self._settings.data_dir / "weights", allow_download=allow
            )
        records.record_start(self._db, self._job_id, self._number, self._provenance(), resumed_from=done or None)
        watched = [_watched(self._spec, vars(row)) for row in records.epochs(self._db, self._job_id)]
        del watched[done:]  # of epochs that will be trained again
        if done and self._is_over(done, watched):  # the attempt before died after its last epoch
            return
        for epoch in range(done + 1, self._spec.epochs + 1):
            result = self._one_epoch(epoch)
            watched.append(_watched(self._spec, vars(result)))
            if self._is_over(epoch, watched):
                return

    def _prepare(self) -> None:
        spec, settings = self._spec, self._settings
        torch.set_num_threads(self._threads)
        self._device = device.choose(spec.device)
        arithmetic.use(self._exact, spec.precision, self._device)
        pinned = Card.model_validate(self._dataset.card)
        data = open_prepared(settings.data_dir / versions.folder(self._dataset), pinned.sha256)
        suiting.check(spec, data.card.task, data.card)
        check_single_pictures(spec, data.card)
        if spec.memory_limit_mb is None:
            memory.keep_freed()
        memory.limit(self._device, spec.memory_limit_mb)
        self._card, self._preprocessing = data.card, whole.preprocessing(spec, data.card)
        torch.manual_seed(spec.seed)
        network = whole.network(spec, self._preprocessing, data.card.outputs)
        self._engine = Engine(spec, data, self._preprocessing, network, self._device, self._on_smaller)

    def _resume(self) -> int:
        """Goes back to the newest checkpoint that is whole; returns its epoch, or 0 when there is none."""
        for kept in reversed(records.checkpoints(self._db, self._job_id)):
            row, folder = kept.row, self._settings.data_dir
            try:
                loaded = checkpoints.load(folder / row.path, row.sha256)
                state = checkpoints.load_state(folder / row.state_path, row.state_sha256)
            except CheckpointCorrupt:
                _log.warning("checkpoint_corrupt", epoch=row.epoch)
                continue
            self._engine.load_state_dict(loaded.weights, state)
            _log.info("resumed", epoch=row.epoch)
            return row.epoch
        return 0

    def _one_epoch(self, epoch: int) -> EpochResult:
        trained = self._engine.run_epoch(epoch, self._reporter)
        self._reporter.begin(Phase.SAVING)
        weights, state = self._engine.served.state_dict(), self._engine.state_dict()
        saved = checkpoints.save(self._settings.data_dir, self._metadata(trained.result), self._number, weights, state)
        progress = self._reporter.epoch_done()
        record = partial(records.record_epoch, self._db, self._job_id, self._number)
        kept = insist(lambda: record(trained.result, saved, progress, trained.report))
        checkpoints.remove_others(self._settings.data_dir, self._job_id, self._number, kept)
        _log.info("epoch_done", **asdict(trained.result))
        return trained.result

    def _is_over(self, epoch: int, watched: list[float | None]) -> bool:
        early = self._spec.early_stopping
        if early is None or epoch == self._spec.epochs:
            return False
        passed = epochs_without_improvement(watched, early)
        if passed < early.patience:
            return False
        detail = f"{early.metric} has not got better for {passed} epochs; stopped after epoch {epoch}."
        if all(event.kind != EventKind.STOPPED_EARLY for event in records.events(self._db, self._job_id)):
            self._note(EventKind.STOPPED_EARLY, epoch, detail)
        return True

    def _on_smaller(self, tried: int, now: int) -> None:
        detail = f"{tried} pictures at once did not fit into memory; from here on {now} go through the network at once."
        _log.warning("micro_batch_halved", tried=tried, now=now)
        self._note(EventKind.MICRO_BATCH, self._reporter.epoch, detail)

    def _note(self, kind: EventKind, epoch: int, detail: str) -> None:
        insist(lambda: records.record_event(self._db, self._job_id, self._number, epoch, kind, detail))

    def _metadata(self, result: EpochResult) -> checkpoints.Metadata:
        return checkpoints.Metadata(
            job=self._job_id,
            epoch=result.epoch,
            spec=self._spec,
            classes=self._card.classes,
            targets=self._card.targets,
            preprocessing=self._preprocessing,
            dataset_sha256=self._card.sha256,
            metrics={name: value for name in get_args(Metric) if (value := getattr(result, name)) is not None},
        )

    def _provenance(self) -> dict[str, Any]:
        parameters = list(self._engine.network.parameters())
        return {
            "seed": self._spec.seed,
            "device": str(self._device),
            "device_name": device.name(self._device),
            "threads": torch.get_num_threads(),
            "arithmetic": self._exact,
            "channels_last": self._engine.memory_format == torch.channels_last,
            "dataset": {
                "name": self._spec.dataset.name,
                "version": self._spec.dataset.version,
                "sha256": self._card.sha256,
            },
            "parameters": sum(parameter.numel() for parameter in parameters),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
        }


def _watched(spec: Spec, metrics: dict[str, Any]) -> float | None:
    """The number that early stopping looks at."""
    if spec.early_stopping is None:
        return None
    value: float | None = metrics[spec.early_stopping.metric]
    return value if value is not None and math.isfinite(value) else None
