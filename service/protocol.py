"""How long a connection may take: uvicorn itself waits for ever for headers, and for a client that takes nothing."""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from worker.jobs.errors import HeadersTooLarge, RequestTimeout
from worker.jobs.settings import Settings

from .errors import response_to

_HEADER_BYTES: Final = 64 * 2**10  # request line and headers together


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
        self._is_in_head, self._head_bytes = True, 0
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
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > _HEADER_BYTES:
            self._refuse(HeadersTooLarge())

    def on_message_begin(self) -> None:
        if not self._is_in_head:  # a further request on this connection
            self._is_in_head, self._head_bytes = True, 0
            self._until = self.loop.call_later(self.header_seconds, self._on_late)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._until is not None:
            self._until.cancel()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def _on_late(self) -> None:
        if self._head_bytes:
            self._refuse(RequestTimeout())
        else:
            self.transport.close()

    def _refuse(self, error: RequestTimeout | HeadersTooLarge) -> None:
        """Answers without any app: there is no request yet."""
        if self.transport.is_closing():
            return
        response = response_to(error, None)
        status = f"HTTP/1.1 {response.status_code} {error.code}"
        headers = [b"%b: %b" % header for header in response.raw_headers if header[0] != b"connection"]
        lines = [status.encode(), *headers, b"connection: close", b"", bytes(response.body)]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
