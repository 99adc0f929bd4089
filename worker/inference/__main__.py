"""`python -m worker.inference <fd>`: the predictor process. It answers what comes over its socket until that closes.

It alone decodes pictures that strangers send, so whatever they do costs one process that the service replaces.
"""

import signal
import socket
import sys
from typing import BinaryIO

import structlog
import torch

from worker.jobs import logs
from worker.jobs.errors import EpochdError, Internal, SpecRefused
from worker.jobs.processes import die_with_parent
from worker.jobs.settings import Settings
from worker.jobs.wire import HELLO, LENGTHS, Answer, AnyRequest, PlanRequest, PredictRequest, pack
from worker.training.plan import plan

from .models import Models
from .predict import predict

_MODELS_BYTES = 2**30
_log = structlog.get_logger()


def main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the service closes the socket
    die_with_parent()
    logs.configure("predictor")
    settings = Settings()
    torch.set_num_threads(1)  # a running job keeps its cores
    models = Models(settings.data_dir, _MODELS_BYTES)
    with socket.socket(fileno=descriptor) as wire, wire.makefile("rb") as requests:
        wire.sendall(pack(Answer(id=HELLO)))
        _log.info("predictor_ready")
        while (frame := _read_frame(requests)) is not None:
            wire.sendall(pack(_answer(models, *frame, max_pixels=settings.max_pixels)))


def _read_frame(requests: BinaryIO) -> tuple[PredictRequest | PlanRequest, bytes] | None:
    lengths = requests.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None  # the service is gone
    head_bytes, body_bytes = LENGTHS.unpack(lengths)
    head = AnyRequest.validate_json(requests.read(head_bytes))
    return head, requests.read(body_bytes)


def _answer(models: Models, request: PredictRequest | PlanRequest, image: bytes, *, max_pixels: int) -> Answer:
    try:
        if isinstance(request, PlanRequest):
            return Answer(id=request.id, plan=plan(request.spec, request.card))
        ready = models.get(request.path, request.sha256)
        return Answer(id=request.id, prediction=predict(ready, image, request.top_k, max_pixels=max_pixels))
    except EpochdError as error:
        pointer = error.pointer if isinstance(error, SpecRefused) else None
        return Answer(id=request.id, code=error.code, detail=error.detail, pointer=pointer)
    except Exception:
        _log.exception("request_failed", kind=request.kind)
        return Answer(id=request.id, code=Internal.code, detail=f"To {request.kind} failed unexpectedly.")


if __name__ == "__main__":
    main(int(sys.argv[1]))
