"""A PostgreSQL server for tests: the machine's own binaries, a temporary folder, a Unix socket."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql

from worker.jobs.processes import die_with_parent

MISSING = "no PostgreSQL server on this machine: install the Debian package `postgresql`"
_START_SECONDS = 30.0
_USER = "epochd"
_NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=")


@dataclass
class Server:
    """A server; anyone on this machine may connect to it."""

    folder: Path
    command: list[str | Path]
    identity: dict[str, Any]  # who runs it

    def start(self) -> None:
        log = self.folder / "server.log"
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_parent,  # noqa: PLW1509  (one system call)
                **self.identity,
            )
        _wait_until_ready(self, self.process, log)

    def stop(self) -> None:
        """At once: whoever is connected is cut off, and what is on the disk is as after a crash."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(_START_SECONDS)

    def restart(self, seconds: float = 0.0) -> None:
        """Nobody answers for so many seconds."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://{_USER}@/{database}?host={self.folder}"

    def connect(self) -> "psycopg.Connection[Any]":
        return psycopg.connect(host=str(self.folder), user=_USER, dbname="postgres", autocommit=True)

    def new_database(self) -> str:
        """The URL of an empty database; it goes with the server."""
        name = f"test_{uuid4().hex}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)


def binaries() -> Path | None:
    """The folder that holds `initdb` and `postgres`: the newest that Debian has, or the one on PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: _version(path.parent.name))
    found = [path for path in versions if (path / "initdb").exists() and (path / "postgres").exists()]
    if found:
        return found[-1]
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb and shutil.which("postgres") else None


@contextmanager
def running(binaries: Path, *, keeps_commits: bool = False) -> Iterator[Server]:
    """Starts a server; it is stopped and its folder removed afterwards, or when this process dies.

    `keeps_commits`: whether what is committed survives a stop of the server; it is slower.
    """
    folder = Path(tempfile.mkdtemp(prefix="epochd-pg-"))  # a short path: a socket's has 107 bytes at most
    identity = _unprivileged(folder)
    try:
        data = folder / "data"
        initdb: list[str | Path] = [binaries / "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        subprocess.run(
            [*initdb, f"--username={_USER}", "-D", data], check=True, cwd=folder, stdout=subprocess.DEVNULL, **identity
        )
        chosen = ["max_connections=200", *_NOT_DURABLE, *(["synchronous_commit=on"] if keeps_commits else [])]
        options = [part for option in chosen for part in ("-c", option)]
        server = Server(folder, [binaries / "postgres", "-D", data, "-k", folder, *options], identity)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _version(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split(".") if part.isdecimal())


def _unprivileged(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it is somebody else who owns the folder and runs the server."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = known.get("postgres") or known["nobody"]
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    die_with_parent(signal.SIGQUIT)


def _wait_until_ready(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.connect().close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL did not start:\n{log.read_text(errors='replace')}") from None
            time.sleep(0.02)
        else:
            return
