"""The service's end of the wire to the predictors: the one place that has pictures, tensors and plans answered."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache

from worker.jobs.card import Card
from worker.jobs.errors import PredictorUnavailable
from worker.jobs.plan import Plan
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.wire import (
    FRAME,
    BatchRequest,
    ExportRequest,
    FrameKind,
    ImportRequest,
    InferRequest,
    ParityRequest,
    PlanRequest,
    PredictRequest,
    WarmRequest,
    pack,
)

from .lane import Lane, told
from .preloaded import Preloaded

_MOST_WAITING = 256  # pictures
_MOST_WAITING_BYTES = 64 * 2**20
_MOST_PLANS = 16
_MOST_ERRANDS = 2  # at a time

Errand = BatchRequest | ExportRequest | ParityRequest | ImportRequest


class Predictor:
    def __init__(self, settings: Settings) -> None:
        self._preloaded = Preloaded(settings)
        self._answers = self._lane("predictor", _MOST_WAITING)
        self._plans = self._lane("planner", _MOST_PLANS)
        self._errands = 0
        self._keepers: list[asyncio.Task[None]] = []

    def _lane(self, name: str, most_waiting: int) -> Lane:
        return Lane(self._preloaded, name, most_waiting=most_waiting, most_waiting_bytes=_MOST_WAITING_BYTES)

    @property
    def ready(self) -> bool:
        """Whether a picture would be answered at once. One that is sent before waits."""
        return self._answers.ready

    @property
    def pids(self) -> list[int]:
        """The processes that somebody may be waiting for."""
        return [lane.pid for lane in (self._answers, self._plans) if lane.pid is not None]

    def start(self) -> None:
        self._keepers = [asyncio.create_task(each.keep()) for each in (self._preloaded, self._answers, self._plans)]

    async def stop(self) -> None:
        for keeper in reversed(self._keepers):
            keeper.cancel()
        for keeper in self._keepers:
            with suppress(asyncio.CancelledError):
                await keeper

    def require_room(self, pictures: int) -> None:
        """Raises PredictorUnavailable when so many more would have to wait for too long."""
        self._answers.require_room(pictures)

    async def predict(
        self, *, path: str, sha256: str, image: bytes, top_k: int, auto_fix: bool = False, threads: int = 1
    ) -> bytes:
        """What the checkpoint says of a picture's file: a `Prediction` as JSON.

        Raises PredictorUnavailable when the process is away, dies meanwhile or has too much to do, and what the
        process itself raised: BadImage, ImageTooLarge, CheckpointCorrupt.
        """
        return await self._answers.ask(_predict_head(path, sha256, top_k, auto_fix, threads), image)

    async def ask(self, request: InferRequest | WarmRequest, body: bytes = b"") -> bytes:
        """Of the process that answers pictures. Raises PredictorUnavailable, and what the process itself raised."""
        return await self._answers.ask(request.model_dump_json().encode(), body)

    async def plan(self, spec: Spec, card: Card) -> Plan:
        """What a job will be. Raises PredictorUnavailable, and SpecRefused for what cannot be built or cannot fit."""
        request = PlanRequest(spec=spec, card=card)
        return Plan.model_validate_json(await self._plans.ask(request.model_dump_json().encode()))

    @asynccontextmanager
    async def errand(self, request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        """The parts of its answer, as they come, from a process that ends with the block.

        Raises PredictorUnavailable, also when too many are under way, and what the process itself raised.
        """
        if self._errands >= _MOST_ERRANDS:
            raise PredictorUnavailable("Enough longer work is under way already; try again in a moment.")
        self._errands += 1
        try:
            reader, writer = await asyncio.open_connection(sock=self._preloaded.fork(request.kind))
            errand = _Errand(reader)
            try:
                writer.write(pack(FrameKind.REQUEST, 1, head=request.model_dump_json().encode()))
                yield errand.parts()
            finally:
                errand.kill(self._preloaded)
                writer.transport.abort()
        finally:
            self._errands -= 1


class _Errand:
    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._pid: int | None = None

    async def parts(self) -> AsyncIterator[bytes]:
        try:
            while True:
                frame = await self._reader.readexactly(FRAME.size)
                kind, _, head_bytes, body_bytes = FRAME.unpack(frame)
                body = (await self._reader.readexactly(head_bytes + body_bytes))[head_bytes:]
                match kind:
                    case FrameKind.HELLO:
                        self._pid = int(body)
                    case FrameKind.PART:
                        yield body
                    case FrameKind.PROBLEM:
                        raise told(body)
                    case FrameKind.END:
                        return
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self._pid = None
            raise PredictorUnavailable("The process that worked on this died; try again in a moment.") from error

    def kill(self, preloaded: Preloaded) -> None:
        if self._pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            preloaded.bury(self._pid)


@lru_cache(maxsize=256)
def _predict_head(path: str, sha256: str, top_k: int, auto_fix: bool, threads: int) -> bytes:
    request = PredictRequest(path=path, sha256=sha256, top_k=top_k, auto_fix=auto_fix, threads=threads)
    return request.model_dump_json().encode()
