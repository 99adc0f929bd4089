"""One predictor process at a time: what is asked of it, and the next one when it dies."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import cast

import structlog
from worker.jobs.errors import EpochdError, PredictorUnavailable, from_code
from worker.jobs.wire import FRAME, FrameKind, WireProblem

from .preloaded import Preloaded

_HANGS_SECONDS = 75.0  # a predictor ends itself before
_LOOK_SECONDS = 5.0
_YOUNG_SECONDS = 1.0
_BACKOFF_SECONDS = 0.05, 0.2  # after one that lived, and after one that did not
_log = structlog.get_logger()


class Lane:
    def __init__(self, preloaded: Preloaded, name: str, *, most_waiting: int, most_waiting_bytes: int) -> None:
        """`most_waiting`: requests that are not answered yet, and the bytes of their bodies; more are refused."""
        self._preloaded, self._name = preloaded, name
        self._most_waiting, self._most_waiting_bytes = most_waiting, most_waiting_bytes
        self._ids = itertools.count(1)
        self._waiting: dict[int, tuple[asyncio.Future[bytes], float]] = {}  # and since when
        self._waiting_bytes = 0
        self._heard = 0.0  # when the last answer came
        self._wire: _Wire | None = None

    @property
    def ready(self) -> bool:
        """Whether a process is there. One that is not yet takes requests already."""
        return self._wire is not None and self._wire.pid is not None

    @property
    def pid(self) -> int | None:
        return self._wire.pid if self._wire is not None else None

    def require_room(self, requests: int) -> None:
        """Raises PredictorUnavailable."""
        too_many = len(self._waiting) + requests > self._most_waiting and len(self._waiting) > 0
        if self._wire is None or too_many or self._waiting_bytes > self._most_waiting_bytes:
            raise PredictorUnavailable

    async def ask(self, head: bytes, body: bytes = b"") -> bytes:
        """Raises PredictorUnavailable when the process is away, dies meanwhile or is too busy, and what it raised
        itself.
        """
        self.require_room(1)
        assert self._wire is not None
        request_id = next(self._ids)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = future, time.monotonic()
        self._waiting_bytes += len(body)
        try:
            self._wire.send(request_id, head, body)
            return await future
        finally:
            del self._waiting[request_id]
            self._waiting_bytes -= len(body)

    async def keep(self) -> None:
        """Has a process forked, and another one when it dies. Until cancelled."""
        while True:
            started = time.monotonic()
            try:
                await self._run_once()
            except PredictorUnavailable:
                pass
            except Exception:  # nobody else would start the next one
                _log.exception("lane_failed", name=self._name)
            age = time.monotonic() - started
            await asyncio.sleep(_BACKOFF_SECONDS[age < _YOUNG_SECONDS])

    async def _run_once(self) -> None:
        loop = asyncio.get_running_loop()
        _, wire = await loop.create_connection(lambda: _Wire(self._on_frame), sock=self._preloaded.fork(self._name))
        self._wire = wire
        try:
            while not wire.gone.done():
                await asyncio.wait([wire.gone], timeout=_LOOK_SECONDS)
                oldest = min((since for _, since in self._waiting.values()), default=None)
                # Many large pictures take a while: who has waited for long need not wait for a process that hangs.
                if oldest is not None and time.monotonic() - max(oldest, self._heard) > _HANGS_SECONDS:
                    _log.error("predictor_hangs", name=self._name, pid=wire.pid)
                    wire.kill()
            _log.warning("predictor_died", name=self._name, pid=wire.pid, waiting=len(self._waiting))
        finally:
            self._wire = None
            wire.kill()
            if wire.pid is not None:
                self._preloaded.bury(wire.pid)
            for future, _ in self._waiting.values():
                if not future.done():
                    future.set_exception(PredictorUnavailable())

    def _on_frame(self, kind: int, request_id: int, body: bytes) -> None:
        self._heard = time.monotonic()
        future, _ = self._waiting.get(request_id, (None, None))
        if future is None or future.done():
            return  # the client has left meanwhile
        if kind == FrameKind.PROBLEM:
            future.set_exception(told(body))
        else:
            future.set_result(body)


def told(problem: bytes) -> EpochdError:
    """What went wrong at the other end."""
    found = WireProblem.model_validate_json(problem)
    return from_code(found.code, found.detail, pointer=found.pointer)


class _Wire(asyncio.Protocol):
    """Our end of a predictor's socket."""

    def __init__(self, on_frame: Callable[[int, int, bytes], None]) -> None:
        self._on_frame = on_frame
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None
        self.pid: int | None = None  # once it is ready
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, request_id: int, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        lengths = FRAME.pack(FrameKind.REQUEST, request_id, len(head), len(body))
        self._transport.writelines([lengths, head, body])

    def kill(self) -> None:
        if self.pid is not None and not self.gone.done():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if not self.gone.done():
            self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        received, start = self._received, 0
        received += data
        while len(received) - start >= FRAME.size:
            kind, request_id, head_bytes, body_bytes = FRAME.unpack_from(received, start)
            body, end = start + FRAME.size + head_bytes, start + FRAME.size + head_bytes + body_bytes
            if len(received) < end:
                break
            if kind == FrameKind.HELLO:
                self.pid = int(received[body:end])
            else:
                self._on_frame(kind, request_id, bytes(received[body:end]))
            start = end
        del received[:start]
