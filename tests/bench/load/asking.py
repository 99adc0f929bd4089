"""A small HTTP client, by hand: what measures must cost less than what is measured."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

_PATIENCE_SECONDS: Final = 60.0
_LONGEST_LINE: Final = 2**20
Headers = Mapping[str, str]
NONE: Final[Headers] = MappingProxyType({})


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Tally:
    """What became of some requests."""

    seconds: list[float] = field(default_factory=list)  # of good answers
    errors: int = 0
    last_error: str = ""

    def refuse(self, why: object) -> None:
        self.errors += 1
        self.last_error = str(why)[:200]


class Connection:
    """Kept alive, with one request at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname, parts.port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", headers: Headers = NONE) -> Answer:
        """Raises OSError, also when the connection ends or nothing comes."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reader = await self._send(method, path, body, headers)
                status, found = await _head(reader)
                data = await reader.readexactly(int(found.get("content-length", "0")))
        except (EOFError, TimeoutError) as error:
            self.close()
            raise OSError(repr(error)) from error
        except OSError:
            self.close()
            raise
        return Answer(status, data, time.perf_counter() - started)

    async def tallied(
        self, tally: Tally, method: str, path: str, body: bytes = b"", headers: Headers = NONE
    ) -> Answer | None:
        """Notes what became of it. None: it was no good answer."""
        try:
            answer = await self.ask(method, path, body, headers)
        except OSError as error:
            tally.refuse(repr(error))
            return None
        if answer.status not in (200, 201, 304):
            tally.refuse(f"{answer.status} {answer.body.decode()}")
            return None
        tally.seconds.append(answer.seconds)
        return answer

    async def events(self, path: str, headers: Headers = NONE) -> AsyncIterator[dict[str, str]]:
        """Server-sent events, and a comment as one whose only field is called like that. Raises OSError."""
        reader = await self._send("GET", path, b"", headers)
        try:
            status, _ = await _head(reader)
            if status != 200:
                raise OSError(f"the stream was refused: {status}")
            event: dict[str, str] = {}
            async for line in _lines(reader):
                if line:
                    name, _, value = line.partition(":")
                    event[name or "comment"] = value.removeprefix(" ")
                elif event:
                    yield event
                    event = {}
        except EOFError as error:
            raise OSError(repr(error)) from error
        finally:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _send(self, method: str, path: str, body: bytes, headers: Headers) -> asyncio.StreamReader:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port, limit=_LONGEST_LINE)
        known = {"Host": f"{self._host}:{self._port}", "Content-Type": "application/json"} | dict(headers)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in known.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        self._writer.write(head.encode() + body)
        return self._reader


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[str]:
    """Of a chunked body."""
    rest = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.decode().removesuffix("\r")
