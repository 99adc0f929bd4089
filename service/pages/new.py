"""A form that makes a spec, with what its job would be beside it."""

import functools
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from pydantic import BaseModel, Field
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event
from worker.jobs import queue
from worker.jobs.db import Database
from worker.jobs.errors import InvalidRequest, NotFound
from worker.jobs.owners import Caller
from worker.jobs.spec import Name, Spec

from service.deps import CallerDep, DatabaseDep
from service.routes.datasets import list_datasets

from .rendering import page, unlike_defaults

router = APIRouter(prefix="/ui/new")

SPECS: Final = Path(__file__).parents[1] / "specs"
_MOST_YAML: Final = 16 * 2**10  # more takes a second to read
_DEEPEST: Final = 32


class Example(NamedTuple):
    """A spec that comes with epochd."""

    name: str
    about: str  # the comment that it begins with
    spec: dict[str, Any]


class NewQuery(BaseModel):
    job: str | None = Field(None, alias="from", max_length=64, description="A job to begin as a copy of")
    spec: str = Field("", max_length=64, description="One of the specs that come with epochd")
    dataset: Name | None = None
    version: int | None = Field(None, ge=1, lt=2**31)


@router.get("")
def show(request: Request, db: DatabaseDep, caller: CallerDep, query: Annotated[NewQuery, Query()]) -> Response:
    return page(
        request,
        "new.html",
        schema=_embedded(schema()),
        spec=_embedded(_begin(db, caller, query), indent=2),
        examples=examples(),
        datasets=_embedded([{"name": each.name, "status": each.status} for each in list_datasets(db, caller).data]),
        query=query,
    )


@router.post("/yaml")
async def from_yaml(request: Request) -> Any:
    """What was typed as YAML, as JSON: browsers have no reader of it."""
    text = bytearray()
    async for chunk in request.stream():
        text += chunk
        if len(text) > _MOST_YAML:
            raise InvalidRequest(f"YAML may have {_MOST_YAML // 2**10} KiB here; JSON may have more.")
    return await run_in_threadpool(read_yaml, bytes(text))


@functools.cache
def schema() -> dict[str, Any]:
    return Spec.model_json_schema()


@functools.cache
def examples() -> dict[str, Example]:
    """By their names."""
    found = {}
    for path in sorted(SPECS.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        first = text.partition("\n")[0]
        about = first.removeprefix("#").strip() if first.startswith("#") else ""
        found[path.stem] = Example(path.stem, about, read_yaml(text.encode()))
    return found


def read_yaml(text: bytes) -> Any:
    """Raises InvalidRequest."""
    yaml = YAML(typ="safe", pure=True)
    try:
        decoded = text.decode()
        _refuse_traps(yaml.parse(io.StringIO(decoded)))
        value = yaml.load(io.StringIO(decoded))
    except (YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"in line {mark.line + 1} " if mark is not None else ""
        raise InvalidRequest(f"This can be read neither as JSON nor as YAML: look {where}again.") from error
    except ValueError as error:
        raise InvalidRequest("This holds a time that there is not.") from error
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise InvalidRequest("This holds something that JSON does not have, such as a date or .nan.") from error
    return value


def _refuse_traps(events: Iterable[Event]) -> None:
    """What little text makes long work of. Raises InvalidRequest."""
    depth = 0
    for event in events:
        if isinstance(event, AliasEvent):
            raise InvalidRequest("YAML with aliases (`*name`) is not read here; write out what they stand for.")
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > _DEEPEST:
            raise InvalidRequest(f"This is more than {_DEEPEST} levels deep, which no spec is.")


def _embedded(value: Any, **how: Any) -> Markup:
    """For a script element, in the order that it has: fields are shown in it."""
    return htmlsafe_json_dumps(value, sort_keys=False, **how)


def _begin(db: Database, caller: Caller, query: NewQuery) -> dict[str, Any]:
    """What the form is filled in with. Raises NotFound."""
    if query.job is not None:
        spec: dict[str, Any] = json.loads(unlike_defaults(queue.get(db, query.job, caller).spec))
        return spec
    if query.spec:
        if query.spec not in examples():
            raise NotFound("No spec of this name comes with epochd.")
        return examples()[query.spec].spec
    named = {"name": query.dataset, "version": query.version}
    return {"dataset": {key: value for key, value in named.items() if value is not None}} if query.dataset else {}
