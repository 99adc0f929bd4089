"""A way to the app on which answers get lost, cut off or damaged."""

from collections.abc import Callable, Iterator

import httpx2
from fastapi.testclient import TestClient

Mishap = Callable[[httpx2.Request, httpx2.Response], httpx2.Response]


class Way(httpx2.BaseTransport):
    """To the app in this process. Each request meets the next mishap, until there is none left."""

    def __init__(self, client: TestClient, *mishaps: Mishap | None) -> None:
        self._transport, self.mishaps = client._transport, list(mishaps)
        self.sent: list[str] = []
        self.headers: list[httpx2.Headers] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append(f"{request.method} {request.url.path}")
        self.headers.append(request.headers)
        response = self._transport.handle_request(request)
        mishap = self.mishaps.pop(0) if self.mishaps else None
        return mishap(request, response) if mishap else response


def lost(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    """It was done, and nobody hears of it."""
    response.close()
    raise httpx2.ReadError("the connection broke", request=request)


def answered(status: int, **headers: str) -> Mishap:
    """Something on the way answers instead."""
    return lambda _request, _response: httpx2.Response(status, headers=headers, content=b"<html>not now</html>")


def cut(after: int, *, cleanly: bool = False) -> Mishap:
    """So many bytes come, and then none."""

    def mishap(request: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
        body = response.read()[:after]

        def pieces() -> Iterator[bytes]:
            yield body
            if not cleanly:
                raise httpx2.ReadError("the connection broke", request=request)

        headers = {name: value for name, value in response.headers.items() if name != "content-length"}
        return httpx2.Response(response.status_code, headers=headers, content=pieces())

    return mishap


def damaged(_: httpx2.Request, response: httpx2.Response) -> httpx2.Response:
    """One bit of the body is another."""
    body = bytearray(response.read())
    body[len(body) // 2] ^= 1
    return httpx2.Response(response.status_code, headers=response.headers, content=bytes(body))
