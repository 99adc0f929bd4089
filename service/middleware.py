"""What surrounds every request: an id, a line in the log, and the one shape of errors."""

import random
import time

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import problem

_QUIET = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})  # asked every few seconds
# For a browser that is shown an answer: it is what it says it is, nobody frames it, and it loads nothing.
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_OF_DATA = b"default-src 'none'; frame-ancestors 'none'"
_NOT_KEPT = (b"cache-control", b"no-store")
HEADERS_OF_DATA = [*_HEADERS, (b"content-security-policy", _OF_DATA), _NOT_KEPT]
_OF_PAGES = b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
# Swagger UI writes styles into its elements, and its icons into addresses.
_OF_DOCS = _OF_PAGES + b"; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
_LEFT = 499  # what proxies log for a client that did not wait
_log = structlog.get_logger()


class RequestContext:
    """Gives the request an id (header `X-Request-Id`), logs it, and turns the body limit's plain 413 into a problem."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"{random.getrandbits(64):016x}"  # nosec B311  # a name, no secret
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 500
        replaced = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, replaced
            if message["type"] == "http.response.start":
                status = message["status"]
                found = dict(message["headers"])
                if status == 413 and Headers(scope=message).get("content-type", "").startswith("text/plain"):
                    detail = "The body is larger than this address accepts."
                    response = problem(413, "too_large", detail, request_id=request_id)
                    await response(scope, receive, send_with_id)
                    replaced = True
                    return
                is_page = found.get(b"content-type", b"").startswith(b"text/html")
                of_page = _OF_DOCS if scope["path"] == "/docs" else _OF_PAGES
                more = [*_HEADERS, (b"content-security-policy", of_page if is_page else _OF_DATA)]
                if b"x-request-id" not in found:
                    more.append((b"x-request-id", request_id.encode()))
                if b"cache-control" not in found:
                    more.append(_NOT_KEPT)
                if status == 413 and b"connection" not in found:
                    more.append((b"connection", b"close"))  # the rest of the body is not waited for
                message["headers"] = [*message["headers"], *more]
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:  # nobody is there to be answered
            status = _LEFT
        finally:
            if scope["path"] not in _QUIET:
                elapsed = round((time.perf_counter() - started) * 1000, 1)
                _log.info("request", method=scope["method"], path=scope["path"], status=status, milliseconds=elapsed)
