"""How commands write numbers and draw curves."""

import pytest

from service.commands import text
from service.commands.plotting import Chart, Curve, chart


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59.4, "59 s"),
        (60, "1:00"),
        (3599.9, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_durations(seconds: float | None, written: str) -> None:
    assert text.duration(seconds) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "-"),
        (3, "3"),
        (0.0, "0.0000"),
        (1.0, "1.0000"),
        (0.64415, "0.6442"),
        (1e-7, "1e-07"),
        (123456.7, "1.235e+05"),
    ],
)
def test_numbers(value: float | None, written: str) -> None:
    assert text.number(value) == written


@pytest.mark.parametrize(
    ("count", "written"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5e15, "4547.5 TiB")]
)
def test_sizes(count: float | None, written: str) -> None:
    assert text.size(count) == written


def test_text_of_strangers_stays_one_harmless_line() -> None:
    assert text.clean("\x1b[2J\r\n\t\x00\x7f\x9b\u2028\u202e\ud800") == r"\x1b[2J\r\n\t\x00\x7f\x9b\u2028\u202e\ud800"
    for harmless in ("Grüße, 日本 שלום", "👩\u200d🔬", ""):
        assert text.clean(harmless) == harmless


def drawn(points: list[tuple[float, float | None]], *more: list[tuple[float, float | None]]) -> Chart:
    return chart([Curve("c", each) for each in (points, *more)], "epoch", 16, 7, ascii_only=True)


def cells(found: Chart) -> list[str]:
    return ["".join(mark for mark, _ in line.cells).rstrip() for line in found.lines]


def test_a_line_goes_from_corner_to_corner() -> None:
    rising = drawn([(1, 0.0), (2, 4.0)])
    assert [line.index("*") for line in cells(rising)] == sorted(
        (line.index("*") for line in cells(rising)), reverse=True
    )
    assert (cells(rising)[-1][0], cells(rising)[0][-1]) == ("*", "*")
    assert [line.label.strip() for line in rising.lines] == ["4", "", "2", "", "0"]
    assert rising.numbers.split() == ["1", "epoch", "2"]


def test_what_is_no_number_is_a_gap() -> None:
    row = cells(drawn([(0, 1.0), (5, 1.0), (6, None), (13, 1.0)]))[2]
    assert row.startswith("****")
    assert "   " in row
    assert row.endswith(" *")


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e9, 1e-9, 0.6442])
def test_a_single_point_is_drawn_in_the_middle(value: float) -> None:
    found = drawn([(7, value)])
    assert [line.strip() for line in cells(found)] == ["", "", "*", "", ""]
    assert found.numbers.split() == ["epoch", "7"]
    assert any(line.label.strip() for line in found.lines)


def test_each_curve_knows_its_cells() -> None:
    found = drawn([(1, 0.0), (9, 0.0)], [(1, 9.0), (9, 9.0)])
    assert {number for _, number in found.lines[0].cells} == {1, None}
    assert {number for _, number in found.lines[-1].cells} == {0}


@pytest.mark.parametrize(("low", "high"), [(0.6442, 0.6443), (0, 1e6), (-5, 5), (1e-6, 2e-6), (1e8, 3e8)])
def test_an_axis_has_round_numbers_that_differ(low: float, high: float) -> None:
    labels = [line.label.strip() for line in chart([Curve("c", [(1, low), (2, high)])], "x", 60, 14).lines]
    shown = [float(label) for label in labels if label]
    assert len(shown) == len(set(shown)) >= 2
    assert shown == sorted(shown, reverse=True)
    assert all(low - 1e-12 <= each <= high * 1.01 for each in shown)
