"""Which checkpoints stay and which is the best: what the spec says, whatever an attempt did before."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import update
from sqlmodel import col

from tests.worker.jobs.imported import imported
from tests.worker.jobs.making import claim, finish, progress, record, result, running, saved
from worker.jobs import aliases, records
from worker.jobs.db import Database
from worker.jobs.errors import NotFound
from worker.jobs.spec import LOWER_IS_BETTER, Metric
from worker.jobs.states import Outcome
from worker.jobs.tables import Job

VALUES = [0.3, 0.7, 0.2, 0.7, 0.9, 0.5]


def keeping(db: Database, keep: str = "all", **more: Any) -> Job:
    return running(db, checkpoints={"keep": keep} | more)


def epochs_of(db: Database, job: Job) -> list[int]:
    return [each.row.epoch for each in records.checkpoints(db, job.id)]


def best_of(db: Database, job: Job) -> int:
    (best,) = [each.row.epoch for each in records.checkpoints(db, job.id) if each.is_best]
    assert records.checkpoint(db, job.id, "best").row.epoch == best
    return best


def expected(values: list[float], keep: str, every: int, metric: str) -> tuple[set[int], int]:
    """What stays, and the best, by another way than the code's: from all values at once."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    ranked = sorted(range(len(values)), key=lambda index: (-sign * values[index], index))
    best, last = ranked[0] + 1, len(values)
    whole = set(range(1, last + 1))
    stays = {
        "all": whole,
        "best": {best, last},
        "last": {last},
        "every": {best, last} | {epoch for epoch in whole if epoch % every == 0},
    }[keep]
    return stays, best if best in stays else last


@pytest.mark.parametrize(
    ("keep", "every", "metric"),
    [
        *((keep, 1, metric) for keep in ("all", "best", "last", "every") for metric in ("test_loss", "test_accuracy")),
        *(("every", 3, metric) for metric in get_args(Metric)),
    ],
)
def test_after_each_epoch_those_stay_that_the_spec_keeps(db: Database, keep: str, every: int, metric: str) -> None:
    job = running(db)
    set_policy(db, job, {"keep": keep, "every": every, "best_by": metric})
    for epoch, value in enumerate(VALUES, start=1):
        record(db, job, epoch, **{metric: value})
        assert (set(epochs_of(db, job)), best_of(db, job)) == expected(VALUES[:epoch], keep, every, metric)
        assert records.checkpoint(db, job.id, "last").row.epoch == epoch
    assert [row.epoch for row in records.epochs(db, job.id)] == list(range(1, len(VALUES) + 1))


def set_policy(db: Database, job: Job, policy: dict[str, Any]) -> None:
    """As enqueueing would, had the dataset all metrics."""
    set_spec(db, job, job.spec | {"checkpoints": policy})


def set_spec(db: Database, job: Job, spec: dict[str, Any]) -> None:
    with db.write() as session:
        session.execute(update(Job).where(col(Job.id) == job.id).values(spec=spec))


@pytest.mark.parametrize("keep", ["all", "best", "last", "every"])
def test_the_caller_is_told_all_files_that_stay(db: Database, keep: str) -> None:
    job, other = keeping(db, keep, every=2), running(db)
    record(db, other, 1)
    for epoch, accuracy in enumerate((0.5, 0.9, 0.1, 0.2, 0.3), start=1):
        row = saved(epoch)
        paths = records.record_epoch(db, job.id, 1, result(epoch, test_accuracy=accuracy), row, progress(epoch))
        kept = [saved(number) for number in epochs_of(db, job)]
        assert sorted(paths) == sorted(path for each in kept for path in (each.path, each.state_path))
        assert {row.path, row.state_path} <= set(paths)
    assert epochs_of(db, other) == [1]


@pytest.mark.parametrize(
    ("best_by", "rows", "best"),
    [
        (None, [{"test_accuracy": 0.5}, {"test_accuracy": 0.9}, {"test_accuracy": 0.9}], 2),
        (None, [{"test_accuracy": 0.9, "test_loss": 2.0}, {"test_accuracy": 0.5, "test_loss": 0.1}], 1),
        (None, [{"test_accuracy": None, "test_loss": loss} for loss in (2.0, 1.0, 1.0, 3.0)], 2),
        (None, [{"test_accuracy": None, "test_loss": loss} for loss in (math.nan, 9.0, math.inf)], 2),
        ("test_loss", [{"test_loss": loss} for loss in (math.nan, 5.0, math.inf, 5.0)], 2),
        ("test_r2", [{"test_r2": value} for value in (None, -3.0, -2.0)], 3),
        ("test_f1", [{"test_f1": None}] * 3, 1),
        ("test_mae", [{"test_mae": math.nan}, {"test_mae": math.nan}], 1),
    ],
)
def test_a_metric_that_is_missing_is_the_worst_and_of_equals_the_earliest_is_best(
    db: Database, best_by: str | None, rows: list[dict[str, Any]], best: int
) -> None:
    job = running(db)
    set_policy(db, job, {"keep": "best", "best_by": best_by})
    for epoch, metrics in enumerate(rows, start=1):
        record(db, job, epoch, **metrics)
    assert best_of(db, job) == best


