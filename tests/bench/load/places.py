"""The processes that are measured: a service alone, and what the processes of an epochd take."""

import os
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import httpx2

from tests.end_to_end.serving import environment
from tests.tiny import ready_tiny
from worker.jobs.db import Database

MANY: Final = "10000000"
UNLIMITED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "EPOCHD_MAX_QUEUED_JOBS": MANY,
        "EPOCHD_MAX_QUEUED_JOBS_PER_KEY": MANY,
        "EPOCHD_MAX_STREAMS": "20000",
        "EPOCHD_MAX_REQUESTS": "4096",
        "EPOCHD_MIN_FREE_BYTES": "0",
    }
)
_START_SECONDS: Final = 60.0
_FSYNC_BYTES: Final = 4096


@dataclass(frozen=True)
class Service:
    url: str
    pid: int


def database(data_dir: Path) -> Database:
    """A new one, whose dataset is a small FashionMNIST that is ready."""
    data_dir.mkdir(parents=True, exist_ok=True)
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    db.migrate()
    ready_tiny(db, data_dir)
    return db


@contextmanager
def service(data_dir: Path, settings: Mapping[str, str] = UNLIMITED) -> Iterator[Service]:
    """`python -m service` without a worker; yields when it could also look at a network."""
    port = _free_port()
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir), "EPOCHD_PORT": str(port)} | dict(settings)
    log = data_dir / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=env, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_plans(process, url, log)
        yield Service(url, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def many_files() -> None:
    """Lets this process, and those that it starts, have as many open as they may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def fsync_seconds(folder: Path, count: int = 300) -> list[float]:
    """What the disk takes to keep a page."""
    found, page = [], os.urandom(_FSYNC_BYTES)
    path = folder / "fsync"
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            started = time.perf_counter()
            file.write(page)
            os.fsync(file.fileno())
            found.append(time.perf_counter() - started)
    path.unlink()
    return found


def resident_bytes(pid: int) -> int:
    return _kibibytes(Path(f"/proc/{pid}/status"), "VmRSS:")


def usage(pid: int) -> Counter[str]:
    """Bytes (what several share is divided between them), descriptors and threads of a process and all below it, in
    all and by the kind of process.
    """
    found: Counter[str] = Counter()
    for each in [pid, *_descendants(pid)]:
        with suppress(OSError):
            kind, proc = _kind(each), Path(f"/proc/{each}")
            memory = _kibibytes(proc / "smaps_rollup", "Pss:")
            found["processes"] += 1
            found["descriptors"] += sum(1 for _ in (proc / "fd").iterdir())
            found["threads"] += sum(1 for _ in (proc / "task").iterdir())
            found["bytes"] += memory
            found[f"bytes of {kind}"] += memory
    return found


def _wait_until_it_plans(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with httpx2.Client(base_url=url, timeout=10) as http:
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(httpx2.TransportError):
                if http.post("/jobs?dry_run=true", json={}).status_code == 200:
                    return
            time.sleep(0.05)
    raise RuntimeError(f"the service never answered:\n{log.read_text()[-2000:]}")


def _kind(pid: int) -> str:
    """Its name, or the module that it runs."""
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    if not name.startswith("python"):
        return name
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return command[command.index("-m") + 1] if "-m" in command else "trainings"


def _kibibytes(path: Path, name: str) -> int:
    """As bytes."""
    _, _, rest = path.read_text().partition(name)
    return int(rest.split()[0]) * 1024 if rest else 0


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, task.read_text().split())
    return [each for child in children for each in (child, *_descendants(child))]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
