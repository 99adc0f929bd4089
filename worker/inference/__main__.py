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
from worker.jobs.errors import EpochdError, Internal
from worker.jobs.processes import die_with_parent
from worker.jobs.settings import Settings
from worker.jobs.wire import HELLO, LENGTHS, PredictAnswer, PredictRequest, pack

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
        wire.sendall(pack(PredictAnswer(id=HELLO)))
        _log.info("predictor_ready")
        while (frame := _read_frame(requests)) is not None:
            wire.sendall(pack(_answer(models, *frame, max_pixels=settings.max_pixels)))


def _read_frame(requests: BinaryIO) -> tuple[PredictRequest, bytes] | None:
    lengths = requests.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None  # the service is gone
    head_bytes, body_bytes = LENGTHS.unpack(lengths)
    head = PredictRequest.model_validate_json(requests.read(head_bytes))
    return head, requests.read(body_bytes)


def _answer(models: Models, request: PredictRequest, image: bytes, *, max_pixels: int) -> PredictAnswer:
    try:
        ready = models.get(request.path, request.sha256)
        prediction = predict(ready, image, request.top_k, max_pixels=max_pixels)
        return PredictAnswer(id=request.id, prediction=prediction)
    except EpochdError as error:
        return PredictAnswer(id=request.id, code=error.code, detail=error.detail)
    except Exception:
        _log.exception("prediction_failed")
        return PredictAnswer(id=request.id, code=Internal.code, detail="The prediction failed unexpectedly.")


if __name__ == "__main__":
    main(int(sys.argv[1]))
