"""Templates, and how pages write times, numbers and sizes."""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from worker.jobs.spec import Spec
from worker.jobs.states import Status
from worker.jobs.tables import Job

from .addresses import cookie_name, is_page

FILES: Final = Path(__file__).parent / "static"
_UNSEEN: Final = secrets.token_hex(16)  # stands where a part's own digest will; nobody can have written it
_NONE: Final = "\N{EN DASH}"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


def page(request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
    """A whole page."""
    has_key = cookie_name(request.headers.get("host", "")) in request.cookies
    return HTMLResponse(
        _ENVIRONMENT.get_template(template).render(path=request.url.path, has_key=has_key, **context), status
    )


def fragment(request: Request, template: str, **context: Any) -> Response:
    """A part of a page, which asks for itself anew: 204 when it is as the page has it (`seen`)."""
    html = _ENVIRONMENT.get_template(template).render(seen=_UNSEEN, **context)
    seen = digest(html)
    if request.query_params.get("seen") == seen:
        return Response(status_code=204)
    return HTMLResponse(html.replace(_UNSEEN, seen))


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=9).hexdigest()


def as_page(request: Request, response: Response) -> Response:
    """A problem, for a person: of an address that is a page."""
    if not is_page(request.url.path) or "text/html" not in request.headers.get("accept", ""):
        return response
    problem = json.loads(bytes(response.body))
    return page(request, "problem.html", status=response.status_code, problem=problem)


def progress(job: Job) -> float:
    """The part of its epochs that a job has trained: 0 to 1."""
    if job.status == Status.SUCCEEDED:
        return 1.0
    inside = job.batch / job.batches if job.batches else 0
    return min(max((max(job.epoch - 1, 0) + inside) / max(int(job.spec["epochs"]), 1), 0.0), 1.0)


def ago(moment: datetime | None) -> str:
    if moment is None:
        return _NONE
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if seconds < 5 else f"{_rough(seconds)} ago"


def duration(seconds: float | None) -> str:
    """Two units at most: `1 h 5 min`."""
    if seconds is None:
        return _NONE
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE:.0f} min {seconds % _MINUTE:.0f} s"
    if seconds < _DAY:
        return f"{seconds // _HOUR:.0f} h {seconds % _HOUR // _MINUTE:.0f} min"
    return f"{seconds // _DAY:.0f} d {seconds % _DAY // _HOUR:.0f} h"


def number(value: float | None, digits: int = 4) -> str:
    """So many significant digits."""
    return _NONE if value is None else f"{value:.{digits}g}"


def whole(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def percent(value: float | None, digits: int = 2) -> str:
    return _NONE if value is None else f"{100 * value:.{digits}f} %"


def size(count: int | None) -> str:
    if count is None:
        return _NONE
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 100 else f"{value:.1f} {_UNITS[unit]}"


def with_names(sentence: str, names: Mapping[str, str]) -> Markup:
    """A sentence about jobs, which calls them by their ids, with their names."""
    parts = re.split(f"({'|'.join(map(re.escape, names))})", sentence)
    return Markup().join(Markup("<bdi>{}</bdi>").format(names[part]) if part in names else part for part in parts)


def unlike_defaults(spec: Mapping[str, Any]) -> str:
    """What a spec says, as JSON, without what it would be anyway."""
    try:
        shown = Spec.model_validate(dict(spec)).model_dump(mode="json", exclude_defaults=True)
    except ValueError:  # of an epochd that knew other fields
        shown = dict(spec)
    return json.dumps(shown, indent=2, ensure_ascii=False)


def _rough(seconds: float) -> str:
    for length, unit in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{int(seconds)} seconds"


def _asset(name: str) -> str:
    """Its address, which changes with its contents: so a browser may keep it."""
    return f"/static/{name}?v={digest((FILES / name).read_text(encoding='utf-8'))}"


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("service.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    assets = {path.relative_to(FILES).as_posix(): "" for path in FILES.rglob("*.*")}
    made.globals |= {
        "asset": {name: _asset(name) for name in assets}.__getitem__,
        "version": version("epochd"),
        "progress": progress,
    }
    made.filters |= {
        "ago": ago,
        "duration": duration,
        "number": number,
        "percent": percent,
        "whole": whole,
        "size": size,
        "unlike_defaults": unlike_defaults,
        "with_names": with_names,
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    return made


_ENVIRONMENT: Final = _environment()
