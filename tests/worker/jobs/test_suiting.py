"""What does not suit a dataset is refused where it stands, and nothing else is."""

from typing import Any

import pytest

from tests.worker.jobs.making import card
from worker.jobs import suiting
from worker.jobs.card import Card, Task
from worker.jobs.errors import SpecRefused
from worker.jobs.spec import OF_CLASSES, OF_NUMBERS, Spec

CLASSES = card(classes=list("abcdef"))
FEW = card(classes=list("abcde"))
NUMBERS = card(task=Task.REGRESSION, classes=[], targets=["age"])
MSE = {"loss": {"name": "mse"}}

Body = dict[str, Any]


def naming(metric: str) -> dict[str, Body]:
    """By the pointer: each place of a spec that can name a metric, naming this one."""
    return {
        "#/early_stopping/metric": {"early_stopping": {"metric": metric}},
        "#/schedule/metric": {"schedule": {"name": "plateau", "metric": metric}},
        "#/checkpoints/best_by": {"checkpoints": {"best_by": metric}},
    }


def refusal(body: Body, task: Task, about: Card | None) -> str | None:
    """The pointer to what is refused, or None."""
    try:
        suiting.check(Spec.model_validate(body), task, about)
    except SpecRefused as error:
        return error.pointer
    return None


def refusals(body: Body, about: Card) -> list[str | None]:
    """By someone who has seen the card, and by someone who has not."""
    return [refusal(body, about.task, about), refusal(body, about.task, None)]


@pytest.mark.parametrize("loss", ["cross_entropy", "nll", "mse"])
def test_classes_are_trained_with_any_loss(loss: str) -> None:
    assert refusals({"loss": {"name": loss}}, CLASSES) == [None, None]


@pytest.mark.parametrize(("loss", "pointer"), [("cross_entropy", "#/loss"), ("nll", "#/loss"), ("mse", None)])
def test_numbers_are_trained_with_mse_alone(loss: str, pointer: str | None) -> None:
    assert refusals({"loss": {"name": loss}}, NUMBERS) == [pointer, pointer]


@pytest.mark.parametrize("metric", OF_CLASSES)
def test_metrics_of_classes_are_refused_for_numbers(metric: str) -> None:
    for pointer, body in naming(metric).items():
        assert refusals(body | MSE, NUMBERS) == [pointer, pointer]
        assert refusals(body, CLASSES) == [None, None]


@pytest.mark.parametrize("metric", OF_NUMBERS)
def test_metrics_of_numbers_are_refused_for_classes(metric: str) -> None:
    for pointer, body in naming(metric).items():
        assert refusals(body, CLASSES) == [pointer, pointer]
        assert refusals(body | MSE, CLASSES) == [pointer, pointer]  # one-hot classes are classes
        assert refusals(body | MSE, NUMBERS) == [None, None]


@pytest.mark.parametrize("metric", ["train_loss", "test_loss"])
def test_losses_are_metrics_of_both(metric: str) -> None:
    for body in naming(metric).values():
        assert refusals(body, CLASSES) == [None, None]
        assert refusals(body | MSE, NUMBERS) == [None, None]


def test_the_five_likeliest_of_five_classes_say_nothing() -> None:
    for pointer, body in naming("test_top5_accuracy").items():
        assert refusals(body, FEW) == [pointer, None]


def test_a_metric_that_no_schedule_watches_is_no_obstacle() -> None:
    assert refusals({"schedule": {"name": "cosine"}} | MSE, NUMBERS) == [None, None]


@pytest.mark.parametrize(
    ("mixing", "pointer"),
    [
        ({"mixup": 0.2}, None),
        ({"cutmix": 1.0}, "#/augmentation/cutmix"),
        ({"mixup": 0.2, "cutmix": 1.0}, "#/augmentation/cutmix"),
    ],
)
def test_numbers_can_be_blended_but_not_cut(mixing: Body, pointer: str | None) -> None:
    assert refusals({"augmentation": mixing} | MSE, NUMBERS) == [pointer, pointer]
    assert refusals({"augmentation": mixing}, CLASSES) == [None, None]


@pytest.mark.parametrize("loss", ["cross_entropy", "nll"])
def test_each_class_has_a_weight(loss: str) -> None:
    for count, pointer in ((5, "#/loss/class_weights"), (6, None), (7, "#/loss/class_weights")):
        body = {"loss": {"name": loss, "class_weights": [1.0] * count}}
        assert refusals(body, CLASSES) == [pointer, None]
    for weights in ("balanced", None):
        assert refusals({"loss": {"name": loss, "class_weights": weights}}, FEW) == [None, None]


@pytest.mark.parametrize("normalization", ["none", "dataset", "imagenet"])
def test_every_normalization_suits_every_dataset(normalization: str) -> None:
    assert refusals({"normalization": normalization}, CLASSES) == [None, None]
    assert refusals({"normalization": normalization} | MSE, NUMBERS) == [None, None]
