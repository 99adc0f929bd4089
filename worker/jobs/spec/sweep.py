"""A sweep: many trainings of one spec, some of whose fields vary."""

import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Context, Decimal
from itertools import islice
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag, WrapValidator, model_validator

from worker.jobs.errors import SpecRefused
from worker.jobs.texts import printable

from .part import Part, Text, by_name, tag
from .spec import Spec
from .training import Metric

MOST_TRIALS: Final = 1000
# What a training does to its weights. The rest says what a job is called, whom it tells and where it runs; and trials
# on different pictures could not be compared.
VARIED: Final = (
    *("normalization", "augmentation", "model", "loss", "optimizer", "schedule", "batch_size", "accumulation"),
    *("epochs", "shuffle", "seed", "clip_gradient", "ema", "early_stopping", "precision"),
)
_PATH: Final = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")
_MOST_VALUES: Final = 1000
_MOST_DEPTH: Final = 10
_SIX_DIGITS: Final = Context(prec=6, Emin=-300)

_Bound = Annotated[float, Field(ge=-1e15, le=1e15)]


def pointer(path: str) -> str:
    """To a parameter, in the body of a sweep."""
    return f"#/parameters/{path.replace('~', '~0').replace('/', '~1')}"


def _clean(value: JsonValue, depth: int = 0) -> JsonValue:
    """Not every value becomes part of a trial's spec, which would look at it; all of them are stored."""
    if depth > _MOST_DEPTH:
        raise ValueError("is nested too deeply")
    if isinstance(value, str):
        printable(value)
    if isinstance(value, dict):
        for name, each in value.items():
            _clean(printable(name), depth)
            _clean(each, depth + 1)
    if isinstance(value, list):
        for each in value:
            _clean(each, depth + 1)
    return value


Value = Annotated[JsonValue, AfterValidator(_clean)]


class Values(Part):
    """These, one after another."""

    values: list[Value] = Field(
        min_length=1,
        max_length=_MOST_VALUES,
        description="What the field is to be: numbers, names, or whole parts of a spec",
        examples=[[0.1, 0.01]],
    )

    @model_validator(mode="after")
    def _has_each_once(self) -> Self:
        if len({json.dumps(value, sort_keys=True) for value in self.values}) < len(self.values):
            raise ValueError("each value should be there once")
        return self


class Range(Part):
    """Any number between two; for `random` and `halving`."""

    min: _Bound = Field(description="The least that it can be", examples=[0.0001])
    max: _Bound = Field(description="The most that it can be", examples=[0.1])
    scale: Literal["linear", "log"] = Field(
        "linear", description="`log`: each factor is as likely as another, so 0.001 to 0.01 as 0.01 to 0.1"
    )
    integer: bool = Field(False, description="Only whole numbers, both ends included")

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.min >= self.max:
            raise ValueError("`min` should be below `max`")
        if self.scale == "log" and self.min <= 0:
            raise ValueError("on a log scale `min` should be above 0")
        if self.integer and not (self.min.is_integer() and self.max.is_integer()):
            raise ValueError("`min` and `max` of whole numbers should be whole")
        return self


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        return tag("values" if "values" in value else "range")
    return tag(type(value).__name__.lower()) if isinstance(value, Values | Range) else None


Parameter = Annotated[
    Annotated[Values, Tag(tag("values"))] | Annotated[Range, Tag(tag("range"))],
    Discriminator(
        _kind,
        custom_error_type="unknown_parameter",
        custom_error_message="Give `values`, or `min` and `max`",
    ),
]

_Seed = Annotated[int, Field(ge=0, lt=2**63, description="Where the choice comes from: the same seed, the same trials")]


class Grid(Part):
    """Every combination of the values; those of the last parameter change fastest."""

    name: Literal["grid"] = "grid"


class Random(Part):
    """Each parameter by itself, at random."""

    name: Literal["random"]
    trials: int = Field(ge=1, le=MOST_TRIALS, description="How many")
    seed: _Seed = 0


class Halving(Part):
    """Successive halving: many short trials, chosen as by `random`, of which the best are trained on."""

    name: Literal["halving"]
    trials: int = Field(ge=2, le=MOST_TRIALS, description="How many begin")
    seed: _Seed = 0
    min_epochs: int = Field(1, ge=1, le=100_000, description="How long each of them is trained at first")
    factor: int = Field(
        3,
        ge=2,
        le=100,
        description="The best of so many go on, for so many times the epochs; again and again, up to the spec's epochs",
    )


