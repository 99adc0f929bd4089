"""What surrounds every request: an id, a line in the log, the one shape of errors, and what a browser may do with the
answer.
"""

import random
import time
from typing import Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import on_unexpected, problem

Headers = list[tuple[bytes, bytes]]

QUIET: Final = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})  # asked every few seconds
_LEFT: Final = 499  # what proxies log for a client that did not wait; nobody is sent it
_SAFE: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# Nothing that this service sends is there to be run, or to be shown inside another page.
DATA: Headers = [*_SAFE, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")]
# /docs takes its scripts and styles from where FastAPI has them.
_PAGE: Headers = [
    *_SAFE,
    (
        b"content-security-policy",
        b"default-src 'self' https: 'unsafe-inline'; img-src https: data:; frame-ancestors 'none'",
    ),
]
_NO_STORE: Final = (b"cache-control", b"no-store")
_CLOSE: Final = (b"connection", b"close")
_log = structlog.get_logger()


class RequestContext:
    """Gives the request an id (header `X-Request-Id`) and its answer what browsers must know, logs it, and turns the
    body limit's plain 413 into a problem.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"{random.getrandbits(64):016x}"  # a name, no secret
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        status = 0
        replaced = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, replaced
            if message["type"] == "http.response.start":
                status, kind = message["status"], _kind(message["headers"])
                if status == 413 and kind.startswith(b"text/plain"):
                    response = problem(413, "too_large", "The body is larger than this address accepts.", request_id=request_id)
                    await response(scope, receive, send_with_headers)
                    replaced = True
                    return
                message["headers"] = _complete(message["headers"], kind, status, request_id)
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = status or _LEFT
        except Exception as error:
            if not status:
                await on_unexpected(Request(scope), error)(scope, receive, send_with_headers)
            raise
        finally:
            if scope["path"] not in QUIET:
                elapsed = round((time.perf_counter() - started) * 1000, 1)
                _log.info("request", method=scope["method"], path=scope["path"], status=status, milliseconds=elapsed)


def _kind(headers: Headers) -> bytes:
    for name, value in headers:
        if name == b"content-type":
            return value
    return b""


def _complete(headers: Headers, kind: bytes, status: int, request_id: str) -> Headers:
    names = {name for name, _ in headers}
    whole = [*headers, *(_PAGE if kind.startswith(b"text/html") else DATA)]
    if b"cache-control" not in names:
        whole.append(_NO_STORE)
    if b"x-request-id" not in names:
        whole.append((b"x-request-id", request_id.encode()))
    if status in (408, 413) and b"connection" not in names:
        whole.append(_CLOSE)  # the rest of the body is not waited for
    return whole
