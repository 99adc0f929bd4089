"""One attempt at a job, from its row to its last checkpoint. Runs in a process of its own."""

import platform
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

import structlog
import torch
import torchvision
from torch import nn
from torch.optim import Optimizer

from worker.datasets.opening import Prepared, open_prepared
from worker.datasets.pictures import Preprocessing, plain
from worker.jobs import queue, records, versions
from worker.jobs.card import Card, Task
from worker.jobs.db import DATABASE_AWAY, Database, insist
from worker.jobs.errors import CheckpointCorrupt, EpochdError, Internal, StaleAttempt
from worker.jobs.failures import Failure, traceback_tail
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED, Stopped
from worker.jobs.records import EpochResult
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.tables import Dataset, Outcome, Phase
from worker.networks.build import build

from . import checkpoints, device, optim
from .batches import Batches, test_batch_size
from .loops import LossFn, test_loop, train_loop
from .order import derived_seed, epoch_order, lying_order
from .progress import Reporter
from .scores import Accuracy, Distances

_METRICS: Final = ("train_loss", "test_loss", "test_accuracy", "test_mae", "test_r2")
_log = structlog.get_logger()


def run(settings: Settings, job_id: str, attempt: int) -> int:
    """Trains the job and settles it in the database. Returns the exit code of this process."""
    db = Database(settings.resolved_database_url)
    job = queue.get(db, job_id)
    spec = Spec.model_validate(job.spec)
    assert job.dataset_id is not None
    dataset = versions.by_id(db, job.dataset_id)
    reporter = Reporter(db, job_id, attempt, spec.epochs)
    reporter.listen()
    try:
        try:
            _train(db, settings, job_id, attempt, spec, dataset, reporter)
            outcome, failure = Outcome.SUCCEEDED, None
        except (StaleAttempt, *DATABASE_AWAY):
            raise
        except EpochdError as error:
            outcome, failure = Outcome.FAILED, Failure.of(error, phase=reporter.phase)
        except Exception as error:
            _log.exception("attempt_failed")
            tail = traceback_tail(error)
            outcome, failure = Outcome.FAILED, Failure.of(Internal(), phase=reporter.phase, traceback_tail=tail)
        maximum = settings.max_attempts
        insist(lambda: queue.finish(db, job_id, attempt, outcome, failure, max_attempts=maximum))
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


def _train(
    db: Database, settings: Settings, job_id: str, attempt: int, spec: Spec, dataset: Dataset, reporter: Reporter
) -> None:
    reporter.begin(Phase.PREPARING)
    torch.set_num_threads(device.threads_for(settings.slots))
    training = _prepare(settings, spec, dataset)
    done = _resume(db, settings, job_id, training)
    records.record_start(db, job_id, attempt, _provenance(spec, training), resumed_from=done or None)
    for epoch in range(done + 1, spec.epochs + 1):
        result = _run_epoch(training, spec, epoch, reporter)
        reporter.begin(Phase.SAVING)
        metadata = _metadata(job_id, spec, training, result)
        saved = checkpoints.save(settings.data_dir, metadata, attempt, training.model, training.optimizer)
        progress = reporter.epoch_done()
        insist(partial(records.record_epoch, db, job_id, attempt, result, saved, progress))
        _log.info("epoch_done", **asdict(result))


def _prepare(settings: Settings, spec: Spec, dataset: Dataset) -> Training:
    where = device.choose(spec.device)
    pinned = Card.model_validate(dataset.card)
    data = open_prepared(settings.data_dir / versions.folder(dataset), pinned.sha256)
    card = data.card
    torch.manual_seed(spec.seed)
    model = build(spec.model, channels=card.channels, height=card.height, width=card.width, outputs=card.outputs).to(
        where
    )
    return Training(
        data=data,
        preprocessing=plain(card.channels, card.height, card.width),
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
    order = epoch_order(train, spec.seed, epoch) if spec.shuffle else lying_order(train)
    batches = Batches(train, spec.batch_size, preprocessing, training.device, order)
    test_batch = test_batch_size(preprocessing, spec.batch_size)
    tests = Batches(test, test_batch, preprocessing, training.device, lying_order(test))

    started = perf_counter()
    watched = reporter.train(batches, epoch, len(train))
    train_loss = train_loop(watched, training.model, training.loss_fn, training.optimizer)
    trained = perf_counter()
    scores = Accuracy() if training.data.card.task is Task.CLASSIFICATION else Distances()
    test_loss = test_loop(reporter.test(tests), training.model, training.loss_fn, scores)
    tested = perf_counter()
    return EpochResult(
        epoch=epoch,
        train_loss=train_loss,
        test_loss=test_loss,
        learning_rate=spec.optimizer.lr,
        samples_per_second=len(train) / (trained - started),
        train_seconds=trained - started,
        test_seconds=tested - trained,
        **scores.compute(),
    )


def _metadata(job_id: str, spec: Spec, training: Training, result: EpochResult) -> checkpoints.Metadata:
    return checkpoints.Metadata(
        job=job_id,
        epoch=result.epoch,
        spec=spec,
        classes=training.data.card.classes,
        targets=training.data.card.targets,
        preprocessing=training.preprocessing,
        dataset_sha256=training.data.card.sha256,
        metrics={name: value for name in _METRICS if (value := getattr(result, name)) is not None},
    )


def _provenance(spec: Spec, training: Training) -> dict[str, Any]:
    return {
        "seed": spec.seed,
        "device": str(training.device),
        "device_name": device.name(training.device),
        "threads": torch.get_num_threads(),
        "dataset": {
            "name": spec.dataset.name,
            "version": spec.dataset.version,
            "sha256": training.data.card.sha256,
        },
        "parameters": sum(parameter.numel() for parameter in training.model.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
