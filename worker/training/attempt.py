"""One attempt at a job, from its row to its last checkpoint. Runs in a process of its own."""

import platform
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from time import monotonic, perf_counter, sleep
from typing import Any, Final

import structlog
import torch
import torchvision
from torch import nn
from torch.optim import Optimizer

from worker.datasets.opening import Prepared, open_prepared
from worker.datasets.pictures import Preprocessing
from worker.datasets.preparing import prepare
from worker.jobs import queue, records
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import CheckpointCorrupt, EpochdError, Internal, StaleAttempt
from worker.jobs.failures import Failure
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED
from worker.jobs.records import EpochResult
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.tables import Outcome, Phase
from worker.networks.build import build

from . import checkpoints, device, optim
from .batches import Batches, derived_seed, shuffled_order, test_batch_size
from .loops import LossFn, test_loop, train_loop
from .progress import Reporter, Stopped

_TRACEBACK_CHARACTERS: Final = 4000
_DATABASE_SECONDS: Final = 60.0  # how long a database may be away before an attempt gives up
_log = structlog.get_logger()


def run(settings: Settings, job_id: str, attempt: int) -> int:
    """Trains the job and settles it in the database. Returns the exit code of this process."""
    db = Database(settings.resolved_database_url)
    spec = Spec.model_validate(queue.get(db, job_id).spec)
    reporter = Reporter(db, job_id, attempt, spec.epochs)
    reporter.listen()
    try:
        try:
            _train(db, settings, job_id, attempt, spec, reporter)
            outcome, failure = Outcome.SUCCEEDED, None
        except (StaleAttempt, *DATABASE_AWAY):
            raise
        except EpochdError as error:
            outcome, failure = Outcome.FAILED, Failure.of(error, phase=reporter.phase)
        except Exception as error:
            _log.exception("attempt_failed")
            outcome, failure = Outcome.FAILED, _unexpected(error, reporter.phase)
        maximum = settings.max_attempts
        _insist(lambda: queue.finish(db, job_id, attempt, outcome, failure, max_attempts=maximum))
    except StaleAttempt:
        _log.warning("attempt_stale")
        return EXIT_STALE
    except Stopped:
        return EXIT_STOPPED
    return EXIT_DONE


@dataclass(frozen=True)
class Training:
    """What an attempt trains with."""

    data: Prepared
    preprocessing: Preprocessing
    device: torch.device
    model: nn.Module
    loss_fn: LossFn
    optimizer: Optimizer


def _train(db: Database, settings: Settings, job_id: str, attempt: int, spec: Spec, reporter: Reporter) -> None:
    reporter.begin(Phase.PREPARING)
    torch.set_num_threads(device.threads_for(settings.slots))
    training = _prepare(settings, spec)
    done = _resume(db, settings, job_id, training)
    records.record_start(db, job_id, attempt, _provenance(spec, training), resumed_from=done or None)
    for epoch in range(done + 1, spec.epochs + 1):
        result = _run_epoch(training, spec, epoch, reporter)
        reporter.begin(Phase.SAVING)
        metadata = _metadata(job_id, spec, training, result)
        saved = checkpoints.save(settings.data_dir, metadata, attempt, training.model, training.optimizer)
        progress = reporter.epoch_done()
        _insist(partial(records.record_epoch, db, job_id, attempt, result, saved, progress))
        _log.info("epoch_done", **asdict(result))


def _prepare(settings: Settings, spec: Spec) -> Training:
    where = device.choose(spec.device)
    data = open_prepared(prepare(settings, spec.dataset.name))
    card = data.card
    shape = {"channels": card.channels, "height": card.height, "width": card.width}
    torch.manual_seed(spec.seed)
    model = build(spec.model, **shape, classes=len(card.classes)).to(where)
    return Training(
        data=data,
        # As the tutorial's ToTensor: scaled to 0..1, not standardised.
        preprocessing=Preprocessing(**shape, mean=[0.0] * card.channels, std=[1.0] * card.channels),
        device=where,
        model=model,
        loss_fn=optim.loss_function(spec.loss),
        optimizer=optim.optimizer(spec.optimizer, model.parameters()),
    )


def _resume(db: Database, settings: Settings, job_id: str, training: Training) -> int:
    """Goes back to the newest checkpoint that is whole; returns its epoch, or 0 when there is none."""
    for kept in reversed(records.checkpoints(db, job_id)):
        row = kept.row
        try:
            loaded = checkpoints.load(settings.data_dir / row.path, row.sha256)
            state = checkpoints.load_state(settings.data_dir / row.state_path, row.state_sha256)
        except CheckpointCorrupt:
            _log.warning("checkpoint_corrupt", epoch=row.epoch)
            continue
        training.model.load_state_dict(loaded.weights)
        training.optimizer.load_state_dict(state["optimizer"])
        _log.info("resumed", epoch=row.epoch)
        return row.epoch
    return 0


def _run_epoch(training: Training, spec: Spec, epoch: int, reporter: Reporter) -> EpochResult:
    torch.manual_seed(derived_seed(spec.seed, epoch, "step"))  # for dropout
    train, test, preprocessing = training.data.train, training.data.test, training.preprocessing
    order = shuffled_order(len(train), spec.seed, epoch) if spec.shuffle else None
    batches = Batches(train, spec.batch_size, preprocessing, training.device, order)
    tests = Batches(test, test_batch_size(preprocessing, spec.batch_size), preprocessing, training.device)

    started = perf_counter()
    watched = reporter.train(batches, epoch, len(train))
    train_loss = train_loop(watched, training.model, training.loss_fn, training.optimizer)
    trained = perf_counter()
    test_loss, test_accuracy = test_loop(reporter.test(tests), training.model, training.loss_fn)
    tested = perf_counter()
    return EpochResult(
        epoch=epoch,
        train_loss=train_loss,
        test_loss=test_loss,
        test_accuracy=test_accuracy,
        learning_rate=spec.optimizer.lr,
        samples_per_second=len(train) / (trained - started),
        train_seconds=trained - started,
        test_seconds=tested - trained,
    )


def _metadata(job_id: str, spec: Spec, training: Training, result: EpochResult) -> checkpoints.Metadata:
    return checkpoints.Metadata(
        job=job_id,
        epoch=result.epoch,
        spec=spec,
        classes=training.data.card.classes,
        preprocessing=training.preprocessing,
        dataset_sha256=training.data.card.sha256,
        metrics={
            "train_loss": result.train_loss,
            "test_loss": result.test_loss,
            "test_accuracy": result.test_accuracy,
        },
    )


def _provenance(spec: Spec, training: Training) -> dict[str, Any]:
    return {
        "seed": spec.seed,
        "device": str(training.device),
        "device_name": device.name(training.device),
        "threads": torch.get_num_threads(),
        "dataset": {"name": training.data.card.name, "sha256": training.data.card.sha256},
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def _insist(write: Callable[[], object]) -> None:
    """Writes what must not get lost, again and again while the database is away (a restart, a lock held for long)."""
    deadline = monotonic() + _DATABASE_SECONDS
    while True:
        try:
            write()
        except DATABASE_AWAY:
            if monotonic() > deadline:
                raise
            _log.exception("database_away")
            sleep(1)
        else:
            return


def _unexpected(error: Exception, phase: Phase) -> Failure:
    text = "".join(traceback.format_exception(error))
    return Failure.of(Internal(), phase=phase, traceback_tail=text[-_TRACEBACK_CHARACTERS:])
