"""The specs of a sweep's trials: the sweep's own, with what was chosen for its parameters put in."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import JsonValue, ValidationError

from . import suiting
from .card import Card, Task
from .control import TIED_TO_EPOCHS
from .errors import SpecRefused
from .searching import Choice, choices
from .spec import UNKNOWN_NAME, Halving, Spec, SweepForm
from .spec.sweep import pointer

T = TypeVar("T")

_NOTHING_THERE: Final = "the spec has nothing there."


class Trial(NamedTuple):
    number: int  # from 1
    parameters: Choice
    spec: Spec  # what it begins with


def of(form: SweepForm) -> list[Trial]:
    """Raises SpecRefused at the first one that would not be valid, or that could not be trained on."""
    said = form.spec.model_dump(mode="json", exclude_unset=True)
    return [
        Trial(number, chosen, _spec(form, said, number, chosen)) for number, chosen in enumerate(choices(form), start=1)
    ]


def suit(form: SweepForm, trials: Sequence[Trial], task: Task, card: Card | None) -> None:
    """Raises SpecRefused at the first one that does not suit the dataset (see `suiting.check`), or at the metric."""
    for trial in trials:
        inside(form, partial(suiting.check, trial.spec, task, card))
    first = trials[0].spec
    by_metric = {"checkpoints": first.checkpoints.model_copy(update={"best_by": form.metric})}
    try:
        suiting.check(first.model_copy(update=by_metric), task, card)
    except SpecRefused as refused:
        raise SpecRefused(refused.detail, pointer="#/metric") from refused


def inside(form: SweepForm, look: Callable[[], T]) -> T:
    """What `look` returns; what it refuses in a trial's spec is refused where it stands in the sweep."""
    try:
        return look()
    except SpecRefused as refused:
        raise placed(form, refused) from refused


def placed(form: SweepForm, refused: SpecRefused) -> SpecRefused:
    """What is refused in a trial's spec, where it stands in the sweep."""
    names = refused.pointer.split("/")[1:]
    return SpecRefused(refused.detail, pointer=_parameter(form, names) or f"#/spec/{'/'.join(names)}")


def shown(parameters: dict[str, dict[str, Any]], spec: dict[str, Any]) -> Choice:
    """What the parameters are in a trial's spec: of a whole part no more than was said about it."""
    return {path: _as_said(parameter.get("values", ()), _at(spec, path)) for path, parameter in parameters.items()}


def _spec(form: SweepForm, said: dict[str, Any], number: int, chosen: Choice) -> Spec:
    for path in sorted(chosen, key=lambda path: path.count(".")):  # a whole part before its fields
        said = _put(said, path.split("."), chosen[path])
    spec = _valid(form, said, number, "#/parameters")
    if not isinstance(form.search, Halving):
        return spec
    if isinstance(spec.schedule, TIED_TO_EPOCHS):
        sentence = f"Halving trains the best for more epochs, which the schedule {spec.schedule.name} is not made for."
        raise SpecRefused(sentence, pointer=_parameter(form, ["schedule"]) or "#/spec/schedule")
    if spec.early_stopping is not None:
        sentence = "Halving is what ends trials early, and one that ended itself could not be trained on."
        raise SpecRefused(sentence, pointer=_parameter(form, ["early_stopping"]) or "#/spec/early_stopping")
    return _valid(form, said | {"epochs": form.search.min_epochs}, number, "#/search/min_epochs")


def _put(part: dict[str, Any], names: Sequence[str], value: JsonValue) -> dict[str, Any]:
    """The part with this value in it. A part that was not there, or was null, is made."""
    name, *rest = names
    if not rest:
        return part | {name: value}
    within = part.get(name)
    return part | {name: _put(within if isinstance(within, dict) else {}, rest, value)}


def _valid(form: SweepForm, said: dict[str, Any], number: int, otherwise: str) -> Spec:
    """Raises SpecRefused: at the parameter that is at fault, or `otherwise` where it is not one alone."""
    try:
        return Spec.model_validate(said)
    except SpecRefused as refused:
        names, sentence = refused.pointer.split("/")[1:], refused.detail
    except ValidationError as error:
        names, sentence = _first(error, form.parameters)
    at = _parameter(form, names)
    about = "" if at is not None and at == pointer(".".join(names)) else f" ({'/'.join(names)})"
    raise SpecRefused(f"Trial {number} would not be valid{about}: {sentence}", pointer=at or otherwise)


def _first(error: ValidationError, paths: Iterable[str]) -> tuple[list[str], str]:
    """Where in the spec it is, and what."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    names = [str(part) for part in first["loc"] if re.fullmatch(r"\w+", str(part))]  # the others are choices it took
    if first["type"] == UNKNOWN_NAME:
        names.append("name")
    is_above = any(path.startswith(".".join(names) + ".") for path in paths)  # a number has no fields
    if first["type"] == "extra_forbidden" or is_above:
        return names, _NOTHING_THERE
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    return names, f"{message[:1].lower()}{message[1:]}."


def _parameter(form: SweepForm, names: list[str]) -> str | None:
    """A pointer to the parameter that is this field of the spec, is part of it, or that it is part of."""
    related = [
        path for path in form.parameters if all(a == b for a, b in zip(path.split("."), names, strict=False)) and names
    ]
    return pointer(max(related, key=len)) if related else None


def _at(spec: dict[str, Any], path: str) -> JsonValue:
    found: Any = spec
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found  # type: ignore[no-any-return]


def _as_said(values: Sequence[JsonValue], actual: JsonValue) -> JsonValue:
    if not isinstance(actual, dict):
        return actual
    return max(
        (value for value in values if _is_in(value, actual)), key=lambda value: len(json.dumps(value)), default=actual
    )


def _is_in(said: JsonValue, actual: JsonValue) -> bool:
    """Whether this is said by a part of a spec, which also has the defaults."""
    if isinstance(said, dict) and isinstance(actual, dict):
        return all(name in actual and _is_in(value, actual[name]) for name, value in said.items())
    return said == actual
