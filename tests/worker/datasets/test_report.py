import pytest

from worker.datasets import report
from worker.datasets.pictures import Header
from worker.datasets.report import Findings
from worker.jobs.card import FindingKind

A, B, C = b"a", b"b", b"c"
CLASSES = ["cat", "dog", "owl"]


def test_a_finding_counts_all_its_cases_and_names_the_first_thousand() -> None:
    findings = Findings()
    findings.add(FindingKind.UNREADABLE, "These were left out.", [(f"{n}.png", "damaged") for n in range(1200)])
    (finding,) = findings.all
    assert (finding.kind, finding.count, finding.detail) == (FindingKind.UNREADABLE, 1200, "These were left out.")
    assert [note.file for note in finding.files] == [f"{n}.png" for n in range(1000)]
    assert finding.files[0].detail == "damaged"


def test_what_has_no_case_is_no_finding() -> None:
    findings = Findings()
    findings.add(FindingKind.DUPLICATE, "The same picture again.", [])
    assert findings.all == []


def test_the_same_pictures_are_those_behind_the_first() -> None:
    found = report.same_pictures(["1.png", "2.png", "3.png", "4.png", "5.png"], [A, B, A, A, B])
    assert found == [
        ("3.png", "the same as 1.png"),
        ("4.png", "the same as 1.png"),
        ("5.png", "the same as 2.png"),
    ]


def test_different_pictures_are_not_the_same() -> None:
    assert report.same_pictures(["1.png", "2.png", "3.png"], [A, B, C]) == []
    assert report.same_pictures([], []) == []


def test_each_test_picture_that_was_trained_on_has_leaked() -> None:
    found = report.leaked(["train/1.png", "train/2.png"], [A, B], ["test/1.png", "test/2.png", "test/3.png"], [B, C, B])
    assert found == [("test/1.png", "the same as train/2.png"), ("test/3.png", "the same as train/2.png")]


def test_pictures_that_are_the_same_on_one_side_only_have_not_leaked() -> None:
    assert report.leaked(["1.png", "2.png"], [A, A], ["3.png", "4.png"], [B, B]) == []


@pytest.mark.parametrize(
    ("width", "height", "says"),
    [
        (63, 64, "63 x 64: scaled up to 64 x 32"),
        (64, 31, "64 x 31: scaled up to 64 x 32"),
        (64, 97, "64 x 97: more than half is cut away"),  # 64 x 32 of it are left
        (193, 32, "193 x 32: more than half is cut away"),
        (5000, 500, "5000 x 500: more than half is cut away"),
        (10, 1000, "10 x 1000: scaled up to 64 x 32"),
    ],
)
def test_a_picture_that_does_not_suit_the_size_is_odd(width: int, height: int, says: str) -> None:
    assert report.odd_sizes([("a.png", Header(width, height, is_grey=False))], 32, 64) == [("a.png", says)]


@pytest.mark.parametrize(("width", "height"), [(64, 32), (128, 64), (64, 96), (192, 32), (6400, 3200), (100, 100)])
def test_a_picture_that_keeps_a_third_of_its_longer_side_is_not_odd(width: int, height: int) -> None:
    assert report.odd_sizes([("a.png", Header(width, height, is_grey=True))], 32, 64) == []


def test_a_class_without_pictures_on_a_side_is_empty_there() -> None:
    assert report.empty_classes(CLASSES, [5, 0, 0], [0, 5, 0]) == [
        ("dog", "no pictures to train on"),
        ("owl", "no pictures to train on"),
        ("cat", "no pictures to test on"),
        ("owl", "no pictures to test on"),
    ]


def test_classes_with_pictures_on_both_sides_are_not_empty() -> None:
    assert report.empty_classes(CLASSES, [5, 1, 1], [1, 1, 1]) == []


def test_classes_with_more_than_ten_times_the_pictures_of_the_smallest_outweigh_it() -> None:
    assert report.imbalance(CLASSES, [2, 21, 500]) == [
        ("dog", "21 training pictures; the smallest class has 2"),
        ("owl", "500 training pictures; the smallest class has 2"),
    ]


@pytest.mark.parametrize("counts", [[2, 20, 20], [0, 10, 100], [0, 0, 100], [0, 0, 0], [7, 7, 7]])
def test_up_to_ten_times_is_balanced_and_an_empty_class_has_a_finding_of_its_own(counts: list[int]) -> None:
    assert report.imbalance(CLASSES, counts) == []
    assert report.imbalance([], []) == []


def test_labels_are_counted_by_class() -> None:
    assert report.by_class([2, 0, 2, 2], CLASSES) == [1, 0, 3]
    assert report.by_class([], CLASSES) == [0, 0, 0]
    assert report.by_class([], []) == []
