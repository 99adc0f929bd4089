"""Pairs A B A B: what was measured, and the table of it. A pair is the yardstick's time and ours, in seconds."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from rich.table import Table

Pair = tuple[float, float]


@dataclass(frozen=True)
class Target:
    """Of a ratio: how many times faster, or at most how many times as long. Of a figure: the most it may be."""

    value: float
    is_most: bool = False

    def met_by(self, value: float) -> bool:
        return value <= self.value if self.is_most else value >= self.value


@dataclass(frozen=True)
class Line:
    """Pairs that are quoted by the median of their ratios."""

    name: str
    yardstick: str  # what ours is measured against
    pairs: list[Pair]
    target: Target
    limit: str = ""  # what the machine itself would allow

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs if self.target.is_most else theirs / ours for theirs, ours in self.pairs]

    @property
    def medians(self) -> Pair:
        theirs, ours = zip(*self.pairs, strict=True)
        return statistics.median(theirs), statistics.median(ours)


@dataclass(frozen=True)
class Figure:
    """Something of ours that is measured for itself; its median is quoted."""

    name: str
    values: list[float]  # seconds, or shares
    target: Target
    is_share: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def shown(self, value: float) -> str:
        return f"{value:.2%}" if self.is_share else f"{value:.4g} s"


@dataclass
class Findings:
    """What one row of the bench gave."""

    lines: list[Line | Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)  # for the JSON file


def collect(name: str, pairs: Iterable[Pair], total: int, say: Callable[[str], None]) -> list[Pair]:
    """Has the pairs measured, and says each."""
    done = []
    for number, (theirs, ours) in enumerate(pairs, start=1):
        done.append((theirs, ours))
        say(f"{name}: pair {number} of {total}: {theirs:.4g} s, {ours:.4g} s, ratio {theirs / ours:.3f}")
    return done


def table(found: Iterable[Findings]) -> Table:
    made = Table(box=None, header_style="bold", title="Medians; the ratio is the median of the pairs' ratios")
    for head in ("row", "yardstick", "its s", "epochd s", "ratio", "min..max", "target", "the machine's limit"):
        made.add_column(head, no_wrap=head != "the machine's limit")
    for findings in found:
        for line in findings.lines:
            made.add_row(*(_cells(line) if isinstance(line, Line) else _figure_cells(line)))
    return made


def _cells(line: Line) -> tuple[str, ...]:
    theirs, ours = line.medians
    spread = f"{min(line.ratios):.3g}..{max(line.ratios):.3g}"
    target = f"{'<=' if line.target.is_most else '>='} {line.target.value:g}"
    ratio = _coloured(f"{line.ratio:.3f}", met=line.target.met_by(line.ratio))
    return line.name, line.yardstick, f"{theirs:.4g}", f"{ours:.4g}", ratio, spread, target, line.limit


def _figure_cells(figure: Figure) -> tuple[str, ...]:
    value = _coloured(figure.shown(figure.median), met=figure.target.met_by(figure.median))
    spread = f"{figure.shown(min(figure.values))}..{figure.shown(max(figure.values))}"
    return figure.name, "", "", value, "", spread, f"<= {figure.shown(figure.target.value)}", ""


def _coloured(text: str, *, met: bool) -> str:
    return f"[{'green' if met else 'red'}]{text}[/]"
