"""What an attempt trains with, and one epoch of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from worker.datasets.opening import Prepared
from worker.datasets.pictures import Preprocessing
from worker.jobs.answers import MOST_PICTURES, PictureAnswers
from worker.jobs.card import Task
from worker.jobs.errors import Diverged, OutOfMemory
from worker.jobs.records import EpochResult
from worker.jobs.report import Report, report_of
from worker.jobs.spec import Spec

from . import arithmetic, memory, optim, randomness
from .accumulation import Accumulation, micro_batch
from .augmentation import Augment, augments
from .batches import Batches, resident, test_batch_size
from .loops import test_loop
from .losses import AverageLoss, loss_function
from .order import derived_seed, epoch_order, lying_order
from .progress import Reporter
from .schedules import Schedule
from .scores import Answers, Distances, probabilities


@dataclass(frozen=True)
class Trained:
    """What an epoch gave."""

    result: EpochResult
    report: Report | None = None  # of classification
    answers: PictureAnswers | None = None  # likewise, unless they were too many


class Engine:
    """The network with all that trains it, on its device."""

    def __init__(
        self,
        spec: Spec,
        data: Prepared,
        preprocessing: Preprocessing,
        network: nn.Module,
        device: torch.device,
        on_smaller: Callable[[int, int], None],
    ) -> None:
        """`network`: on the CPU, with its first weights. `on_smaller`: see `Accumulation`."""
        self._spec, self._preprocessing, self._device = spec, preprocessing, device
        self._begun: dict[str, Any] | None = None  # an epoch to go on with, see `load_inside`
        self._card = data.card
        most = None if spec.memory_limit_mb is None else spec.memory_limit_mb * 2**20
        self._train_split, self._test_split = (resident(split, device, most) for split in (data.train, data.test))
        self.memory_format = arithmetic.memory_format(network)
        self.network = network.to(device).to(memory_format=self.memory_format)
        self._model = self._seeing(self.network)
        self._average = optim.average_of(self.network, spec.ema) if spec.ema else None
        self._loss_fn = loss_function(spec.loss, data.card.train_counts, device)
        self._optimizer = optim.optimizer(spec.optimizer, self.network.parameters())
        steps = -(-len(data.train) // spec.batch_size)
        self._schedule = Schedule(spec.schedule, self._optimizer, epochs=spec.epochs, steps_per_epoch=steps)
        self._scaler = arithmetic.scaler(spec.precision, device)
        plain_sgd = optim.is_plain_sgd(spec.optimizer) and device.type == "cpu" and not self._scaler
        unhindered = spec.accumulation == 1 and spec.clip_gradient is None and spec.memory_limit_mb is None
        self.stepper = optim.Stepper(
            self._optimizer,
            self.network,
            self._schedule,
            plain_sgd=plain_sgd,
            in_backward=plain_sgd and unhindered,
            clip=spec.clip_gradient,
            average=self._average,
            scaler=self._scaler,
        )
        self._accumulation = Accumulation(
            micro_batch(spec, len(data.train)),
            AverageLoss(self._loss_fn, device, self._scaler),
            self.stepper,
            least=2 if any(isinstance(module, _BatchNorm) for module in network.modules()) else 1,
            on_smaller=on_smaller,
        )
        self._test_batch = test_batch_size(preprocessing, self._accumulation.micro_batch)

    @property
    def served(self) -> nn.Module:
        """The network that is tested, saved and predicts: the average, where there is one."""
        return self._average.module if self._average else self.network

    def run_epoch(
        self, epoch: int, reporter: Reporter, save: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> Trained:
        """`save` gets what is needed to go on inside the epoch, whenever the reporter finds that it is time.

        Raises Diverged and OutOfMemory.
        """
        begun, self._begun = self._begun, None
        torch.manual_seed(derived_seed(self._spec.seed, epoch, "step"))  # for dropout
        memory.reset_peak(self._device)
        learning_rate = begun["learning_rate"] if begun else self._schedule.lr
        started = perf_counter() - (begun["seconds"] if begun else 0.0)
        with _told_where(self._spec, reporter):
            inside = partial(self._inside, learning_rate, started)
            batches = self._batches(epoch, reporter, begun, lambda batch: save(inside(batch)))
            train_loss = self._accumulation.train(
                batches, self._model, self._device, begun=begun and begun["accumulation"], on_part=reporter.beat
            )
            trained = perf_counter()
            test_loss, scores = self._test(reporter)
        tested = perf_counter()
        result = EpochResult(
            epoch=epoch,
            train_loss=train_loss,
            test_loss=test_loss,
            learning_rate=learning_rate,
            samples_per_second=len(self._train_split) / (trained - started),
            train_seconds=trained - started,
            test_seconds=tested - trained,
            gradient_norm=self.stepper.gradient_norm(),
            peak_memory_bytes=memory.peak(self._device),
            **scores.compute(),
        )
        self._schedule.epoch_done(vars(result))
        if isinstance(scores, Distances):
            return Trained(result)
        report = report_of(scores.confusion(), self._card.classes, epoch)
        return Trained(result, report, scores.picture_by_picture())

    def state_dict(self) -> dict[str, Any]:
        """What going on needs beside the weights that are served. Plain types and tensors only."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict() if self._scaler else None,
            "micro_batch": self._accumulation.micro_batch,
            "test_batch": self._test_batch,
            "network": self.network.state_dict() if self._average else None,
            "averaged": self._average.n_averaged if self._average else None,
        }

    def load_state_dict(self, weights: dict[str, Tensor], state: dict[str, Any]) -> None:
        """`weights`: those that are served."""
        self.served.load_state_dict(weights)
        self._optimizer.load_state_dict(state["optimizer"])
        if "schedule" not in state:  # of an epochd that had one way to train only
            return
        self._schedule.load_state_dict(state["schedule"])
        self.stepper.in_backward &= state["micro_batch"] >= self._accumulation.micro_batch
        # The smaller one: what did not fit before, or what the spec has asked for since.
        self._accumulation.micro_batch = min(state["micro_batch"], self._accumulation.micro_batch)
        self._test_batch = min(state["test_batch"], self._test_batch)
        if self._scaler is not None:
            self._scaler.load_state_dict(state["scaler"])
        if self._average is not None:
            self.network.load_state_dict(state["network"])
            self._average.n_averaged.copy_(state["averaged"])

    def load_inside(self, state: dict[str, Any]) -> None:
        """What `save` of `run_epoch` got: the next epoch that runs is that one, and its rest only."""
        self.load_state_dict(state["weights"], state["state"])
        self._begun = state

    def _inside(self, learning_rate: float, started: float, batch: int) -> dict[str, Any]:
        """What is needed to go on behind this batch of the epoch. Plain types and tensors only."""
        return {
            "batch": batch,
            "weights": self.served.state_dict(),
            "state": self.state_dict(),
            "accumulation": self._accumulation.state_dict(),
            "augmentation": self._augment.state_dict(),
            "random": randomness.state(self._device),
            "learning_rate": learning_rate,
            "seconds": perf_counter() - started,
        }

    def _batches(
        self, epoch: int, reporter: Reporter, begun: dict[str, Any] | None, save: Callable[[int], None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        spec, split = self._spec, self._train_split
        order = epoch_order(split, spec.seed, epoch) if spec.shuffle else lying_order(split)
        classes = len(self._card.classes) or None
        self._augment = Augment(spec.augmentation, classes=classes, seed=spec.seed, epoch=epoch)
        if begun is not None:
            self._augment.load_state_dict(begun["augmentation"])
            randomness.set_state(begun["random"], self._device)
        first = begun["batch"] if begun else 0
        batches = Batches(
            split,
            spec.batch_size,
            self._device,
            order,
            augment=self._augment if augments(spec.augmentation) else None,
            first=first,
        )
        return reporter.train(batches, epoch, len(split), first=first, save=save)

    def _test(self, reporter: Reporter) -> tuple[float, Answers | Distances]:
        """The average loss and the scores. Testing changes nothing, so one that does not fit just begins anew."""
        model = self._model if self._average is None else self._seeing(self._average.module)
        split, loss_fn = self._test_split, AverageLoss(self._loss_fn, self._device)
        while True:
            tests = Batches(split, self._test_batch, self._device, lying_order(split))
            loss_fn.begin()
            scores = self._scores()
            try:
                return test_loop(reporter.test(tests), model, loss_fn, scores), scores
            except (RuntimeError, MemoryError) as error:
                if not memory.is_out_of_memory(error):
                    raise
                if self._test_batch == 1:
                    raise OutOfMemory("There is not enough memory to test a single picture.") from error
                self._test_batch = -(-self._test_batch // 2)
            memory.release(self._device)

    def _scores(self) -> Answers | Distances:
        if self._card.task is Task.REGRESSION:
            return Distances()
        are_kept = len(self._test_split) <= MOST_PICTURES
        return Answers(len(self._card.classes), partial(probabilities, loss=self._spec.loss) if are_kept else None)

    def _seeing(self, network: nn.Module) -> nn.Module:
        """The network as the loops use it."""
        made, preprocessing = arithmetic.in_precision(network, self._spec.precision, self._device), self._preprocessing
        if preprocessing.is_plain and self.memory_format == torch.contiguous_format:
            return made
        return arithmetic.FromUnit(made, preprocessing, self.memory_format)


@contextmanager
def _told_where(spec: Spec, reporter: Reporter) -> Iterator[None]:
    """Says of a diverged loss where that was, and what to try."""
    try:
        yield
    except Diverged as error:
        hints = [f"Lower the learning rate (now {spec.optimizer.lr:g})"]
        hints += ["clip the gradient"] if spec.clip_gradient is None else []
        hints += ["use bf16 or fp32"] if spec.precision == "fp16" else []
        detail = f"{error.detail.rstrip('.')} {reporter.place}."
        raise Diverged(detail, hint=f"{', or '.join(hints)}.") from error
