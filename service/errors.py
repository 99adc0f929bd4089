"""ONE table from error class to status, and ONE shape for every error that leaves: problem+json (RFC 9457)."""

import json
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match
from worker.jobs import errors
from worker.jobs.db import DATABASE_AWAY
from worker.jobs.errors import EpochdError
from worker.jobs.spec import UNKNOWN_NAME
from worker.jobs.texts import redacted

STATUS: dict[type[EpochdError], HTTPStatus] = {
    errors.InvalidRequest: HTTPStatus.BAD_REQUEST,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.Forbidden: HTTPStatus.FORBIDDEN,
    errors.CrossSite: HTTPStatus.FORBIDDEN,
    errors.BadHost: HTTPStatus.BAD_REQUEST,
    errors.RequestTimeout: HTTPStatus.REQUEST_TIMEOUT,
    errors.HeadersTooLarge: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.IdempotencyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.UrlNotAllowed: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.TooManyJobs: HTTPStatus.TOO_MANY_REQUESTS,
    errors.TooManyStreams: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Busy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.Conflict: HTTPStatus.CONFLICT,
    errors.NotReady: HTTPStatus.CONFLICT,
    errors.CheckpointCorrupt: HTTPStatus.CONFLICT,
    errors.BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.SpecRefused: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.BadBundle: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotExportable: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.BadArchive: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DatasetMissing: HTTPStatus.CONFLICT,
    errors.DatasetChanged: HTTPStatus.CONFLICT,
    errors.ArchiveTooLarge: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.UnsafePath: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DiskFull: HTTPStatus.INSUFFICIENT_STORAGE,
    errors.UnsupportedMediaType: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.BadImage: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DatabaseUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.PredictorUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Internal: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_HEADERS: dict[type[EpochdError], dict[str, str]] = {
    errors.Unauthenticated: {"WWW-Authenticate": "Bearer"},
    errors.TooManyJobs: {"Retry-After": "5"},
    errors.TooManyStreams: {"Retry-After": "5"},
    errors.Busy: {"Retry-After": "1"},
    errors.RequestTimeout: {"Connection": "close"},
    errors.DatabaseUnavailable: {"Retry-After": "1"},
    errors.PredictorUnavailable: {"Retry-After": "1"},
}
_DATABASE_AWAY = (*DATABASE_AWAY, PoolTimeout)
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 422: "validation_error"}
PROBLEM, _EXAMPLES = "#/components/schemas/Problem", "#/components/examples"  # in the OpenAPI description
_REFUSED = "The request was understood and refused; `errors` says which field and why."
_NO_JSON = "The body is not valid JSON."
_UNREAD = "There was an error parsing the body"  # FastAPI, of bytes that are no text, too deep, or too long a number
_EXAMPLE_ID = "5f1c0b7a9d3e2c48"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_MAX_FIELDS, _MAX_POINTER = 20, 200  # an answer stays small whatever was sent
_log = structlog.get_logger()


class FieldProblem(BaseModel):
    pointer: str = Field(description="`#/optimizer/lr` in the body (JSON pointer), `?limit` in the query")
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 describes it."""

    type: str = Field(description="`urn:epochd:problem:<code>`")
    title: str
    status: int
    detail: str = Field(description="A sentence for people")
    code: str = Field(description="A stable name for programs")
    request_id: str | None = Field(description="Names this request in the service's log")
    errors: list[FieldProblem] = []


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    request_id: str | None,
    fields: Sequence[FieldProblem] = (),
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    body = Problem(
        type=f"urn:epochd:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=redacted(detail),
        code=code,
        request_id=request_id,
        errors=[FieldProblem(pointer=redacted(each.pointer), detail=redacted(each.detail)) for each in fields],
    )
    headers = (headers or {}) | ({"X-Request-Id": request_id} if request_id else {})
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


def responses(*wanted: type[EpochdError]) -> dict[int | str, dict[str, Any]]:
    """The problems of a route, for its OpenAPI description."""
    by_status: dict[int, list[type[EpochdError]]] = {}
    for error in wanted:
        by_status.setdefault(int(STATUS[error]), []).append(error)
    return {status: _documented(kinds) for status, kinds in by_status.items()}


def everywhere() -> dict[int | str, dict[str, Any]]:
    """The problems that any route can answer with."""
    return responses(
        errors.BadHost,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.RequestTimeout,
        errors.BodyTooLarge,
        errors.SpecRefused,
        errors.Busy,
        errors.DatabaseUnavailable,
    )


def _documented(kinds: Sequence[type[EpochdError]]) -> dict[str, Any]:
    examples = {kind.code: {"$ref": f"{_EXAMPLES}/{kind.code}"} for kind in kinds}
    headers = {name: value for kind in kinds for name, value in _HEADERS.get(kind, {}).items()}
    return {
        "description": " ".join(_REFUSED if kind is errors.SpecRefused else kind().detail for kind in kinds),
        "headers": {name: {"schema": {"type": "string"}, "example": value} for name, value in headers.items()},
        "content": {"application/problem+json": {"schema": {"$ref": PROBLEM}, "examples": examples}},
    }


def examples() -> dict[str, Any]:
    """A problem of each kind, for the OpenAPI description's components."""
    return {kind.code: {"value": _example(int(status), kind)} for kind, status in STATUS.items()}


