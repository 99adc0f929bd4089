import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from worker.jobs.answers import STEPS
from worker.jobs.report import accuracy
from worker.jobs.spec import MSE, NLL, CrossEntropy, Loss
from worker.training.scores import Answers, Distances, Scores, probabilities

SIZES = [7, 1, 64, 28]  # of batches, which need not be even
N = sum(SIZES)


def computed(scores: Scores, pred: Tensor, y: Tensor) -> dict[str, float]:
    """Of one whole array, seen in batches."""
    for part in zip(torch.split(pred, SIZES), torch.split(y, SIZES), strict=True):
        scores.update(*part)
    return scores.compute()


def made(targets: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randn(N, targets, generator=generator) * 5 + 3
    return y + torch.randn(N, targets, generator=generator), y


def plain(pred: NDArray[Any], y: NDArray[Any]) -> dict[str, float]:
    """The textbook's formulas, per target and then averaged."""
    pred, y = pred.astype(np.float64), y.astype(np.float64)
    mae = np.abs(pred - y).mean(axis=0)
    r2 = 1 - ((pred - y) ** 2).sum(axis=0) / ((y - y.mean(axis=0)) ** 2).sum(axis=0)
    return {"test_mae": mae.mean(), "test_r2": r2.mean()}


def test_accuracy_is_the_share_of_right_answers() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, y = torch.randn(N, 4, generator=generator), torch.randint(4, (N,), generator=generator)
    expected = float((pred.numpy().argmax(axis=1) == y.numpy()).mean())
    assert 0.1 < expected < 0.9
    assert computed(Answers(4), pred, y)["test_accuracy"] == expected


@pytest.mark.parametrize(("right", "expected"), [(True, 1.0), (False, 0.0)])
def test_accuracy_and_f1_go_from_0_to_1(right: bool, expected: float) -> None:
    y = torch.arange(N) % 3
    answers = y if right else (y + 1) % 3
    assert computed(Answers(3), torch.eye(3)[answers], y) == {"test_accuracy": expected, "test_f1": expected}


@given(st.lists(st.tuples(st.integers(0, 6), st.lists(st.integers(0, 3), min_size=7, max_size=7)), min_size=1))
@settings(deadline=None)
def test_scores_are_those_of_counting_picture_by_picture_also_among_equal_logits(
    pictures: list[tuple[int, list[int]]],
) -> None:
    answers = Answers(7)
    for true, logits in pictures:
        answers.update(torch.tensor([logits], dtype=torch.float32), torch.tensor([true]))
    ranked = [sorted(range(7), key=lambda index: -logits[index]) for _, logits in pictures]  # equal ones as they lie
    ranks = [ranking.index(true) for (true, _), ranking in zip(pictures, ranked, strict=True)]
    asked = [(true, ranking[0]) for (true, _), ranking in zip(pictures, ranked, strict=True)]
    assert answers.confusion() == {pair: asked.count(pair) for pair in asked}
    scores = answers.compute()
    assert scores.pop("test_accuracy") == ranks.count(0) / len(ranks)
    assert scores.pop("test_top5_accuracy") == sum(rank < 5 for rank in ranks) / len(ranks)
    assert scores == {"test_f1": pytest.approx(plain_f1(asked))}


def plain_f1(asked: list[tuple[int, int]]) -> float:
    """Averaged over the classes that occur among (class, predicted class)."""
    found = []
    for label in {label for pair in asked for label in pair}:
        right = asked.count((label, label))
        precision = right / max(1, sum(predicted == label for _, predicted in asked))
        recall = right / max(1, sum(true == label for true, _ in asked))
        found.append(2 * precision * recall / (precision + recall) if right else 0.0)
    return sum(found) / len(found)


def test_batches_of_any_size_make_the_same_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, y = torch.randn(N, 8, generator=generator), torch.randint(8, (N,), generator=generator)
    whole = Answers(8)
    whole.update(pred, y)
    assert computed(Answers(8), pred, y) == whole.compute()


def test_five_answers_are_told_only_of_more_than_five_classes() -> None:
    y = torch.arange(N) % 5
    assert "test_top5_accuracy" not in computed(Answers(5), torch.eye(5)[y], y)
    assert "test_top5_accuracy" in computed(Answers(6), torch.eye(6)[y], y)


def test_a_logit_that_is_no_number_is_not_among_the_five_largest() -> None:
    y = torch.arange(N) % 7
    pred = torch.eye(7)[y]
    pred[torch.arange(N), y] = math.nan
    assert computed(Answers(7), pred, y)["test_top5_accuracy"] == 0.0
    assert computed(Answers(7), torch.full((N, 7), math.nan), y)["test_top5_accuracy"] == 0.0


def shares(logits: Tensor) -> Tensor:
    """Equal ones where none is positive."""
    return logits.clamp(min=1e-30) / logits.clamp(min=1e-30).sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("loss", "outputs", "expected"),
    [
        (CrossEntropy(), lambda logits: logits, lambda logits: logits.softmax(1)),
        (NLL(name="nll"), lambda logits: logits.log_softmax(1), lambda logits: logits.softmax(1)),
        (MSE(name="mse"), lambda logits: logits, shares),  # a softmax would level what are estimates of probabilities
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_answered_for_each_picture_is_kept_as_a_prediction_would_say_it(
    loss: Loss, outputs: Any, expected: Any, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(N, 4, generator=generator), torch.randint(4, (N,), generator=generator)
    pred = outputs(logits).to(dtype)
    answers = Answers(4, partial(probabilities, loss=loss))
    score = computed(answers, pred, y)["test_accuracy"]
    found = answers.picture_by_picture()
    assert found is not None
    assert found.labels == y.tolist()
    assert found.predicted == pred.argmax(1).tolist()
    assert accuracy(answers.confusion()) == score == sum(found.right()) / N
    likeliest = expected(pred.float() if isinstance(loss, MSE) else logits.to(dtype).float()).max(1).values
    precise = 2e-5 if dtype is torch.float32 else 0.02
    assert [found.probability(index) for index in range(N)] == pytest.approx(likeliest.tolist(), abs=precise)


def test_a_probability_that_is_no_number_is_none_at_all() -> None:
    answers = Answers(2, partial(probabilities, loss=CrossEntropy()))
    answers.update(torch.tensor([[math.nan, 1.0], [9e30, -9e30]]), torch.tensor([1, 0]))
    found = answers.picture_by_picture()
    assert found is not None
    assert (found.predicted, found.steps) == ([0, 0], [0, STEPS])


def test_keeping_answers_changes_no_score() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, y = torch.randn(N, 8, generator=generator), torch.randint(8, (N,), generator=generator)
    kept, not_kept = Answers(8, partial(probabilities, loss=CrossEntropy())), Answers(8)
    assert computed(kept, pred, y) == computed(not_kept, pred, y)
    assert kept.confusion() == not_kept.confusion()
    assert not_kept.picture_by_picture() is None


def test_ten_thousand_classes_need_no_matrix() -> None:
    answers = Answers(10_000)
    y = torch.tensor([9_999, 0, 5])
    pred = torch.zeros(3, 10_000)
    pred[torch.arange(3), torch.tensor([9_999, 9_998, 5])] = 1.0
    answers.update(pred, y)
    assert answers.confusion() == {(9_999, 9_999): 1, (0, 9_998): 1, (5, 5): 1}
    assert answers.compute() == {
        "test_accuracy": 2 / 3,
        "test_top5_accuracy": 1.0,  # of equal logits the first come first: class 0 is second
        "test_f1": pytest.approx(2 / 4),
    }


@pytest.mark.parametrize("targets", [1, 3])
def test_distances_are_the_textbooks(targets: int) -> None:
    pred, y = made(targets)
    assert computed(Distances(), pred, y) == pytest.approx(plain(pred.numpy(), y.numpy()), rel=1e-9)


def test_right_numbers_have_no_distance() -> None:
    _, y = made(2)
    assert computed(Distances(), y, y) == {"test_mae": 0.0, "test_r2": 1.0}


def test_who_always_says_the_mean_explains_nothing() -> None:
    _, y = made(2)
    said = y.double().mean(dim=0, keepdim=True).expand(N, 2)
    assert computed(Distances(), said, y)["test_r2"] == pytest.approx(0, abs=1e-9)


def test_who_knows_less_than_the_mean_is_below_0() -> None:
    _, y = made(1)
    assert computed(Distances(), -y, y)["test_r2"] < 0


def test_a_large_mean_costs_no_digits() -> None:
    """Such as that of a year, or of a time in seconds."""
    pred, y = made(2)
    pred, y = (1.6e7 + 10 * each.round() for each in (pred, y))
    assert computed(Distances(), pred, y) == pytest.approx(plain(pred.numpy(), y.numpy()), rel=1e-9)


@pytest.mark.parametrize("number", [0.0, 0.1, 0.3, 1 / 3, 2024.7, 1e6 + 0.1])
@pytest.mark.parametrize("right", [True, False])
def test_numbers_that_are_all_the_same_have_no_r2(number: float, right: bool) -> None:
    y = torch.full((N, 1), number)
    scores = computed(Distances(), y if right else y + 1, y)
    assert not math.isfinite(scores["test_r2"])
    assert scores["test_mae"] == pytest.approx(0 if right else 1, rel=1e-6)


def test_one_target_of_several_that_is_always_the_same_is_enough_for_that() -> None:
    pred, y = made(2)
    y[:, 1] = 0.1
    scores = computed(Distances(), pred, y)
    assert not math.isfinite(scores["test_r2"])
    assert scores["test_mae"] == pytest.approx(float((pred.double() - y.double()).abs().mean()))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_network_that_diverged_has_no_finite_distance(number: float) -> None:
    pred, y = made(2)
    pred[50, 0] = number
    assert not any(math.isfinite(value) for value in computed(Distances(), pred, y).values())
