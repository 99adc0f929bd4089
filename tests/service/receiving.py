"""A receiver of webhooks: a TLS server on this machine, with certificates of its own authority."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK = b"HTTP/1.1 204 No Content\r\n\r\n"


def answering(status: int, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", "Content-Length: 0", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@dataclass
class Received:
    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    port: int = 0
    answers: list[bytes] = field(default_factory=list)  # one after the other; then OK
    seconds: float = 0.0  # before it answers
    is_endless: bool = False  # whether it goes on sending until the client leaves
    connections: int = 0
    names: list[str | None] = field(default_factory=list)  # that were asked for in handshakes
    received: list[Received] = field(default_factory=list)

    def url(self, host: str = "hooks.example.com", path: str = "/T0/secret-path?x=1") -> str:
        return f"https://{host}:{self.port}{path}"

    @property
    def deliveries(self) -> list[str]:
        return [each.headers["epochd-delivery"] for each in self.received]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            line, *rest = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in rest)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.received.append(Received(line, headers, body))
            await asyncio.sleep(self.seconds)
            writer.write(self.answers.pop(0) if self.answers else OK)
            while self.is_endless:
                writer.write(b"x" * 2**16)
                await writer.drain()
                await asyncio.sleep(0.01)
            await writer.drain()
        writer.close()


@dataclass
class Authority:
    """Makes certificates with the program `openssl`."""

    folder: Path

    def __post_init__(self) -> None:
        self._run("req", "-x509", *self._new("authority"), "-days", "2", "-subj", "/CN=tests")

    def context(self) -> ssl.SSLContext:
        """Of a client that trusts it."""
        return ssl.create_default_context(cafile=str(self.folder / "authority.pem"))

    def server(self, host: str) -> ssl.SSLContext:
        """Of a server that goes by this name."""
        if not (self.folder / f"{host}.pem").exists():
            extensions = self.folder / f"{host}.cnf"
            extensions.write_text(f"subjectAltName=DNS:{host}\n")
            request = self.folder / f"{host}.csr"
            self._run("req", *self._new(host)[:-2], "-subj", f"/CN={host}", "-out", str(request))
            signed = ["-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial", "-days", "2"]
            more = ["-extfile", str(extensions), "-out", f"{host}.pem"]
            self._run("x509", "-req", "-in", str(request), *signed, *more)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / f"{host}.pem", self.folder / f"{host}.key")
        return context

    def _new(self, name: str) -> list[str]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key"]
        return [*key, "-out", f"{name}.pem"]

    def _run(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self.folder, check=True, capture_output=True)


@asynccontextmanager
async def receiving(authority: Authority, host: str = "hooks.example.com", **how: Any) -> AsyncIterator[Receiver]:
    receiver = Receiver(**how)
    context = authority.server(host)
    context.sni_callback = lambda _, name, __: receiver.names.append(name)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
