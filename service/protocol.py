"""How long a connection may take: uvicorn itself waits for ever for headers, and for a client that takes nothing."""

import asyncio
import socket
import struct
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from worker.jobs.errors import HeadersTooLarge, InvalidRequest, RequestTimeout
from worker.jobs.settings import Settings

from .errors import response_to
from .middleware import HEADERS_OF_DATA

_HEADER_BYTES: Final = 64 * 2**10  # request line and headers together
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


def protocol_of(settings: Settings) -> type[HttpToolsProtocol]:
    """The protocol, with the time-outs of these settings."""
    return type(
        "Protocol", (_Timed,), {"header_seconds": settings.header_seconds, "send_seconds": settings.send_seconds}
    )


class _Timed(HttpToolsProtocol):
    header_seconds: float
    send_seconds: float

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._has_begun = self._is_in_message = False
        self._head_bytes = 0  # of the request that is read
        self._loose_bytes = 0  # came since there was a whole head or a piece of a body: trailers, sizes of chunks
        self._until: asyncio.TimerHandle | None = None  # the headers are to be there
        self._stuck: asyncio.TimerHandle | None = None  # the client is to have taken something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._until = self.loop.call_later(self.header_seconds, self._on_late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._until, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._loose_bytes += len(data)
        super().data_received(data)
        if self._loose_bytes > _HEADER_BYTES:
            self._refuse(HeadersTooLarge())
        if not self._is_in_message and self._until is None and (self.cycle is None or self.cycle.response_complete):
            # An empty line between two requests ends uvicorn's own waiting for the next one.
            self._until = self.loop.call_later(self.header_seconds, self._on_late)

    def on_message_begin(self) -> None:
        self._has_begun, self._is_in_message, self._head_bytes = True, True, 0
        if self._until is None:  # a further request on this connection
            self._until = self.loop.call_later(self.header_seconds, self._on_late)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + len(b": \r\n")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Raises ValueError, which ends the parsing."""
        if self._until is not None:
            self._until.cancel()
            self._until = None
        if self._head_bytes > _HEADER_BYTES:
            self._refuse(HeadersTooLarge())
            raise ValueError
        self._loose_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose_bytes, self._is_in_message = 0, False
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.send_seconds, self._drop)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's words
        self._refuse(InvalidRequest("This is not a request as HTTP/1.1 has them."))

    def _on_late(self) -> None:
        if self._has_begun:
            self._refuse(RequestTimeout())
        else:
            self.transport.close()

    def _drop(self) -> None:
        """At once: else the kernel keeps for minutes what it has not got rid of."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def _refuse(self, error: InvalidRequest | RequestTimeout | HeadersTooLarge) -> None:
        """Answers without any app: there is no request yet, or what its body should be is none."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # no answer begins in the middle of another
            return
        response = response_to(error, None)
        status = f"HTTP/1.1 {response.status_code} {error.code}"
        headers = [
            b"%b: %b" % header for header in [*response.raw_headers, *HEADERS_OF_DATA] if header[0] != b"connection"
        ]
        lines = [status.encode(), *headers, b"connection: close", b"", bytes(response.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
