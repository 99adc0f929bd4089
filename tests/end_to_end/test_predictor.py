"""A real process of `python -m worker.inference`, and the predictors that it forks."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.worker.inference.test_answers import png, save
from worker.jobs.records import SavedCheckpoint
from worker.jobs.wire import FRAME, FrameKind, PredictRequest, WarmRequest, pack

PICTURE = png(torch.zeros(28, 28, dtype=torch.uint8))


class Answer(NamedTuple):
    kind: int
    id: int
    body: bytes


class Wire:
    """Our end of a socket."""

    def __init__(self, wire: socket.socket) -> None:
        self.socket = wire
        wire.settimeout(60)
        self._file = wire.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def receive(self) -> Answer:
        kind, request_id, head, body = FRAME.unpack(self._file.read(FRAME.size))
        assert head == 0
        return Answer(kind, request_id, self._file.read(body))

    def ask(self, *requests: tuple[int, PredictRequest | WarmRequest, bytes]) -> None:
        frames = [
            pack(FrameKind.REQUEST, each, request.model_dump_json().encode(), body) for each, request, body in requests
        ]
        self.socket.sendall(b"".join(frames))


class Preloaded:
    """A process that forks predictors, and our ends of their sockets."""

    def __init__(self, data_dir: Path) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "worker.inference", str(theirs.fileno())]
        env = {"EPOCHD_DATA_DIR": str(data_dir), "PATH": ""}
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=env, stderr=subprocess.DEVNULL)
        self._wires = [Wire(ours)]
        assert self._wires[0].receive().kind == FrameKind.HELLO

    def fork(self) -> tuple[Wire, int]:
        """A predictor, and its pid."""
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._wires[0].socket, [b"predictor"], [theirs.fileno()])
        wire = Wire(ours)
        self._wires.append(wire)
        hello = wire.receive()
        assert hello.kind == FrameKind.HELLO
        return wire, int(hello.body)

    def close(self) -> int:
        for wire in self._wires:
            wire.close()
        return self.process.wait(30)


@pytest.fixture
def preloaded(tmp_path: Path) -> Iterator[Preloaded]:
    made = Preloaded(tmp_path)
    yield made
    assert made.close() == 0  # it leaves by itself when the service is gone


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_there(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def request(saved: SavedCheckpoint, top_k: int = 2, threads: int = 1) -> PredictRequest:
    return PredictRequest(path=saved.path, sha256=saved.sha256, top_k=top_k, threads=threads)


def test_a_predictor_answers_refuses_and_goes_on(tmp_path: Path, preloaded: Preloaded) -> None:
    saved = save(tmp_path, 0)
    wire, pid = preloaded.fork()
    assert Path(f"/proc/{pid}/comm").read_text() == "predictor\n"
    missing = PredictRequest(path="nowhere", sha256="0" * 64, top_k=1)
    wire.ask((1, request(saved), PICTURE), (2, request(saved), b"nonsense"), (3, missing, PICTURE))
    wire.ask((4, request(saved), PICTURE), (5, WarmRequest(path=saved.path, sha256=saved.sha256), b""))
    answers = {answer.id: answer for answer in (wire.receive() for _ in range(5))}
    problem, answer = FrameKind.PROBLEM, FrameKind.ANSWER
    assert [answers[each].kind for each in range(1, 6)] == [answer, problem, problem, answer, answer]
    assert json.loads(answers[2].body)["code"] == "bad_image"
    assert json.loads(answers[3].body)["code"] == "checkpoint_corrupt"
    assert answers[1].body == answers[4].body
    assert len(json.loads(answers[1].body)["top"]) == 2


def test_pictures_for_several_checkpoints_are_each_answered_by_theirs(tmp_path: Path, preloaded: Preloaded) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    wire, _ = preloaded.fork()
    wire.ask(*[(each, request((first, second)[each % 2], top_k=1 + each % 3), PICTURE) for each in range(1, 201)])
    answers = {answer.id: json.loads(answer.body) for answer in (wire.receive() for _ in range(200))}
    assert [len(answers[each]["top"]) for each in range(1, 201)] == [1 + each % 3 for each in range(1, 201)]
    evens, odds = ({round(answers[each]["probability"], 5) for each in range(start, 201, 2)} for start in (2, 1))
    assert (len(evens), len(odds)) == (1, 1)
    assert evens != odds


def test_two_threads_work_in_a_process_that_was_forked(tmp_path: Path, preloaded: Preloaded) -> None:
    """They would hang if the parent had ever used two."""
    saved = save(tmp_path, 0)
    for _ in range(2):
        wire, _ = preloaded.fork()
        wire.ask((1, request(saved, threads=2), PICTURE))
        assert wire.receive().kind == FrameKind.ANSWER


def test_a_predictor_lives_on_without_the_process_that_forked_it(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    preloaded = Preloaded(tmp_path)
    wire, pid = preloaded.fork()
    preloaded.process.kill()
    preloaded.process.wait(30)
    wire.ask((1, request(saved), PICTURE))
    assert wire.receive().kind == FrameKind.ANSWER
    preloaded.close()
    wait_gone(pid)


def test_a_predictor_leaves_when_nobody_listens_any_more(preloaded: Preloaded) -> None:
    wire, pid = preloaded.fork()
    wire.socket.shutdown(socket.SHUT_RDWR)
    wait_gone(pid)


def test_pictures_share_a_pass_whatever_they_want_to_know(tmp_path: Path, preloaded: Preloaded) -> None:
    """Each gets as many guesses as it asked for, and all of them the same numbers."""
    saved = save(tmp_path, 0)
    wire, _ = preloaded.fork()
    wire.ask(*[(each, request(saved, top_k=1 + each % 4), PICTURE) for each in range(1, 17)])
    answers = {answer.id: json.loads(answer.body) for answer in (wire.receive() for _ in range(16))}
    assert [len(answers[each]["top"]) for each in range(1, 17)] == [1 + each % 4 for each in range(1, 17)]
    assert len({round(answer["probability"], 4) for answer in answers.values()}) == 1
