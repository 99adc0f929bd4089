"""Which trials a sweep has, and which of them go on. Nothing here asks the database."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from pydantic import JsonValue

from .spec import LOWER_IS_BETTER, Grid, Halving, Parameter, Range, SweepForm, Values
from .spec.sweep import MOST_TRIALS, every, rounded

Choice = dict[str, JsonValue]  # of each parameter

_SPARE_DRAWS: Final = 20_000  # some thousands find every one of a thousand combinations that are equally likely
_BITS: Final = 53  # of a float


class Rung(NamedTuple):
    """Of successive halving: so many trials are trained for so many epochs in all."""

    trials: int
    epochs: int


class Score(NamedTuple):
    trial: int
    value: float | None  # None: there is none that is finite


def choices(form: SweepForm) -> list[Choice]:
    """Of each trial, in their order."""
    search = form.search
    if isinstance(search, Grid):
        lists = [each.values for each in form.parameters.values() if isinstance(each, Values)]
        return [dict(zip(form.parameters, chosen, strict=True)) for chosen in itertools.product(*lists)]
    return _drawn(form.parameters, search.trials, search.seed)


def rungs(search: Halving, epochs: int) -> list[Rung]:
    """Down to the one that is trained for all `epochs`. Who is alone has nobody to be compared with on the way."""
    found = [Rung(search.trials, search.min_epochs)]
    while found[-1].epochs < epochs:
        trials = max(1, found[-1].trials // search.factor)
        found.append(Rung(trials, epochs if trials == 1 else min(found[-1].epochs * search.factor, epochs)))
    return found


def ranking(scores: Iterable[Score], metric: str) -> list[int]:
    """The trials, the best first; of equals, the one with the lower number. Without a value a trial has no place."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    found = [(sign * value, trial) for trial, value in scores if value is not None and math.isfinite(value)]
    return [trial for _, trial in sorted(found)]


def _drawn(parameters: Mapping[str, Parameter], trials: int, seed: int) -> list[Choice]:
    """No combination twice: those that draws do not find are taken one after another."""
    found: list[Choice] = []
    seen: set[str] = set()
    spare, others = _SPARE_DRAWS, _combinations(parameters)
    for trial in range(1, trials + 1):
        choice = _draw(parameters, seed, trial)
        again = 0
        while spare and json.dumps(choice) in seen:
            again, spare = again + 1, spare - 1
            choice = _draw(parameters, seed, trial, again)
        if json.dumps(choice) in seen:
            choice = next(each for each in others if json.dumps(each) not in seen)  # a form asks for no more than are
        seen.add(json.dumps(choice))
        found.append(choice)
    return found


def _combinations(parameters: Mapping[str, Parameter]) -> Iterator[Choice]:
    """All of them, or more than a sweep has trials."""
    lists = [itertools.islice(every(each), MOST_TRIALS) for each in parameters.values()]
    return (dict(zip(parameters, chosen, strict=True)) for chosen in itertools.product(*lists))


def _draw(parameters: Mapping[str, Parameter], seed: int, trial: int, again: int = 0) -> Choice:
    return {path: _pick(each, _uniform(seed, trial, again, path)) for path, each in parameters.items()}


def _uniform(seed: int, trial: int, again: int, path: str) -> float:
    """From 0 to below 1. By SHA-256: the same on every machine and with every Python, and whatever else varies."""
    digest = hashlib.sha256(f"{seed} {trial} {again} {path}".encode()).digest()
    bits = int.from_bytes(digest[:8], "big") >> (64 - _BITS)
    return bits / float(1 << _BITS)


def _pick(parameter: Parameter, uniform: float) -> JsonValue:
    if isinstance(parameter, Values):
        return parameter.values[int(uniform * len(parameter.values))]
    at = _between(parameter, uniform)
    if parameter.integer:
        return min(math.floor(at), int(parameter.max))
    return rounded(parameter, at)


def _between(parameter: Range, uniform: float) -> float:
    low, high = parameter.min, parameter.max + parameter.integer
    if parameter.scale == "linear":
        return low + uniform * (high - low)
    return math.exp(math.log(low) + uniform * (math.log(high) - math.log(low)))
