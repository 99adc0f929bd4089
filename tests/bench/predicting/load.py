"""Load from wrk: multipart uploads of some pictures in turn over so many connections, each with one request at a time.

Percentiles are those of wrk's own histogram, which it corrects for what a stalled server kept it from sending.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .asking import Answer, Picture, ask_all
from .servers import Running

_BOUNDARY: Final = "frontier"
_SCRIPT: Final = Path(__file__).with_name("upload.lua")
_TIMEOUT: Final = "30s"  # of a request: with 64 at a time some servers take seconds


@dataclass(frozen=True)
class Window:
    """Some seconds of load on one server."""

    concurrency: int
    per_second: float  # good answers
    p50_ms: float
    p99_ms: float
    errors: int
    memory: dict[str, int]  # bytes, in the middle of it, by kind of process
    answers: list[Answer | None]  # to each picture, asked for right after it


def find_wrk() -> str | None:
    """Where the Makefile puts it, else where it is installed."""
    own = Path(sys.prefix) / "bench"
    return shutil.which("wrk", path=f"{own}{os.pathsep}{os.environ.get('PATH', os.defpath)}")


class Load:
    def __init__(self, pictures: Sequence[Picture], folder: Path) -> None:
        folder.mkdir(parents=True)
        self._pictures = pictures
        self._bodies = [folder / f"{number}.body" for number in range(len(pictures))]
        for path, picture in zip(self._bodies, pictures, strict=True):
            path.write_bytes(_body(picture))

    def window(self, server: Running, concurrency: int, seconds: int) -> Window:
        """Leaves the server with nothing more to do. Raises CalledProcessError when wrk fails."""
        wrk = find_wrk()
        assert wrk is not None
        options = ("--threads", 1, "--connections", concurrency, "--duration", f"{seconds}s", "--timeout", _TIMEOUT)
        command = [wrk, *options, "--script", _SCRIPT, server.url, "--", _BOUNDARY, *self._bodies]
        with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
            time.sleep(seconds / 2)
            memory = server.memory()
            written, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, "wrk", written)
        told = json.loads(written.splitlines()[-1])
        good = (told["requests"] - told["refused"]) / told["seconds"]
        if not good:  # every answer would have taken longer than this
            told["p50_ms"] = told["p99_ms"] = 1000 * told["seconds"]
        errors = told["refused"] + told["broken"]
        answers = ask_all(server.url, self._pictures)  # behind what wrk did not wait for
        return Window(concurrency, good, told["p50_ms"], told["p99_ms"], errors, memory, answers)


def _body(picture: Picture) -> bytes:
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{picture.name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return head.encode() + picture.data + f"\r\n--{_BOUNDARY}--\r\n".encode()
