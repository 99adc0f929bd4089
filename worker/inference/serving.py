"""What a predictor process does: it answers what comes over its socket until that closes.

Pictures for one checkpoint share a pass through the network. Nobody is waited for: while one batch is at work the next
ones arrive, so that batches grow with the load and a lone picture is answered at once.
"""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import torch

from worker.jobs.errors import EpochdError, Internal, SpecRefused
from worker.jobs.settings import Settings
from worker.jobs.wire import (
    AnyRequest,
    FrameKind,
    InferRequest,
    PlanRequest,
    PredictRequest,
    WarmRequest,
    WireProblem,
    pack,
)
from worker.training import memory
from worker.training.plan import plan

from . import errands, tensors
from .answers import MOST_PICTURES, Seen, computed, look, written
from .errands import Place
from .frames import Frame, Frames
from .models import Models, Ready

_SECONDS: Final = 60  # a batch that takes longer hangs: the kernel ends this process
_STICKY: Final = "CUDA error"  # after one nothing works on that GPU in this process
_log = structlog.get_logger()


def serve(wire: socket.socket, settings: Settings) -> None:
    memory.keep_freed()
    frames = Frames(wire)
    frames.answer(0, FrameKind.HELLO, str(os.getpid()).encode())
    predictor = _Predictor(frames, settings)
    while (frame := frames.next()) is not None:
        predictor.answer(frame)


class _Predictor:
    def __init__(self, frames: Frames, settings: Settings) -> None:
        self._frames = frames
        self._models = Models(settings.data_dir, settings.predictor_bytes, device=settings.predictor_device)
        self._place = Place(self._models, settings)
        self._threads = torch.get_num_threads()

    def answer(self, frame: Frame) -> None:
        request = frame.request
        if isinstance(request, PredictRequest):
            with _within(_SECONDS):
                self._pictures(frame, request)
        else:
            self._other(frame)

    def _pictures(self, first: Frame, request: PredictRequest) -> None:
        """Answers the picture, and those for the same checkpoint that come while it is decoded."""
        done: list[bytes] = []
        seen: list[tuple[int, int, Seen]] = []  # id, top_k
        try:
            ready = self._models.get(request.path, request.sha256)
            self._use(request.threads if ready.is_large else 1)
            most = min(ready.at_once, MOST_PICTURES)
            frame: Frame | None = first
            while frame is not None:
                assert isinstance(frame.request, PredictRequest)
                try:
                    picture = look(ready, frame.body, self._place.settings.max_pixels, auto_fix=frame.request.auto_fix)
                    seen.append((frame.id, frame.request.top_k, picture))
                except Exception as error:  # costs nobody else their answer
                    done.append(_problem(frame.id, self._told(error, request)))
                    memory.trim()  # it may have been large
                is_full = len(seen) + len(done) >= most
                frame = None if is_full else self._frames.another(lambda other: _suits(other, request))
            done += self._answered(ready, seen)
        except Exception as error:
            ids = [each for each, _, _ in seen] or [first.id]
            done += [_problem(each, self._told(error, request)) for each in ids]
        self._frames.send(*done)

    def _answered(self, ready: Ready, seen: list[tuple[int, int, Seen]]) -> Iterator[bytes]:
        if not seen:
            return
        logits, told = computed(ready, [picture for _, _, picture in seen])
        for wanted in {top_k for _, top_k, _ in seen}:
            places = [place for place, (_, top_k, _) in enumerate(seen) if top_k == wanted]
            bodies = written(ready, logits[places], [told[place] for place in places], wanted)
            for place, body in zip(places, bodies, strict=True):
                yield pack(FrameKind.ANSWER, seen[place][0], body=body)

    def _other(self, frame: Frame) -> None:
        request = frame.request
        try:
            match request:
                case InferRequest():
                    with _within(_SECONDS):
                        ready = self._models.get(request.path, request.sha256)
                        self._use(request.threads if ready.is_large else 1)
                        body = tensors.infer(ready, request, frame.body)
                    self._frames.answer(frame.id, FrameKind.ANSWER, body)
                case WarmRequest():
                    self._models.get(request.path, request.sha256)
                    self._frames.answer(frame.id, FrameKind.ANSWER)
                case PlanRequest():
                    planned = plan(request.spec, request.card).model_dump_json().encode()
                    self._frames.answer(frame.id, FrameKind.ANSWER, planned)
                case PredictRequest():
                    raise AssertionError("answered elsewhere")
                case _:
                    for part in errands.run(self._place, request):
                        self._frames.answer(frame.id, FrameKind.PART, part)
                    self._frames.answer(frame.id, FrameKind.END)
        except ConnectionError:
            raise  # nobody wants it any more
        except Exception as error:
            self._frames.send(_problem(frame.id, self._told(error, request)))

    def _told(self, error: Exception, request: AnyRequest) -> EpochdError:
        """What the asker is told. A process that is spoiled ends here."""
        if isinstance(error, EpochdError):
            return error
        _log.exception("request_failed", kind=request.kind)
        if memory.is_out_of_memory(error) and self._models.leave_gpu():
            return Internal("The GPU had no memory left for this; ask again: the processor takes over.")
        if _STICKY in str(error):
            os._exit(1)
        return Internal(f"To {request.kind} failed unexpectedly.")

    def _use(self, threads: int) -> None:
        if threads != self._threads:
            torch.set_num_threads(threads)
            self._threads = threads


def _suits(other: AnyRequest, request: PredictRequest) -> bool:
    return isinstance(other, PredictRequest) and other.sha256 == request.sha256


def _problem(request_id: int, error: EpochdError) -> bytes:
    pointer = error.pointer if isinstance(error, SpecRefused) else None
    told = WireProblem(code=error.code, detail=error.detail, pointer=pointer)
    return pack(FrameKind.PROBLEM, request_id, body=told.model_dump_json().encode())


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM's default action ends the process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
