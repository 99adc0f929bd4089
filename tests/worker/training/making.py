"""What tests of training are made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from worker.datasets.opening import Prepared
from worker.jobs.db import Database
from worker.jobs.records import EpochResult
from worker.jobs.spec import Constant, Spec
from worker.networks import whole
from worker.training import optim
from worker.training.accumulation import Accumulation
from worker.training.engine import Engine
from worker.training.loops import Batch
from worker.training.losses import AverageLoss, loss_function
from worker.training.progress import Reporter
from worker.training.schedules import Schedule

CPU = torch.device("cpu")


def batches(*sizes: int, classes: int = 3) -> list[Batch]:
    """Pictures of 1 x 4 x 4."""
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(n, 1, 4, 4, generator=generator), torch.randint(classes, (n,), generator=generator)) for n in sizes
    ]


def stepper(model: nn.Module, spec: Spec, **more: Any) -> optim.Stepper:
    made = optim.optimizer(spec.optimizer, model.parameters())
    schedule = Schedule(Constant(), made, epochs=100, steps_per_epoch=100)
    plain = {"plain_sgd": optim.is_plain_sgd(spec.optimizer), "in_backward": False}
    return optim.Stepper(made, model, schedule, **plain | more)


def accumulation(
    model: nn.Module,
    micro_batch: int,
    spec: Spec | None = None,
    *,
    counts: list[int] | None = None,
    least: int = 1,
    on_smaller: Callable[[int, int], None] = lambda *_: None,
    **more: Any,
) -> Accumulation:
    spec = spec or Spec.model_validate({"optimizer": {"lr": 0.1}})
    loss_fn = loss_function(spec.loss, counts or [1, 1, 1], CPU)
    steps = stepper(model, spec, **more)
    return Accumulation(
        micro_batch, AverageLoss(loss_fn, CPU, more.get("scaler")), steps, least=least, on_smaller=on_smaller
    )


class Silent(Reporter):
    """A reporter that tells nobody."""

    def __init__(self, epochs: int = 100) -> None:
        super().__init__(Database("sqlite:///nowhere.db"), "", 1, epochs)

    def _record(self, *_: Any) -> None:
        pass


class StopsAt(Silent):
    """A reporter that finds itself asked to stop behind a batch; that of the test, if it is the epoch's last."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self._at = (epoch, batch)

    def _is_time(self) -> bool:
        return True  # it looks after each batch

    def _between_batches(self) -> None:
        self._stop_requested = (self._now.epoch, self._batch) == self._at
        super()._between_batches()


def engine(prepared: Prepared, *, on_smaller: Callable[[int, int], None] = lambda *_: None, **fields: Any) -> Engine:
    """Of a spec with these fields, as an attempt would make it."""
    spec = Spec.model_validate(fields)
    preprocessing = whole.preprocessing(spec, prepared.card)
    torch.manual_seed(spec.seed)
    network = whole.network(spec, preprocessing, prepared.card.outputs)
    return Engine(spec, prepared, preprocessing, network, CPU, on_smaller)


def trained(prepared: Prepared, epochs: int = 2, **fields: Any) -> tuple[Engine, list[EpochResult]]:
    made = engine(prepared, epochs=epochs, **fields)
    reporter = Silent(epochs)
    return made, [made.run_epoch(epoch, reporter).result for epoch in range(1, epochs + 1)]
