"""What a request may be, whoever sends it: by which name it calls the service, how many are worked on at once, and how
long its body may take. Sizes are limited where the routes are put together (`main.py`), headers in `protocol.py`.
"""

import asyncio
import re
from functools import lru_cache
from typing import Final

from anyio import BrokenResourceError
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from worker.jobs.errors import BadHost, Busy, EpochdError, RequestTimeout
from worker.jobs.settings import LOOPBACK, Settings

from .errors import response_to

_HEALTH: Final = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_HOST: Final = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}))(?::[0-9]{1,5})?")
_ANY: Final = "*"


class Work:
    """A request's place among those that are worked on. Who only waits, for something to happen, gives it back."""

    def __init__(self, limits: "Limits") -> None:
        self._limits, self._is_held = limits, True
        limits.at_work += 1

    def release(self) -> None:
        if self._is_held:
            self._is_held = False
            self._limits.at_work -= 1


class Limits:
    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._most, self._body_seconds = app, settings.max_requests, settings.body_seconds
        self._is_known = lru_cache(maxsize=64)(_Hosts(settings).know)
        self.at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await response_to(refusal, scope["state"]["request_id"])(scope, receive, send)
            return
        work = scope["state"]["work"] = Work(self)
        try:
            await self._worked(scope, receive, send, work)
        finally:
            work.release()

    def _refusal(self, scope: Scope) -> EpochdError | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if not (self._is_known(hosts[0]) if len(hosts) == 1 else not hosts and scope.get("http_version") == "1.0"):
            return BadHost()
        if self.at_work >= self._most and scope["path"] not in _HEALTH:
            return Busy()
        return None

    async def _worked(self, scope: Scope, receive: Receive, send: Send, work: Work) -> None:
        is_whole = is_late = has_begun = False

        async def receive_in_time() -> Message:
            nonlocal is_whole, is_late
            if is_whole:
                return await receive()
            try:
                async with asyncio.timeout(self._body_seconds):
                    message = await receive()
            except TimeoutError:
                is_whole = is_late = True
                return {"type": "http.disconnect"}  # for the app, the client is gone
            is_whole = not message.get("more_body", False)
            return message

        async def send_unless_late(message: Message) -> None:
            nonlocal has_begun
            if is_late and not has_begun:
                return
            if message["type"] == "http.response.start":
                has_begun = True
                if any(value.startswith(b"text/event-stream") for _, value in message["headers"]):
                    work.release()
            await send(message)

        try:
            await self._app(scope, receive_in_time, send_unless_late)
        except ClientDisconnect:
            if not is_late:
                raise
        except ExceptionGroup as error:
            # When a client leaves a stream, FastAPI's keeping it alive may find its own pipe broken.
            if not has_begun or error.split(BrokenResourceError)[1] is not None:
                raise
        finally:
            if is_late and not has_begun:
                await response_to(RequestTimeout(), scope["state"]["request_id"])(scope, receive, send)


class _Hosts:
    """The names that the service goes by. On loopback, where it may be open, only loopback's own: a page that has its
    own name resolve to 127.0.0.1 would be taken for the service's otherwise (DNS rebinding).
    """

    def __init__(self, settings: Settings) -> None:
        loopback = {"localhost", "127.0.0.1", "[::1]"}
        usual = {_ANY} if settings.is_exposed else loopback | ({settings.host} - LOOPBACK)
        self._names = {each.lower() for each in settings.allowed_hosts} or usual

    def know(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host)
        return found is not None and (_ANY in self._names or found[1].decode().lower() in self._names)
