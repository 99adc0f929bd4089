"""What surrounds every request: an id, a line in the log, and the one shape of errors."""

import random
import time

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import problem

_QUIET = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})  # asked every few seconds
_log = structlog.get_logger()


class RequestContext:
    """Gives the request an id (header `X-Request-Id`), logs it, and turns the body limit's plain 413 into a problem."""

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
        status = 500
        replaced = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, replaced
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                if status == 413 and Headers(scope=message).get("content-type", "").startswith("text/plain"):
                    replaced = True
                    detail = "The body is larger than this address accepts."
                    response = problem(413, "too_large", detail, request_id=request_id)
                    await response(scope, receive, send)
                    return
                if b"x-request-id" not in names:
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if scope["path"] not in _QUIET:
                elapsed = round((time.perf_counter() - started) * 1000, 1)
                _log.info("request", method=scope["method"], path=scope["path"], status=status, milliseconds=elapsed)
