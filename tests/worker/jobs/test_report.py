from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.report import ClassReport, Confusion, accuracy, macro_f1, report_of

LABELS = ["cat", "dog", "emu", "fox"]
Asked = list[tuple[int, int]]  # (class, predicted class) of each picture
SOME = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


def expected(asked: Asked, label: int) -> tuple[int, float | None, float | None, float | None]:
    """Support, precision, recall and F1 of a class, by going through all pictures."""
    right = missed = wrongly = 0
    for true, predicted in asked:
        if true == label and predicted == label:
            right += 1
        elif true == label:
            missed += 1
        elif predicted == label:
            wrongly += 1
    precision = right / (right + wrongly) if right + wrongly else None
    recall = right / (right + missed) if right + missed else None
    if not right:
        return missed, precision, recall, 0.0 if missed or wrongly else None
    assert precision is not None
    assert recall is not None
    return right + missed, precision, recall, 2 / (1 / precision + 1 / recall)


@given(SOME)
def test_each_class_has_what_counting_its_pictures_gives(asked: Asked) -> None:
    report = report_of(Counter(asked), LABELS, 3)
    for index, label in enumerate(LABELS):
        support, precision, recall, f1 = expected(asked, index)
        found = report.classes[index]
        assert found == ClassReport(
            label=label, support=support, precision=precision, recall=recall, f1=found.f1 if f1 else f1
        )
        assert found.f1 == (pytest.approx(f1) if f1 else f1)


@given(SOME)
def test_averages_are_over_the_classes_that_occur_and_what_is_missing_counts_as_0(asked: Asked) -> None:
    report = report_of(Counter(asked), LABELS, 3)
    occurring = [expected(asked, label) for label in range(4) if any(label in pair for pair in asked)]
    for position, found in enumerate((report.macro_precision, report.macro_recall, report.macro_f1), start=1):
        assert found == pytest.approx(sum(values[position] or 0.0 for values in occurring) / len(occurring))
    assert report.macro_f1 == macro_f1(Counter(asked), 4)  # the number in the epoch's row


@given(SOME)
def test_the_matrix_counts_each_picture_once_and_right_ones_on_the_diagonal(asked: Asked) -> None:
    report = report_of(Counter(asked), LABELS, 3)
    matrix = report.confusion_matrix
    assert matrix is not None
    assert all(matrix[true][predicted] == asked.count((true, predicted)) for true in range(4) for predicted in range(4))
    assert report.accuracy == sum(matrix[index][index] for index in range(4)) / len(asked) == accuracy(Counter(asked))
    assert report.epoch == 3


def test_a_class_that_is_never_predicted_has_no_precision_and_an_absent_one_nothing() -> None:
    report = report_of({(0, 0): 2, (1, 0): 2}, LABELS[:3], 1)
    assert report.classes == [
        ClassReport(label="cat", support=2, precision=0.5, recall=1.0, f1=2 / 3),
        ClassReport(label="dog", support=2, precision=None, recall=0.0, f1=0.0),
        ClassReport(label="emu", support=0, precision=None, recall=None, f1=None),
    ]
    assert (report.macro_precision, report.macro_recall) == (0.25, 0.5)  # the emu is no part of them


def test_the_most_frequent_wrong_answers_come_first_and_right_ones_never() -> None:
    pairs = {(0, 0): 90, (3, 2): 5, (1, 0): 7, (0, 1): 5, (2, 3): 0}
    assert report_of(pairs, LABELS, 1).most_confused == [
        Confusion(label="dog", predicted="cat", count=7),
        Confusion(label="cat", predicted="dog", count=5),
        Confusion(label="fox", predicted="emu", count=5),
    ]


def test_ten_wrong_answers_are_told() -> None:
    labels = [str(number) for number in range(12)]
    found = report_of({(0, wrong): wrong for wrong in range(1, 12)}, labels, 1).most_confused
    assert [(confusion.predicted, confusion.count) for confusion in found] == [(str(n), n) for n in range(11, 1, -1)]


@pytest.mark.parametrize(("classes", "told"), [(200, True), (201, False)])
def test_a_matrix_of_very_many_classes_is_left_out(classes: int, told: bool) -> None:
    labels = [str(number) for number in range(classes)]
    report = report_of({(0, 0): 1, (classes - 1, 0): 1}, labels, 1)
    assert (report.confusion_matrix is not None) == told
    assert len(report.classes) == classes
    assert report.accuracy == 0.5