def _example(status: int, kind: type[EpochdError]) -> dict[str, Any]:
    response = problem(status, kind.code, kind().detail, request_id=_EXAMPLE_ID)
    if kind is errors.SpecRefused:
        field = FieldProblem(pointer="#/epochs", detail="Input should be greater than or equal to 1.")
        detail = f"{field.pointer}: {field.detail}"
        response = problem(status, kind.code, detail, request_id=_EXAMPLE_ID, fields=[field])
    example: dict[str, Any] = json.loads(bytes(response.body))
    return example


Handler = Callable[[Request, Exception], Response]


def install(app: FastAPI, as_page: Callable[[Request, Response], Response]) -> None:
    """`as_page` makes a page of the problem, where a person looks at one."""

    def shown(handler: Handler) -> Handler:
        return lambda request, error: as_page(request, handler(request, error))

    app.add_exception_handler(EpochdError, shown(_on_epochd_error))
    app.add_exception_handler(RequestValidationError, shown(_on_invalid))
    app.add_exception_handler(HTTPException, shown(_on_http_error))
    for kind in _DATABASE_AWAY:
        app.add_exception_handler(kind, shown(_on_database_away))
    app.add_exception_handler(Exception, shown(_on_unexpected))


def request_id(request: Request) -> str | None:
    known: str | None = request.scope.get("state", {}).get("request_id")
    return known


def response_to(error: EpochdError, request_id: str | None) -> Response:
    """The problem that an error of ours is."""
    kind = type(error)
    detail, fields = " ".join(filter(None, (error.detail, error.hint))), []
    if isinstance(error, errors.SpecRefused):
        fields = [FieldProblem(pointer=error.pointer, detail=error.detail)]
        detail = f"{error.pointer}: {error.detail}"
    headers = _HEADERS.get(kind)
    return problem(STATUS[kind], error.code, detail, request_id=request_id, fields=fields, headers=headers)


def _on_epochd_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EpochdError)
    if type(error) not in STATUS or type(error) is errors.Internal:
        return _on_unexpected(request, error)
    return response_to(error, request_id(request))


def _on_invalid(request: Request, error: Exception) -> Response:
    """What pydantic refused. Says what was expected, never what was sent."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(each["type"] == "json_invalid" for each in found):
        return problem(400, "invalid_json", _NO_JSON, request_id=request_id(request))
    shown = found[:_MAX_FIELDS]
    fields = [FieldProblem(pointer=_pointer(each, error.body), detail=_sentence(each)) for each in shown]
    first = fields[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    detail = f"{first.pointer}: {first.detail}{more}"
    return problem(422, "validation_error", detail, request_id=request_id(request), fields=fields)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = "invalid_json" if error.detail == _UNREAD else _CODES.get(error.status_code, "invalid_request")
    detail = {
        "invalid_json": _NO_JSON,
        "not_found": "There is nothing at this address; /docs lists what is.",
        "method_not_allowed": "This address does not take that method; see the Allow header.",
        "too_large": "The body is larger than this address accepts.",
    }.get(code, error.detail)
    headers = dict(error.headers) if error.headers else None
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": _allowed(request)}
    return problem(error.status_code, code, detail, request_id=request_id(request), headers=headers)


def _allowed(request: Request) -> str:
    """The methods of all routes that have this path: Starlette names those of the first."""
    routes, scope = request.app.router.routes, {key: request.scope[key] for key in ("type", "path", "headers")}
    matches = {each: [route.matches(scope | {"method": each})[0] for route in routes] for each in _METHODS}
    return ", ".join(method for method, found in matches.items() if Match.FULL in found)


def _on_database_away(request: Request, error: Exception) -> Response:
    """A lock that was held for long, a server that restarts, a disk without space: not this request's fault."""
    _log.error("database_away", request_id=request_id(request), exc_info=error)
    is_full = "disk is full" in str(getattr(error, "orig", ""))
    return response_to(errors.DiskFull() if is_full else errors.DatabaseUnavailable(), request_id(request))


def _on_unexpected(request: Request, error: Exception) -> Response:
    if isinstance(error, _DATABASE_AWAY):  # in a middleware
        return _on_database_away(request, error)
    _log.error("request_failed", request_id=request_id(request), exc_info=error)
    detail = "Something went wrong here, not with your request. The service's log has the details."
    return problem(500, "internal", detail, request_id=request_id(request))


def _pointer(error: dict[str, Any], body: Any) -> str:
    where, *path = error["loc"]
    if where == "body":
        parts = [str(part) for part in (_in_body(path, body, error["type"]) if body is not None else path)]
        pointer = "#" + "".join(f"/{part.replace('~', '~0').replace('/', '~1')}" for part in parts)
    else:
        pointer = f"{'?' if where == 'query' else where + ' '}{'.'.join(map(str, path))}"
    return redacted(pointer)[:_MAX_POINTER]  # a field's name may be anything


def _in_body(location: Sequence[str | int], body: Any, kind: str) -> list[str | int]:
    """The way through the body. Pydantic's location also names the choices that it took, which nobody has sent."""
    path: list[str | int] = []
    for part in location:
        keys = body if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else ()
        if part in keys:
            body = body[part]
            path.append(part)
    if kind == "missing":
        path += location[-1:]
    if kind == UNKNOWN_NAME and isinstance(body, dict):
        path.append("name")
    return path


def _sentence(error: dict[str, Any]) -> str:
    kinds = {
        "missing": "This is required.",
        "extra_forbidden": "There is no such field.",
    }
    sentence: str = kinds.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return sentence if sentence.endswith(".") else f"{sentence}."
