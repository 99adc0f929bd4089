"""A predictor's end of the wire: requests as they come, answers as they are done."""

import socket
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Final, NamedTuple

from worker.jobs.wire import ANY_REQUEST, FRAME, AnyRequest, FrameKind, pack

_CHUNK: Final = 2**20


class Frame(NamedTuple):
    id: int
    request: AnyRequest
    body: bytes


class Frames:
    def __init__(self, wire: socket.socket) -> None:
        self._wire = wire
        self._received = bytearray()
        self._waiting: deque[Frame] = deque()

    def next(self) -> Frame | None:
        """The oldest request, as soon as there is one; None when the service is gone."""
        while not self._waiting:
            if not self._receive(block=True):
                return None
        return self._waiting.popleft()

    def another(self, suits: Callable[[AnyRequest], bool]) -> Frame | None:
        """The oldest of those that are here already and suit; nobody is waited for."""
        self._receive(block=False)
        for place, frame in enumerate(self._waiting):
            if suits(frame.request):
                del self._waiting[place]
                return frame
        return None

    def send(self, *frames: bytes) -> None:
        self._wire.sendall(b"".join(frames))

    def answer(self, request_id: int, kind: FrameKind, body: bytes = b"") -> None:
        self.send(pack(kind, request_id, body=body))

    def _receive(self, *, block: bool) -> bool:
        try:
            chunk = self._wire.recv(_CHUNK, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:
            return False
        self._received += chunk
        self._take_apart()
        return bool(chunk)

    def _take_apart(self) -> None:
        received, start = self._received, 0
        while len(received) - start >= FRAME.size:
            _, request_id, head_bytes, body_bytes = FRAME.unpack_from(received, start)
            body = start + FRAME.size + head_bytes
            if len(received) < body + body_bytes:
                break
            request = _request(bytes(received[start + FRAME.size : body]))
            self._waiting.append(Frame(request_id, request, bytes(received[body : body + body_bytes])))
            start = body + body_bytes
        del received[:start]


@lru_cache(maxsize=256)
def _request(head: bytes) -> AnyRequest:
    """Those for one checkpoint are alike to the byte."""
    return ANY_REQUEST.validate_json(head)