def test_the_best_by_one_metric_need_not_be_the_best_by_another(db: Database) -> None:
    rows = [{"test_accuracy": 0.8, "test_loss": 0.9}, {"test_accuracy": 0.7, "test_loss": 0.5}]
    for best_by, best in (("test_accuracy", 1), ("test_loss", 2), (None, 1)):
        job = keeping(db, best_by=best_by)
        for epoch, metrics in enumerate(rows, start=1):
            record(db, job, epoch, **metrics)
        assert best_of(db, job) == best


def test_a_checkpoint_that_was_not_kept_is_not_found(db: Database) -> None:
    job = keeping(db, "last")
    record(db, job, 1)
    record(db, job, 2)
    with pytest.raises(NotFound, match="epoch 1, or did not keep it"):
        records.checkpoint(db, job.id, "1")


@pytest.mark.parametrize("keep", ["best", "last", "every"])
def test_what_an_alias_points_at_or_can_be_rolled_back_to_stays(db: Database, keep: str) -> None:
    job, other = keeping(db, keep, every=100), keeping(db, "last")
    record(db, other, 1)
    for epoch, accuracy in enumerate((0.9, 0.1, 0.2), start=1):
        record(db, job, epoch, test_accuracy=accuracy)
        aliases.put(db, "shoes", job.id, "last")
    best = {1} - ({1} if keep == "last" else set())  # which nothing but the spec keeps
    record(db, job, 4, test_accuracy=0.3)
    assert set(epochs_of(db, job)) == best | {2, 3, 4}
    aliases.put(db, "hats", job.id, "2")
    aliases.put(db, "shoes", other.id, "1")
    record(db, job, 5, test_accuracy=0.4)
    assert set(epochs_of(db, job)) == best | {2, 3, 5}
    aliases.remove(db, "hats")
    aliases.rollback(db, "shoes")
    paths = records.record_epoch(db, job.id, 1, result(6, test_accuracy=0.5), saved(6), progress(6))
    assert set(epochs_of(db, job)) == best | {3, 6}
    assert saved(3).path in paths
    record(db, other, 2)
    assert epochs_of(db, other) == [1, 2]
    aliases.remove(db, "shoes")
    record(db, job, 7, test_accuracy=0.6)
    assert set(epochs_of(db, job)) == best | {7}


def test_an_imported_checkpoint_has_one_file(db: Database, tmp_path: Path) -> None:
    job = imported(db, tmp_path)
    (kept,) = records.checkpoints(db, job.id)
    assert records.files(db, job.id) == [kept.row.path]
    assert kept.is_best
    assert kept.is_last


def test_an_attempt_that_goes_on_from_the_best_forgets_what_came_behind_it(db: Database) -> None:
    """The last one's file was damaged: the best is all that it can go on from."""
    first = keeping(db, "best")
    for epoch, accuracy in enumerate((0.1, 0.9, 0.2, 0.3), start=1):
        record(db, first, epoch, test_accuracy=accuracy)
    assert epochs_of(db, first) == [2, 4]
    finish(db, first, Outcome.KILLED)
    record(db, claim(db), 3, test_accuracy=0.4)
    assert [(each.row.epoch, each.row.attempt) for each in records.checkpoints(db, first.id)] == [(2, 1), (3, 2)]
    assert best_of(db, first) == 2


def test_a_job_of_before_there_was_a_choice_keeps_all_and_is_best_by_accuracy(db: Database) -> None:
    for spec in ({}, {"epochs": 5, "model": {"name": "forgotten"}}):
        job = running(db)
        set_spec(db, job, spec)
        for epoch, accuracy in enumerate((0.5, 0.7, 0.6), start=1):
            record(db, job, epoch, test_accuracy=accuracy)
        assert epochs_of(db, job) == [1, 2, 3]
        assert best_of(db, job) == 2
