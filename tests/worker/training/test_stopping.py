import pytest

from worker.jobs.spec import EarlyStopping
from worker.training.stopping import epochs_without_improvement

LOSS, ACCURACY = EarlyStopping(), EarlyStopping(metric="test_accuracy")


@pytest.mark.parametrize(
    ("values", "passed"),
    [([], 0), ([3.0], 0), ([3.0, 2.0], 0), ([2.0, 3.0], 1), ([3.0, 2.0, 2.0, 2.5], 2), ([3.0, None, 2.0, None], 1)],
)
def test_epochs_since_the_lowest_loss_are_counted(values: list[float | None], passed: int) -> None:
    assert epochs_without_improvement(values, LOSS) == passed


def test_accuracy_is_better_when_it_is_higher() -> None:
    assert epochs_without_improvement([0.5, 0.6, 0.55], ACCURACY) == 1


def test_less_than_the_least_difference_is_no_improvement() -> None:
    spec = EarlyStopping(min_delta=0.1)
    assert epochs_without_improvement([1.0, 0.95, 0.91], spec) == 2
    assert epochs_without_improvement([1.0, 0.95, 0.89], spec) == 0  # less than the best by more, in the end
