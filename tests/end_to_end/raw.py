"""Requests byte by byte: what no proper client would send."""

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SECONDS = 30.0
Headers = Mapping[str, str | bytes]


class Answer(NamedTuple):
    status: int  # 0: the connection was closed without any
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def code(self) -> str:
        is_problem = self.headers.get("content-type") == "application/problem+json"
        return str(self.json["code"]) if is_problem else ""


def connect(url: str, *, receive_buffer: int | None = None) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(SECONDS)
    connection.connect((parts.hostname, parts.port))
    return connection


def request(method: str, target: str | bytes, headers: Headers | None = None, body: bytes = b"") -> bytes:
    """As it goes over the wire. A header that is given replaces the usual one."""
    target = target.encode() if isinstance(target, str) else target
    all_headers: dict[str, str | bytes] = {"Host": "localhost", "Connection": "close"}
    if body and "Transfer-Encoding" not in (headers or {}):
        all_headers["Content-Length"] = str(len(body))
    all_headers.update(headers or {})
    lines = [b"%b %b HTTP/1.1" % (method.encode(), target)]
    for name, value in all_headers.items():
        lines.append(b"%b: %b" % (name.encode(), value.encode() if isinstance(value, str) else value))
    return b"\r\n".join([*lines, b"", body])


def exchange(url: str, sent: bytes) -> Answer:
    with connect(url) as connection:
        with suppress(ConnectionError):  # it may answer and close before it has it all
            connection.sendall(sent)
        return answer(connection)


def answer(connection: socket.socket) -> Answer:
    """All that comes until the other side closes."""
    return parsed(rest(connection))


def rest(connection: socket.socket) -> bytes:
    received = bytearray()
    with suppress(ConnectionError):
        while data := connection.recv(2**20):
            received += data
    return bytes(received)


def parsed(received: bytes) -> Answer:
    if not received:
        return Answer(0, {}, b"")
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _joined(body)
    return Answer(int(first.split(" ")[1]), headers, body)


def _joined(chunked: bytes) -> bytes:
    body = b""
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        body += chunked[: int(size, 16)]
        chunked = chunked[int(size, 16) + 2 :]
    return body
