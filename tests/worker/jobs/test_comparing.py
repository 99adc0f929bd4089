import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sqlalchemy import event

from tests.worker.jobs.answering import CLASSES, PROVENANCE, answers, job_with
from tests.worker.jobs.making import record, result, running
from worker.jobs import comparing
from worker.jobs.answers import PictureAnswers
from worker.jobs.comparing import Counts, Course, Difference, Pair, Result, differences, mcnemar
from worker.jobs.db import Database
from worker.jobs.errors import NotFound
from worker.jobs.owners import Caller
from worker.jobs.report import report_of
from worker.jobs.tables import Job

MANY = 60


def of(right: list[int]) -> PictureAnswers:
    """Of so many pictures of the first class as there are; 1: the answer is right."""
    return answers([0] * len(right), [1 - each for each in right])


def compared(db: Database, first: PictureAnswers, second: PictureAnswers, **more: Any) -> Pair:
    jobs = [job_with(db, first), job_with(db, second, **more)]
    (pair,) = comparing.pairs([comparing.result(db, job.id) for job in jobs])
    return pair


@given(st.integers(0, 400), st.integers(0, 400))
@settings(deadline=None)
def test_the_exact_test_is_scipys(only_first: int, only_second: int) -> None:
    both = only_first + only_second
    expected = binomtest(only_first, both, 0.5).pvalue if both else 1.0
    assert mcnemar(only_first, only_second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("only_first", "only_second"), [(3, 12), (12, 3), (0, 1), (0, 7), (500, 600)])
def test_it_is_the_tail_of_the_binomial_distribution_counted_out(only_first: int, only_second: int) -> None:
    both, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(Fraction(math.comb(both, number), 2**both) for number in range(fewer + 1))
    assert mcnemar(only_first, only_second) == pytest.approx(float(min(1, 2 * tail)), rel=1e-12)


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"), [(125_000, 124_000, 0.0454), (0, 250_000, 0.0), (125_000, 125_000, 1.0)]
)
def test_it_takes_as_many_pictures_as_there_may_be(only_first: int, only_second: int, expected: float) -> None:
    normal = math.erfc((abs(only_first - only_second) - 1) / math.sqrt(2 * (only_first + only_second)))
    assert mcnemar(only_first, only_second) == pytest.approx(min(1.0, normal), rel=1e-2, abs=1e-300)
    assert mcnemar(only_first, only_second) == pytest.approx(expected, abs=5e-4)


def test_two_that_answer_the_same_are_not_distinguishable(db: Database) -> None:
    pair = compared(db, of([1] * 7 + [0] * 3), of([1] * 7 + [0] * 3))
    assert (pair.counts, pair.p, pair.better, pair.flipped) == (Counts(7, 0, 0, 3), 1.0, None, ())
    assert pair.verdict.startswith("Not distinguishable: 0 of 10 test pictures")


def test_a_split_that_chance_explains_is_no_difference_and_a_very_uneven_one_is(db: Database) -> None:
    even = compared(db, of([1, 1, 1, 0, 0, 1]), of([0, 0, 1, 1, 0, 1]))
    assert even.counts == Counts(both_right=2, only_first=2, only_second=1, both_wrong=1)
    assert (even.p, even.better, even.flipped) == (1.0, None, (0, 1, 3))
    uneven = compared(db, of([1] + [0] * MANY), of([0] + [1] * MANY))
    assert uneven.counts == Counts(0, 1, MANY, 0)
    assert uneven.p is not None
    assert uneven.p < 1e-12
    assert uneven.better is uneven.second
    assert uneven.verdict == (
        f"Job {uneven.second.job.id} is better: 1 of 61 test pictures only the first got right, and 60 only the second "
        "(p < 0.001)."
    )
    assert uneven.flipped == tuple(range(20))  # the first of them only
    assert compared(db, of([1] * 9), of([0] * 9)).verdict.endswith("(p = 0.0039).")


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=50))
def test_pictures_are_counted_one_by_one(pictures: list[tuple[int, int, int]]) -> None:
    job, report = Job(id="x", labels={}, spec={}, provenance=PROVENANCE), report_of({(0, 0): 1}, CLASSES, 1)
    labels, *both = ([each[place] for each in pictures] for place in range(3))
    results = [Result(job, None, report, answers(labels, predicted), {}) for predicted in both]
    (pair,) = comparing.pairs(results)
    split = [(true == first, true == second) for true, first, second in pictures]
    ways = ((True, True), (True, False), (False, True), (False, False))
    assert pair.counts == Counts(*(split.count(way) for way in ways))
    assert pair.flipped == tuple(index for index, (first, second) in enumerate(split) if first != second)[:20]


