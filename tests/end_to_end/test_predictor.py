import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.worker.inference.test_predict import png, save
from worker.jobs.wire import HELLO, LENGTHS, Answer, ClassPrediction, PredictRequest, pack

PICTURE = png(torch.zeros(28, 28, dtype=torch.uint8))


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[socket.socket]:
    """Our end of a socket to a real predictor process."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "worker.inference", str(theirs.fileno())]
    env = {"EPOCHD_DATA_DIR": str(tmp_path), "PATH": ""}
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stderr=subprocess.DEVNULL)
    theirs.close()
    ours.settimeout(60)
    yield ours
    ours.close()
    assert process.wait(30) == 0  # it leaves by itself when the service is gone


def receive(wire: socket.socket) -> Answer:
    def exactly(count: int) -> bytes:
        received = b""
        while len(received) < count:
            received += wire.recv(count - len(received))
        return received

    head, body = LENGTHS.unpack(exactly(LENGTHS.size))
    assert body == 0
    return Answer.model_validate_json(exactly(head))


def test_the_predictor_answers_refuses_and_goes_on(tmp_path: Path, wire: socket.socket) -> None:
    saved = save(tmp_path, 0)
    good = {"path": saved.path, "sha256": saved.sha256, "top_k": 2}
    wire.sendall(pack(PredictRequest(id=1, **good), PICTURE))
    wire.sendall(pack(PredictRequest(id=2, **good), b"nonsense"))
    wire.sendall(pack(PredictRequest(id=3, path="nowhere", sha256="0" * 64, top_k=1), PICTURE))
    wire.sendall(pack(PredictRequest(id=4, **good), PICTURE))
    assert receive(wire).id == HELLO
    answers = [receive(wire) for _ in range(4)]
    assert [answer.id for answer in answers] == [1, 2, 3, 4]
    assert [answer.code for answer in answers] == [None, "bad_image", "checkpoint_corrupt", None]
    assert answers[0].prediction == answers[3].prediction
    assert isinstance(answers[0].prediction, ClassPrediction)
    assert len(answers[0].prediction.top) == 2
