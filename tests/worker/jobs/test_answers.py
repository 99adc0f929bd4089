import struct
import zlib
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from tests.worker.jobs.answering import answers, job_with, record_answers
from tests.worker.jobs.making import claim, finish, progress, record, report, result, running, saved
from worker.jobs import answers as kept
from worker.jobs import records
from worker.jobs.answers import MOST_PICTURES, STEPS, PictureAnswers, class_number, given, why_none
from worker.jobs.db import Database
from worker.jobs.errors import NotReady, SpecRefused, StaleAttempt
from worker.jobs.report import report_of
from worker.jobs.states import Outcome


@drawn(
    st.sampled_from([1, 2, 10, 256, 257, 65_536, 65_537, 10**6]).flatmap(
        lambda classes: st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1), st.integers(0, STEPS))
        )
    )
)
def test_what_is_packed_comes_out_as_it_was(rows: list[tuple[int, int, int]]) -> None:
    columns = [[row[place] for row in rows] for place in range(3)]
    found = PictureAnswers.unpack(PictureAnswers(*columns).pack())
    assert [list(found.labels), list(found.predicted), list(found.steps)] == columns
    assert len(found) == len(rows)


def test_ten_thousand_answers_take_a_few_bytes_each() -> None:
    labels = [(7 * index) % 10 for index in range(10_000)]
    packed = answers(labels, labels, [1 - (index * 7919 % 10_000) / 10_000 for index in range(10_000)]).pack()
    assert len(packed) < 3.5 * 10_000


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        struct.pack("<BBI", 2, 1, 0) + zlib.compress(b""),  # of another version
        struct.pack("<BBI", 1, 1, 2) + zlib.compress(b"\0" * 7),  # too few
        struct.pack("<BBI", 1, 1, 1) + zlib.compress(b"\0" * 10**7),  # far too many: they are not all unpacked
        struct.pack("<BBI", 1, 1, 1) + b"nothing that was compressed",
    ],
)
def test_what_was_not_packed_here_is_refused(packed: bytes) -> None:
    with pytest.raises((ValueError, struct.error, zlib.error)):
        PictureAnswers.unpack(packed)


def test_answers_are_kept_with_the_newest_report(db: Database) -> None:
    job = job_with(db, answers([0, 1, 2], [0, 0, 2], [0.5, 0.25, 1.0]))
    other = job_with(db, answers([0, 0], [1, 1]))
    record_answers(db, job, answers([0, 1, 2], [0, 1, 1], [0.75, 0.5, 0.25]), epoch=2)
    found, of_pictures = kept.of_job(db, job.id)
    assert (found.epoch, found.accuracy) == (2, 2 / 3)
    assert of_pictures is not None
    assert list(of_pictures.predicted) == [0, 1, 1]
    assert [of_pictures.probability(index) for index in range(3)] == pytest.approx([0.75, 0.5, 0.25], abs=1e-5)
    assert list(of_pictures.right()) == [1, 1, 0]
    _, of_others = kept.of_job(db, other.id)
    assert of_others is not None
    assert list(of_others.predicted) == [1, 1]


def test_an_epoch_without_answers_forgets_those_of_the_epoch_before(db: Database) -> None:
    job = job_with(db, answers([0, 1], [0, 0]))
    records.record_epoch(db, job.id, 1, result(2), saved(2), progress(2), report(2))
    assert kept.of_job(db, job.id) == (report(2), None)


def test_an_attempt_that_lost_its_job_leaves_the_answers_as_they_are(db: Database) -> None:
    job = job_with(db, answers([0, 1], [0, 0]))
    finish(db, job, Outcome.KILLED)
    claim(db)
    with pytest.raises(StaleAttempt):
        record_answers(db, job, answers([0, 1], [1, 1]), epoch=2)
    _, found = kept.of_job(db, job.id)
    assert found is not None
    assert list(found.predicted) == [0, 0]


def test_without_a_report_there_is_nothing_of_single_pictures_either(db: Database) -> None:
    job = running(db)
    record(db, job, 1)  # as a regression does
    with pytest.raises(NotReady, match="Regression has none"):
        kept.of_job(db, job.id)


@pytest.mark.parametrize(("pictures", "said"), [(MOST_PICTURES + 1, "more than 250000"), (20, "extend it")])
def test_why_there_are_no_answers_is_said(pictures: int, said: str) -> None:
    assert said in why_none(report_of({(0, 0): pictures}, ["cat"], 1))


SOME = answers([0, 0, 1, 1, 2, 0, 2], [1, 0, 0, 1, 0, 1, 1], [0.5, 0.9, 0.8, 0.7, 0.99, 0.6, 0.5])


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"label": 0, "predicted": 1}, [5, 0]),
        ({"label": 1, "predicted": 1}, [3]),
        ({"label": 2, "predicted": None}, [4, 6]),
        ({"label": None, "predicted": 1}, [5, 0, 6]),  # of equals, as they lie
        ({"label": None, "predicted": None}, [4, 2, 5, 0, 6]),
        ({"label": 2, "predicted": 2}, []),
    ],
)
def test_a_cell_a_row_or_a_column_of_the_matrix_comes_with_the_most_confident_answers_first(
    asked: dict[str, Any], expected: list[int]
) -> None:
    assert given(SOME, **asked) == expected


def test_a_class_is_found_by_its_label_and_only_where_that_names_one() -> None:
    assert class_number(["cat", "dog"], "dog", pointer="?label") == 1
    for labels, label, said in ((["cat"], "Cat", "no class"), (["cat", "dog", "cat"], "cat", "Several classes")):
        with pytest.raises(SpecRefused, match=said) as refused:
            class_number(labels, label, pointer="?label")
        assert refused.value.pointer == "?label"
