"""One network on all servers: each setup alone, then the best of each in turns, A B C D A B C D."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.bench.workplace import lines_of

from .asking import Answer
from .load import Load, Window
from .servers import Running, Setup, running, setups
from .subjects import SUBJECTS, Subject

_WARM_CONCURRENCY: Final = 8


@dataclass(frozen=True)
class Options:
    rounds: int = 3
    seconds: int = 6  # of a window
    trial_seconds: int = 3  # of a window of a setup alone
    concurrency: tuple[int, ...] = (1, 8, 64)
    floor_seconds: float = 2.0  # of each way
    photos: int = 160  # that resnet18 is trained on


QUICK: Final = Options(rounds=1, seconds=1, trial_seconds=1, floor_seconds=0.2, photos=32)


@dataclass
class Alone:
    """A setup by itself on the machine: only so is its memory told, for what servers share would be divided."""

    setup: Setup
    first_answer_seconds: float
    windows: list[Window]

    @property
    def score(self) -> float:
        """Requests a second, as the geometric mean over the concurrencies."""
        return statistics.geometric_mean([max(window.per_second, 1e-9) for window in self.windows])

    @property
    def memory(self) -> float:
        return statistics.median([sum(window.memory.values()) for window in self.windows])

    @property
    def peak_memory(self) -> int:
        return max(sum(window.memory.values()) for window in self.windows)


@dataclass
class Served:
    """A server in its best setup."""

    alone: Alone
    rounds: list[list[Window]] = field(default_factory=list)  # a window for each concurrency
    first_answer_seconds: list[float] = field(default_factory=list)  # of all its starts

    @property
    def answers(self) -> list[list[Answer | None]]:
        """To each picture, again and again."""
        return [window.answers for windows in self.rounds for window in windows]

    def of(self, concurrency: int) -> list[Window]:
        """One of each round."""
        return [window for windows in self.rounds for window in windows if window.concurrency == concurrency]


@dataclass
class Measured:
    network: str
    floor: list[dict[str, Any]]
    trials: list[Alone]
    served: dict[str, Served]
    picture_bytes: list[int]


def measure(network: str, root: Path, options: Options, say: Callable[[str], None]) -> Measured:
    say(f"{network}: a job trains it")
    subject = SUBJECTS[network](root, options.photos)
    load = Load(subject.pictures, root / f"{network}-bodies")
    bench = _Bench(subject, load, root, options, say)
    floor = bench.floor()
    trials = [bench.alone(setup) for setup in setups(network)]
    served = _best(trials)
    bench.in_turns(served)
    return Measured(network, floor, trials, served, [len(picture.data) for picture in subject.pictures])


def _best(trials: list[Alone]) -> dict[str, Served]:
    names = dict.fromkeys(trial.setup.server for trial in trials)
    best = {
        name: max((trial for trial in trials if trial.setup.server == name), key=lambda trial: trial.score)
        for name in names
    }
    return {name: Served(trial, first_answer_seconds=[trial.first_answer_seconds]) for name, trial in best.items()}


class _Bench:
    def __init__(self, subject: Subject, load: Load, root: Path, options: Options, say: Callable[[str], None]) -> None:
        self._subject, self._load, self._root, self._options, self._say = subject, load, root, options, say

    def floor(self) -> list[dict[str, Any]]:
        folder = self._root / f"{self._subject.network}-pictures"
        folder.mkdir()
        paths = [folder / picture.name for picture in self._subject.pictures]
        for path, picture in zip(paths, self._subject.pictures, strict=True):
            path.write_bytes(picture.data)
        module = "tests.bench.predicting.floor"
        options = (self._subject.network, self._subject.checkpoint, self._options.floor_seconds)
        return list(lines_of(module, *options, *paths))

    def alone(self, setup: Setup) -> Alone:
        with running(setup, self._subject, self._root) as server:
            windows = self._windows(server, self._options.trial_seconds)
        made = Alone(setup, server.first_answer_seconds, windows)
        self._tell(f"alone: {setup.server} ({setup.told})", windows)
        return made

    def in_turns(self, served: dict[str, Served]) -> None:
        """A server whose turn it is not sleeps."""
        with ExitStack() as stack:
            servers = {name: stack.enter_context(self._sleeper(each.alone.setup)) for name, each in served.items()}
            for name, server in servers.items():
                served[name].first_answer_seconds.append(server.first_answer_seconds)
            for number in range(1, self._options.rounds + 1):
                for name, server in servers.items():
                    with _awake(server):
                        windows = self._windows(server, self._options.seconds)
                    served[name].rounds.append(windows)
                    self._tell(f"round {number} of {self._options.rounds}: {name}", windows)

    @contextmanager
    def _sleeper(self, setup: Setup) -> Iterator[Running]:
        with running(setup, self._subject, self._root) as server:
            server.sleep()
            try:
                yield server
            finally:
                server.wake()

    def _windows(self, server: Running, seconds: int) -> list[Window]:
        self._load.window(server, _WARM_CONCURRENCY, 1)
        return [self._load.window(server, concurrency, seconds) for concurrency in self._options.concurrency]

    def _tell(self, what: str, windows: list[Window]) -> None:
        told = "; ".join(
            f"{each.per_second:,.0f}/s at {each.concurrency} (p99 {each.p99_ms:,.1f} ms, errors: {each.errors})"
            for each in windows
        )
        self._say(f"{self._subject.network}: {what}: {told}")


@contextmanager
def _awake(server: Running) -> Iterator[None]:
    server.wake()
    try:
        yield
    finally:
        server.sleep()
