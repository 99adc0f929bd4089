"""What in a spec cannot work together, though each part alone is fine. Raises SpecRefused with a pointer."""

from typing import TYPE_CHECKING

from worker.jobs.errors import SpecRefused

from .models import RESNETS, Torchvision
from .training import NLL, SGD, Cosine, MultiStep, OneCycle, Plateau

if TYPE_CHECKING:
    from .spec import Spec


def check(spec: "Spec") -> None:
    """Raises SpecRefused, at the first thing found."""
    _optimizer(spec)
    _schedule(spec)
    _batch(spec)
    if spec.augmentation.mixup or spec.augmentation.cutmix:
        _mixing(spec)
    if isinstance(spec.model, Torchvision) and spec.model.small_stem and not spec.model.name.startswith(RESNETS):
        raise SpecRefused(f"{spec.model.name} has no small stem.", pointer="#/model/small_stem")
    if spec.precision == "tf32" and spec.device == "cpu":
        raise SpecRefused("tf32 is arithmetic of a GPU; take fp32 or bf16 on the CPU.", pointer="#/precision")


def _optimizer(spec: "Spec") -> None:
    if isinstance(spec.optimizer, SGD) and spec.optimizer.nesterov and not spec.optimizer.momentum:
        raise SpecRefused("Nesterov needs a momentum above 0.", pointer="#/optimizer/nesterov")


def _schedule(spec: "Spec") -> None:
    schedule = spec.schedule
    if isinstance(schedule, MultiStep) and schedule.milestones != sorted(set(schedule.milestones)):
        raise SpecRefused("The milestones must increase.", pointer="#/schedule/milestones")
    if isinstance(schedule, Cosine | Plateau) and schedule.min_lr > spec.optimizer.lr:
        raise SpecRefused("The lowest learning rate is above the optimizer's.", pointer="#/schedule/min_lr")
    if (schedule.warmup_epochs or 0) > spec.epochs - isinstance(schedule, OneCycle):
        raise SpecRefused("The warm-up is longer than the training.", pointer="#/schedule/warmup_epochs")


def _batch(spec: "Spec") -> None:
    if spec.accumulation > spec.batch_size:
        raise SpecRefused("A batch cannot be divided into more parts than it has pictures.", pointer="#/accumulation")


def _mixing(spec: "Spec") -> None:
    which = "mixup" if spec.augmentation.mixup else "cutmix"
    if isinstance(spec.loss, NLL):
        raise SpecRefused(
            "Mixed targets are not classes, which nll needs; cross_entropy gives the same numbers and takes them.",
            pointer=f"#/augmentation/{which}",
        )
