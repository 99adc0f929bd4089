"""Curves on a terminal, in Braille: eight dots a character. Where those cannot be written, a star."""

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

_BRAILLE: Final = 0x2800
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a character: by row and column
_DASHES: Final = ((1, 0), (3, 3), (1, 2))  # dots that are drawn, and left out: curves differ without colours too
_TICKS: Final = (1, 2, 2.5, 5, 10)


class Curve(NamedTuple):
    name: str
    points: list[tuple[float, float | None]]  # None: no finite number, which leaves a gap


class Line(NamedTuple):
    """A line of a chart: what is left of the axis, and cells with the number of the curve that each is of (or None)."""

    label: str
    cells: list[tuple[str, int | None]]


class Chart(NamedTuple):
    lines: list[Line]
    axis: str
    numbers: str  # below the axis


def chart(curves: Sequence[Curve], across: str, width: int, height: int, *, ascii_only: bool = False) -> Chart:
    """`across`: what the axis of x is called. `width` and `height`: in characters, with the axes.

    At least one point has to be finite.
    """
    found = [(x, y) for curve in curves for x, y in curve.points if y is not None]
    xs, ys = [x for x, _ in found], [y for _, y in found]
    low, high = _bounds(min(ys), max(ys))
    rows = max(height - 2, 3)
    labels = _labels(low, high, rows)
    margin = max(map(len, labels.values()))
    columns = max(width - margin - 2, 10)
    canvas = _Canvas(columns, rows, (min(xs), max(xs)), (low, high), ascii_only=ascii_only)
    for number, curve in enumerate(curves):
        canvas.draw(curve, number)
    lines = [Line(labels.get(row, "").rjust(margin), canvas.row(row)) for row in range(rows)]
    corner, dash = ("+", "-") if ascii_only else ("└", "─")
    axis = " " * margin + corner + dash * columns
    first, last = f"{min(xs):g}", f"{max(xs):g}"
    numbers = " " * (margin + 1) + first + across.center(columns - len(first) - len(last)) + last
    if first == last:
        numbers = " " * (margin + 1) + f"{across} {first}".center(columns).rstrip()
    return Chart(lines, axis, numbers)


class _Canvas:
    def __init__(
        self, columns: int, rows: int, x: tuple[float, float], y: tuple[float, float], *, ascii_only: bool
    ) -> None:
        self._columns, self._rows, self._x, self._y, self._ascii_only = columns, rows, x, y, ascii_only
        self._across, self._down = (1, 1) if ascii_only else (2, 4)  # dots of a character
        self._cells: dict[tuple[int, int], tuple[int, int]] = {}  # its dots, and whose they are

    def draw(self, curve: Curve, number: int) -> None:
        drawn, left_out = _DASHES[number % len(_DASHES)]
        before: tuple[int, int] | None = None
        step = 0
        for x, y in curve.points:
            if y is None:
                before = None
                continue
            here = self._dot(x, y)
            for dot in _between(before or here, here):
                if step % (drawn + left_out) < drawn or dot == here:
                    self._set(*dot, number)
                step += 1
            before = here

    def row(self, row: int) -> list[tuple[str, int | None]]:
        cells: list[tuple[str, int | None]] = []
        for column in range(self._columns):
            dots, number = self._cells.get((column, row), (0, -1))
            mark = "*" if self._ascii_only else chr(_BRAILLE + dots)
            cells.append((mark, number) if dots else (" ", None))
        return cells

    def _dot(self, x: float, y: float) -> tuple[int, int]:
        right, top = self._columns * self._across - 1, self._rows * self._down - 1
        (left_x, right_x), (low, high) = self._x, self._y
        across = round((x - left_x) / (right_x - left_x) * right) if right_x > left_x else right // 2
        return across, top - round((y - low) / (high - low) * top)

    def _set(self, across: int, down: int, number: int) -> None:
        cell = across // self._across, down // self._down
        dots, _ = self._cells.get(cell, (0, number))
        self._cells[cell] = dots | _DOTS[down % self._down][across % self._across], number


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots of a straight line, both ends included."""
    (x, y), (to_x, to_y) = start, end
    steps = max(abs(to_x - x), abs(to_y - y), 1)
    return [(round(x + (to_x - x) * n / steps), round(y + (to_y - y) * n / steps)) for n in range(steps + 1)]


def _bounds(low: float, high: float) -> tuple[float, float]:
    """Where the axis begins and ends: never at one and the same number."""
    if high > low:
        return low, high
    room = abs(low) * 0.1 or 1.0
    return low - room, high + room


def _labels(low: float, high: float, rows: int) -> dict[int, str]:
    """Round numbers and the rows that they stand for."""
    rough = (high - low) / max(rows // 3, 2)
    power = 10.0 ** math.floor(math.log10(rough * 1.001))
    step = max(each * power for each in _TICKS if each * power <= rough * 1.001)
    digits = max(-math.floor(math.log10(step) + 1e-9) + (step / power == 2.5), 0)
    ticks = [n * step for n in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]
    shown = {rows - 1 - round((tick - low) / (high - low) * (rows - 1)): tick for tick in ticks}
    if digits > 6 or high >= 1e7:
        return {row: f"{tick:.3g}" for row, tick in shown.items()}
    return {row: f"{tick:.{digits}f}" for row, tick in shown.items()}
