"""The API's end of the wire to the predictor process, which it starts, and restarts when it dies."""

import asyncio
import itertools
import os
import socket
import sys
import time
from contextlib import suppress

import structlog
from worker.jobs import wire
from worker.jobs.card import Card
from worker.jobs.errors import PredictorUnavailable, from_code
from worker.jobs.plan import Plan
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.wire import LENGTHS, Answer, PlanRequest, Prediction, PredictRequest

_ANSWER_SECONDS = 60.0
_MAX_WAITING = 256
_MAX_WAITING_BYTES = 64 * 2**20
_YOUNG_SECONDS = 10.0  # one that dies younger than this is restarted more and more slowly
_MAX_BACKOFF_SECONDS = 10.0
_log = structlog.get_logger()


class Predictor:
    def __init__(self, settings: Settings) -> None:
        # It decodes what strangers send: it gets what it needs, and neither the key nor the database's password.
        own = {"EPOCHD_DATA_DIR": str(settings.data_dir), "EPOCHD_MAX_PIXELS": str(settings.max_pixels)}
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("EPOCHD_")} | own
        self._waiting_bytes = 0
        self._planning = asyncio.Semaphore()  # one at a time: pictures shall not wait behind many
        self._process: asyncio.subprocess.Process | None = None
        self._ids = itertools.count(wire.HELLO + 1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether a process is there and has torch loaded. One that is not ready yet takes requests already."""
        return self._ready

    def start(self) -> None:
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper

    async def predict(self, *, path: str, sha256: str, top_k: int, image: bytes) -> Prediction:
        """Asks for the class of a picture.

        Raises PredictorUnavailable when the process is away, dies meanwhile or has too much to do, and what the
        process itself raised: BadImage, ImageTooLarge, CheckpointCorrupt.
        """
        request = PredictRequest(id=next(self._ids), path=path, sha256=sha256, top_k=top_k)
        answer = await self._ask(request, image)
        assert answer.prediction is not None
        return answer.prediction

    async def plan(self, spec: Spec, card: Card) -> Plan:
        """Asks what a job will be: the predictor is the process here that has torch.

        Raises PredictorUnavailable, and SpecRefused for what cannot be built or cannot fit.
        """
        async with self._planning:
            answer = await self._ask(PlanRequest(id=next(self._ids), spec=spec, card=card))
        assert answer.plan is not None
        return answer.plan

    async def _ask(self, request: PredictRequest | PlanRequest, body: bytes = b"") -> Answer:
        if self._writer is None or len(self._waiting) >= _MAX_WAITING or self._waiting_bytes > _MAX_WAITING_BYTES:
            raise PredictorUnavailable
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = future
        self._waiting_bytes += len(body)
        try:
            self._writer.write(wire.pack(request, body))
            answer = await asyncio.wait_for(future, _ANSWER_SECONDS)
        except TimeoutError as error:
            self._kill()  # it hangs: the next one answers
            raise PredictorUnavailable from error
        except ConnectionError as error:
            raise PredictorUnavailable from error
        finally:
            del self._waiting[request.id]
            self._waiting_bytes -= len(body)
        if answer.code is not None:
            raise from_code(answer.code, answer.detail or "", pointer=answer.pointer)
        return answer

    async def _keep(self) -> None:
        backoff = 0.1
        while True:
            started = time.monotonic()
            try:
                await self._run_once()
            except Exception:  # no memory for a process, a frame that is none: all worth another try
                _log.exception("predictor_failed")
            age = time.monotonic() - started
            backoff = 0.1 if age > _YOUNG_SECONDS else min(2 * backoff, _MAX_BACKOFF_SECONDS)
            _log.warning("predictor_died", age_seconds=round(age, 3), restart_in_seconds=backoff)
            await asyncio.sleep(backoff)

    async def _run_once(self) -> None:
        """Starts the process and passes its answers on until it dies."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker.inference", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=self._env,
            )
        self._process = process
        reader, self._writer = await asyncio.open_connection(sock=ours)
        try:
            while True:
                head_bytes, _ = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
                answer = Answer.model_validate_json(await reader.readexactly(head_bytes))
                self._ready = True  # its first frame says hello
                if (future := self._waiting.get(answer.id)) is not None and not future.done():
                    future.set_result(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._ready = False
            self._writer.close()
            self._writer = None
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(PredictorUnavailable())
            self._kill()
            await process.wait()

    def _kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