Search = Annotated[
    Annotated[Grid, Tag(tag("grid"))] | Annotated[Random, Tag(tag("random"))] | Annotated[Halving, Tag(tag("halving"))],
    by_name({name: name for name in ("grid", "random", "halving")}, default="grid"),
]


def _inside(value: Any, validate: Callable[[Any], Spec]) -> Spec:
    """What the spec refuses is in the sweep's field `spec`."""
    try:
        return validate(value)
    except SpecRefused as refused:
        raise SpecRefused(refused.detail, pointer=f"#/spec{refused.pointer.removeprefix('#')}") from refused


class SweepForm(Part):
    """Which trainings to try, and what makes one of them the best."""

    name: Text | None = Field(
        None, description="A name for people; unset, the spec's. Its trials are called by it, and a number"
    )
    spec: Annotated[Spec, WrapValidator(_inside)] = Field(
        default_factory=Spec, description="What all trials have in common"
    )
    parameters: dict[Text, Parameter] = Field(
        min_length=1,
        max_length=20,
        description="What varies: fields of the spec by their paths, such as `optimizer.lr` or `model`; a whole part "
        "is put in before its fields",
        examples=[{"optimizer.lr": {"values": [0.1, 0.01]}, "seed": {"values": [0, 1]}}],
    )
    search: Search = Field(Grid(), description="Which of the combinations are tried")
    metric: Metric = Field("test_accuracy", description="What is compared: of each trial, its best epoch")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for path, parameter in self.parameters.items():
            self._check(path, parameter)
        combinations = math.prod(_count(each) for each in self.parameters.values())
        if isinstance(self.search, Grid):
            if combinations > MOST_TRIALS:
                raise SpecRefused(
                    f"These are {combinations} combinations; a sweep has at most {MOST_TRIALS} trials. Give fewer "
                    "values, or take `random`.",
                    pointer="#/parameters",
                )
        elif combinations < self.search.trials:
            raise SpecRefused(
                f"There are only {combinations} combinations of these values, where a range has its numbers of six "
                f"digits; ask for {combinations} trials or fewer.",
                pointer="#/search/trials",
            )
        if isinstance(self.search, Halving) and self.search.min_epochs >= self.spec.epochs:
            raise SpecRefused(
                f"The trials begin with fewer epochs than the {self.spec.epochs} that the best are trained for.",
                pointer="#/search/min_epochs",
            )
        return self

    def _check(self, path: str, parameter: Values | Range) -> None:
        if not _PATH.fullmatch(path) or path.partition(".")[0] not in VARIED:
            raise SpecRefused(f"A sweep can vary {', '.join(VARIED)} and what is in them.", pointer=pointer(path))
        if path == "epochs" and isinstance(self.search, Halving):
            raise SpecRefused(
                "How long a trial is trained is what halving decides: up to the spec's `epochs`.", pointer=pointer(path)
            )
        if isinstance(self.search, Grid) and isinstance(parameter, Range):
            raise SpecRefused(
                "A grid is made of `values`; for a range take `random` or `halving`.", pointer=pointer(path)
            )


def every(parameter: Values | Range) -> Iterator[JsonValue]:
    """All values that it can have, the least first: of a range that is not of whole numbers, those of six digits."""
    if isinstance(parameter, Values):
        yield from parameter.values
    elif parameter.integer:
        yield from range(int(parameter.min), int(parameter.max) + 1)
    else:
        at, last = rounded(parameter, parameter.min), rounded(parameter, parameter.max)
        while at < last:
            yield at
            at = rounded(parameter, float(_SIX_DIGITS.next_plus(Decimal(repr(at)))))
        yield last


def rounded(parameter: Range, number: float) -> float:
    """Six digits can be read, and do not depend on whose logarithm it was."""
    return min(max(float(f"{number:.6g}"), parameter.min), parameter.max)


def _count(parameter: Values | Range) -> int:
    """How many values it can have; a thousand may also be more."""
    return sum(1 for _ in islice(every(parameter), MOST_TRIALS))
