"""The rows of the table, each a function that measures it."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from . import jobs
from .pairs import Findings, Line, Pair, Target, collect
from .reference import BATCH_SIZE
from .workplace import WHOLE, Workplace, lines_of

_EPOCH_STEPS: Final = {"mlp": WHOLE[0] // BATCH_SIZE, "cnn": WHOLE[0] // BATCH_SIZE, "resnet18": 12}
_STEPS: Final = {"cnn": 100, "resnet18": 6}
_MORE_PAIRS: Final = 2  # than of jobs, for steps: they are short


def _cnn_job(place: Workplace) -> Findings:
    options = place.options
    return jobs.convolutional(place, "cnn", options.cnn_pictures, options.cnn_epochs)


def _resnet18_job(place: Workplace) -> Findings:
    options = place.options
    return jobs.convolutional(place, "resnet18", options.resnet18_pictures, options.resnet18_epochs)


def _epoch(place: Workplace, model: str) -> Findings:
    """The engine's epoch beside a bare loop's."""
    steps = place.options.engine_steps or _EPOCH_STEPS[model]
    pairs, last = _turns(place, f"engine epoch {model}", "epoch", model, steps, place.options.pairs)
    line = Line(f"engine epoch {model}", "bare loop", pairs, Target(1.05, is_most=True), _rate(pairs, last))
    same = "the same, to the bit" if last["same_weights"] else "NOT the same"
    return Findings([line], [f"engine epoch {model}: the weights of both after {steps} steps a turn are {same}"])


def _step(place: Workplace, model: str, at_least: float) -> Findings:
    """The engine's step in bf16 beside the stock loop's in fp32."""
    steps = place.options.engine_steps or _STEPS[model]
    name, count = f"step {model} bf16", _MORE_PAIRS * place.options.pairs
    turns, last = _turns(place, name, "step", model, steps, count)
    pairs = [(theirs / steps, ours / steps) for theirs, ours in turns]
    return Findings([Line(name, "stock fp32 step", pairs, Target(at_least), _rate(turns, last))])


def _turns(
    place: Workplace, name: str, what: str, model: str, steps: int, count: int
) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs of some steps each, and what was said after them."""
    lines = lines_of("tests.bench.engine", what, model, place.prepared, steps * BATCH_SIZE, count)
    last: dict[str, Any] = {}

    def pairs() -> Iterator[Pair]:
        for line in lines:
            if "pair" in line:
                yield line["pair"][0], line["pair"][1]
            last.update(line)

    return collect(name, pairs(), count, place.say), last


def _rate(turns: list[Pair], last: dict[str, Any]) -> str:
    """Against the rate of a large matrix product, in the engine's own precision."""
    best = min(ours for _, ours in turns)
    return f"{last['gflop'] / best:,.0f} of {last['peak_gflops']:,.0f} GFLOP/s"


ROWS: Final[dict[str, Callable[[Workplace], Findings]]] = {
    "job mlp fp32": partial(jobs.tutorial, precision="fp32", at_least=4.0),
    "job mlp bf16": partial(jobs.tutorial, precision="bf16", at_least=5.0),
    "job cnn": _cnn_job,
    "job resnet18": _resnet18_job,
    "engine epoch mlp": partial(_epoch, model="mlp"),
    "engine epoch cnn": partial(_epoch, model="cnn"),
    "engine epoch resnet18": partial(_epoch, model="resnet18"),
    "step cnn bf16": partial(_step, model="cnn", at_least=2.0),
    "step resnet18 bf16": partial(_step, model="resnet18", at_least=2.2),
    "two jobs at once": jobs.two_at_once,
}