def test_other_pictures_are_not_paired_and_it_is_said_why(db: Database) -> None:
    other = PROVENANCE | {"dataset": {"sha256": "cd" * 32}}
    pair = compared(db, of([1]), of([0]), provenance=other)
    assert (pair.same_pictures, pair.counts, pair.p, pair.better, pair.flipped) == (False, None, None, None, ())
    assert "tested on different pictures" in pair.verdict


def test_without_answers_there_is_no_test_and_it_is_said_whose_are_missing(db: Database) -> None:
    pair = compared(db, of([1]), of([0]), are_kept=False)
    assert (pair.same_pictures, pair.p) == (True, None)
    assert f"answers of job {pair.second.job.id}: What was answered" in pair.verdict


def test_a_job_without_a_report_has_no_test_either(db: Database) -> None:
    first, queued = job_with(db, of([1])), running(db)
    (pair,) = comparing.pairs([comparing.result(db, job.id) for job in (first, queued)])
    assert pair.p is None
    assert f"answers of job {queued.id}: The job has no report yet" in pair.verdict


def test_of_three_jobs_there_are_three_pairs(db: Database) -> None:
    jobs = [job_with(db, of([1, 0])) for _ in range(3)]
    pairs = comparing.pairs([comparing.result(db, job.id) for job in jobs])
    ids = [job.id for job in jobs]
    assert [(pair.first.job.id, pair.second.job.id) for pair in pairs] == [
        (ids[0], ids[1]),
        (ids[0], ids[2]),
        (ids[1], ids[2]),
    ]


def test_each_metric_has_its_best_and_its_newest_value(db: Database) -> None:
    job = running(db)
    for epoch, (loss, accuracy) in enumerate([(2.0, 0.5), (1.0, 0.75), (1.0, 0.75), (math.inf, 0.25)], start=1):
        record(db, job, epoch, test_loss=loss, test_accuracy=accuracy)
    courses = comparing.result(db, job.id).courses
    assert courses["test_loss"] == Course(best=1.0, best_epoch=2, last=None)
    assert courses["test_accuracy"] == Course(best=0.75, best_epoch=2, last=0.25)
    assert courses["train_loss"] == Course(best=0.5, best_epoch=4, last=result(4).train_loss)
    assert "test_mae" not in courses
    assert comparing.result(db, running(db).id).courses == {}


def test_a_first_epoch_that_is_recorded_while_it_is_looked_is_none_yet(db: Database) -> None:
    job = running(db)
    asked: list[str] = []

    def arrives(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM epochs" in statement and not asked:
            asked.append(statement)
            record(db, job, 1)

    event.listen(db._engine, "after_cursor_execute", arrives)
    try:
        found = comparing.result(db, job.id)
    finally:
        event.remove(db._engine, "after_cursor_execute", arrives)
    assert asked
    assert found.courses == {}
    assert comparing.result(db, job.id).courses["test_accuracy"].best_epoch == 1


def test_somebody_elses_job_is_not_there(db: Database) -> None:
    job = job_with(db, of([1]))
    with pytest.raises(NotFound):
        comparing.result(db, job.id, Caller("somebody", sees_all=False))


def test_documents_differ_where_not_all_have_the_same() -> None:
    documents: dict[str, dict[str, Any]] = {
        "a": {"lr": 0.1, "model": {"name": "mlp", "hidden": [8, 8]}, "clip": None, "labels": {}, "seed": 0},
        "b": {"lr": 0.1, "model": {"name": "cnn"}, "clip": None, "labels": {"a/b~c": "x"}, "seed": 0},
        "c": {"lr": 0.2, "model": {"name": "mlp", "hidden": [8]}, "clip": 1.0, "labels": {}, "seed": 0},
    }
    assert differences(documents) == [
        Difference("/lr", {"a": 0.1, "b": 0.1, "c": 0.2}),
        Difference("/model/name", {"a": "mlp", "b": "cnn", "c": "mlp"}),
        Difference("/model/hidden", {"a": [8, 8], "c": [8]}),
        Difference("/clip", {"a": None, "b": None, "c": 1.0}),
        Difference("/labels", {"a": {}, "c": {}}),
        Difference("/labels/a~1b~0c", {"b": "x"}),
    ]
    assert differences({"a": documents["a"], "d": documents["a"]}) == []
