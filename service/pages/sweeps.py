"""Sweeps: which there are, and how the trials of one do."""

import json
import math
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from worker.jobs import standings
from worker.jobs.db import Database
from worker.jobs.owners import Caller
from worker.jobs.spec import LOWER_IS_BETTER
from worker.jobs.standings import Standing, Whole

from service.deps import CallerDep, DatabaseDep

from .rendering import fragment, page

router = APIRouter(prefix="/ui/sweeps")

_WIDE: Final = 16  # so many values of a field make a heat map that can still be read
_LOG: Final = 50.0  # numbers further apart than this are shown by their logarithms
_SHADES: Final = 10


class SweepsQuery(BaseModel):
    after: Annotated[str, Field(pattern=r"^[0-9a-f]{24}$")] | None = None


class Axis(NamedTuple):
    """One of the parallel lines."""

    name: str
    low: str
    high: str


class Line(NamedTuple):
    """A trial: where it crosses each axis, 0 (low) to 1."""

    trial: Standing
    crossings: list[float]
    shade: int  # 0 (worst) to 10


class Heat(NamedTuple):
    """The best value for each pair of two fields' values."""

    rows: list[str]
    columns: list[str]
    cells: list[list[Line | None]]


@router.get("")
def every(request: Request, db: DatabaseDep, caller: CallerDep, query: Annotated[SweepsQuery, Query()]) -> Response:
    found, has_more = standings.listed(db, after=query.after, limit=20, caller=caller)
    return page(request, "sweeps.html", sweeps=found, has_more=has_more, after=query.after)


@router.get("/{sweep_id}")
def show(request: Request, sweep_id: str, db: DatabaseDep, caller: CallerDep) -> Response:
    return page(request, "sweep.html", seen="", **_shown(db, sweep_id, caller))


@router.get("/{sweep_id}/now")
def now(request: Request, sweep_id: str, db: DatabaseDep, caller: CallerDep) -> Response:
    return fragment(request, "sweep_now.html", **_shown(db, sweep_id, caller))


def _shown(db: Database, sweep_id: str, caller: Caller) -> dict[str, Any]:
    found = standings.get(db, sweep_id, caller)
    names = list(found.row.form["parameters"])
    lines = _lines(found, names)
    return {
        "sweep": found,
        "names": names,
        "metric": found.row.form["metric"],
        "lines": lines,
        "axes": [_axis(name, [each.trial.parameters.get(name) for each in lines]) for name in names],
        "heat": _heat(lines, names) if len(names) == 2 else None,
    }


def _lines(found: Whole, names: Sequence[str]) -> list[Line]:
    """The trials, the best first; those without a value last."""
    sign = -1 if found.row.form["metric"] in LOWER_IS_BETTER else 1
    valued = [each.value for each in found.trials if each.value is not None]
    low, high = (min(valued), max(valued)) if valued else (0.0, 0.0)
    across = [_positions([each.parameters.get(name) for each in found.trials]) for name in names]
    lines = []
    for index, trial in enumerate(found.trials):
        share = 0.0 if trial.value is None else 0.5 if high == low else (trial.value - low) / (high - low)
        goodness = share if sign > 0 else 1 - share
        shade = 0 if trial.value is None else round(_SHADES * goodness)
        lines.append(Line(trial, [*(column[index] for column in across), share], shade))
    return sorted(lines, key=lambda line: (line.trial.value is None, -sign * (line.trial.value or 0), line.trial.trial))


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """None: they are no numbers."""
    is_number = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    return [float(each) for each in values] if values and is_number else None


def _positions(values: Sequence[Any]) -> list[float]:
    """Where each value lies on its axis: by size, or one after the other."""
    numbers = _numbers(values)
    if numbers is None:
        kinds = list(dict.fromkeys(map(_text, values)))
        return [kinds.index(_text(each)) / max(len(kinds) - 1, 1) for each in values]
    if min(numbers) > 0 and max(numbers) / min(numbers) > _LOG:
        numbers = [math.log(each) for each in numbers]
    low, high = min(numbers), max(numbers)
    return [(each - low) / (high - low) if high > low else 0.5 for each in numbers]


def _axis(name: str, values: Sequence[Any]) -> Axis:
    numbers = _numbers(values)
    if numbers is not None:
        return Axis(name, f"{min(numbers):.4g}", f"{max(numbers):.4g}")
    kinds = list(dict.fromkeys(map(_text, values)))
    return Axis(name, kinds[0] if kinds else "", kinds[-1] if kinds else "")


def _heat(lines: Sequence[Line], names: Sequence[str]) -> Heat | None:
    down, across = ([line.trial.parameters.get(name) for line in lines] for name in names)
    rows, columns = _kinds(down), _kinds(across)
    if not 1 < len(rows) <= _WIDE or not 1 < len(columns) <= _WIDE:
        return None
    best: dict[tuple[str, str], Line] = {}
    for line, row, column in zip(lines, down, across, strict=True):  # the best come first
        best.setdefault((_text(row), _text(column)), line)
    return Heat(rows, columns, [[best.get((row, column)) for column in columns] for row in rows])


def _kinds(values: Sequence[Any]) -> list[str]:
    """The different ones, numbers by size."""
    ordered = sorted(values) if _numbers(values) is not None else values
    return list(dict.fromkeys(map(_text, ordered)))


def _text(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:  # a whole part of the spec
        return str(value["name"]) if len(value) == 1 else json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
