"""What of a spec does not suit its dataset: the loss, metrics and class weights have to be those of its task."""

from collections.abc import Iterator
from typing import Final

from .card import Card, Task
from .errors import SpecRefused
from .spec import MSE, OF_CLASSES, OF_NUMBERS, Metric, Plateau, Spec

_TOP: Final = 5


def check(spec: Spec, task: Task, card: Card | None) -> None:
    """Raises SpecRefused, at the first thing found. Without a card, which comes when the dataset is ready, what
    depends on its classes is not looked at."""
    if task is Task.REGRESSION:
        _numbers(spec)
    else:
        _class_weights(spec, card)
    for pointer, metric in _named(spec):
        _metric(metric, pointer, task, card)


def _numbers(spec: Spec) -> None:
    if not isinstance(spec.loss, MSE):
        raise SpecRefused(
            "The task of this dataset is regression, which is trained with the loss `mse`.", pointer="#/loss"
        )
    if spec.augmentation.cutmix:
        raise SpecRefused(
            "A piece of a picture does not say what its numbers are; mixup is fine for regression.",
            pointer="#/augmentation/cutmix",
        )


def _class_weights(spec: Spec, card: Card | None) -> None:
    weights = None if isinstance(spec.loss, MSE) else spec.loss.class_weights
    if not isinstance(weights, list) or card is None:
        return
    if len(weights) != len(card.classes):
        raise SpecRefused(
            f"There are {len(weights)} weights for the {len(card.classes)} classes of this dataset.",
            pointer="#/loss/class_weights",
        )


def _named(spec: Spec) -> Iterator[tuple[str, Metric]]:
    """The metrics that the spec names, and where."""
    if spec.early_stopping is not None:
        yield "#/early_stopping/metric", spec.early_stopping.metric
    if isinstance(spec.schedule, Plateau):
        yield "#/schedule/metric", spec.schedule.metric
    if spec.checkpoints.best_by is not None:
        yield "#/checkpoints/best_by", spec.checkpoints.best_by


def _metric(metric: Metric, pointer: str, task: Task, card: Card | None) -> None:
    foreign = OF_CLASSES if task is Task.REGRESSION else OF_NUMBERS
    if metric in foreign:
        raise SpecRefused(f"The task of this dataset is {task}, which has no {metric}.", pointer=pointer)
    if metric == "test_top5_accuracy" and card is not None and len(card.classes) <= _TOP:
        raise SpecRefused(f"{metric} needs more than {_TOP} classes.", pointer=pointer)
