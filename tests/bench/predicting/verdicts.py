"""epochd beside the best of the others, figure by figure, and what the issue of prediction wants of it."""

import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from tests.bench.pairs import Target

from .load import Window
from .measuring import Measured, Served
from .servers import EPOCHD, NAIVE

# So many times the requests per second of the best of these; None: of all.
_AIMS: Final[dict[str, tuple[Collection[str] | None, dict[int, float]]]] = {
    "mlp": (NAIVE, {1: 1.0, 8: 1.2, 64: 2.0}),
    "resnet18": (None, {8: 1.2, 64: 1.2}),
}
_MOST_BYTES: Final = 1e9

Others = dict[str, Served]


@dataclass(frozen=True)
class Verdict:
    """Of the rounds' ratios, ours to theirs, the median is quoted."""

    name: str
    best: str
    theirs: float
    ours: float
    ratios: list[float]
    aim: Target | None = None  # of the ratio

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)


def verdicts(measured: Measured) -> Iterator[Verdict]:
    ours = measured.served[EPOCHD]
    others = {name: served for name, served in measured.served.items() if name != EPOCHD}
    concurrencies = [window.concurrency for window in ours.rounds[0]]
    yield from _rates(measured.network, ours, others, concurrencies)
    for concurrency in concurrencies:
        name = f"p99 ms at {concurrency}"
        yield _of_rounds(name, ours, others, concurrency, _p99, Target(1.0, is_most=True))
    yield _of_alone("MB, alone", ours, others, _megabytes)
    yield _of_alone("s to first answer", ours, others, first_answer)


def is_small(measured: Measured) -> bool:
    return measured.served[EPOCHD].alone.peak_memory < _MOST_BYTES


def first_answer(served: Served) -> float:
    return statistics.median(served.first_answer_seconds)


def _rates(network: str, ours: Served, others: Others, concurrencies: list[int]) -> Iterator[Verdict]:
    names, aims = _AIMS[network]
    among = {name: served for name, served in others.items() if names is None or name in names}
    for concurrency in concurrencies:
        name, least = f"requests/s at {concurrency}", aims.get(concurrency)
        yield _of_rounds(name, ours, among, concurrency, _rate, None if least is None else Target(least))
        if len(among) < len(others) and _best(others, concurrency, _rate, max) not in among:
            yield _of_rounds(name, ours, others, concurrency, _rate, None)


def _of_rounds(
    name: str, ours: Served, others: Others, concurrency: int, figure: Callable[[Window], float], aim: Target | None
) -> Verdict:
    best = _best(others, concurrency, figure, max if figure is _rate else min)
    of_ours, of_theirs = ([figure(each) for each in served.of(concurrency)] for served in (ours, others[best]))
    ratios = [mine / theirs for mine, theirs in zip(of_ours, of_theirs, strict=True)]
    return Verdict(name, best, statistics.median(of_theirs), statistics.median(of_ours), ratios, aim)


def _of_alone(name: str, ours: Served, others: Others, figure: Callable[[Served], float]) -> Verdict:
    best = min(others, key=lambda each: figure(others[each]))
    theirs, mine = figure(others[best]), figure(ours)
    return Verdict(name, best, theirs, mine, [mine / theirs])


def _best(others: Others, concurrency: int, figure: Callable[[Window], float], pick: Callable[..., str]) -> str:
    def median(name: str) -> float:
        return statistics.median([figure(window) for window in others[name].of(concurrency)])

    return pick(others, key=median)


def _rate(window: Window) -> float:
    return max(window.per_second, 1e-9)  # of a server that refused everything


def _p99(window: Window) -> float:
    return window.p99_ms


def _megabytes(served: Served) -> float:
    return served.alone.memory / 1e6
