"""The `epochd` command in this process, on the app of the tests."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient

import service.client
from service.cli import app
from tests.service.unreliable import Mishap, Way


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class _Stream(io.StringIO):
    encoding = "utf-8"

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


class Commands:
    def __init__(self, client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
        self.way = Way(client)
        self._patch = monkeypatch
        whole = service.client.Client

        def reach(url: str | None, key: str | None, **more: Any) -> service.client.Client:
            return whole(url or "http://localhost", key, transport=self.way, **more)

        monkeypatch.setattr(service.client, "Client", reach)

    def meets(self, *mishaps: Mishap | None) -> None:
        self.way.mishaps[:] = mishaps

    def __call__(self, *arguments: str, stdin: bytes = b"", terminal: bool = False, width: int = 100) -> Ended:
        out, err = _Stream(is_terminal=terminal), _Stream(is_terminal=terminal)
        self._patch.setenv("COLUMNS", str(width))
        self._patch.setenv("TERM", "xterm-256color")
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with _written_to(out, err), pytest.raises(SystemExit) as ended:
            app(list(arguments), prog_name="epochd")
        code = ended.value.code
        assert isinstance(code, int)
        assert "Traceback" not in err.getvalue()
        return Ended(code, out.getvalue(), err.getvalue())


@contextmanager
def _written_to(out: io.StringIO, err: io.StringIO) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
