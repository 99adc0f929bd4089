"""Early stopping: when a metric has stopped getting better."""

from collections.abc import Iterable

from worker.jobs.spec import LOWER_IS_BETTER, EarlyStopping


def epochs_without_improvement(values: Iterable[float | None], spec: EarlyStopping) -> int:
    """How many epochs have passed since the best one; a value that is missing is none.

    An epoch is better than the best before it by more than `min_delta`.
    """
    sign = -1 if spec.metric in LOWER_IS_BETTER else 1
    best: float | None = None
    passed = 0
    for value in values:
        if value is not None and (best is None or sign * (value - best) > spec.min_delta):
            best, passed = value, 0
        else:
            passed += 1
    return passed
