"""Figures, and the tables that show them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table


class Spread(NamedTuple):
    """Of some durations, in seconds."""

    p50: float
    p99: float
    most: float

    @property
    def cells(self) -> tuple[str, str, str]:
        """In milliseconds."""
        return tuple(f"{1000 * each:,.2f}" for each in self)  # type: ignore[return-value]


def spread(seconds: Iterable[float]) -> Spread:
    ordered = sorted(seconds)
    if not ordered:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(_percentile(ordered, 50), _percentile(ordered, 99), ordered[-1])


def table(title: str, *heads: str) -> Table:
    made = Table(box=None, header_style="bold", title=title, title_justify="left")
    for head in heads:
        made.add_column(head)
    return made


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line that lies nearest to all of them."""
    if len(points) < 2:
        return math.nan
    middle_x, middle_y = sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)
    across = sum((x - middle_x) * (x - middle_x) for x, _ in points)
    together = sum((x - middle_x) * (y - middle_y) for x, y in points)
    return together / across


def _percentile(ordered: Sequence[float], share: float) -> float:
    """The least that is no smaller than so many of a hundred."""
    return ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]
