"""The servers as processes: epochd and the yardsticks, how each is set up, and what it takes until it answers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx2

from tests.end_to_end.serving import environment, epochd
from worker.jobs.processes import cores

from . import classifier
from .asking import ask
from .subjects import Subject

EPOCHD: Final = "epochd"
NAIVE: Final = ("naive, 1 worker", f"naive, {cores()} workers")
LITSERVE: Final = "LitServe"

_START_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.01
_AWAKE_SECONDS: Final = 1.0  # until everything that came due in its sleep is done
_BATCH: Final = {"mlp": 64, "resnet18": 8}  # of LitServe; more is no faster with these networks on a processor


@dataclass(frozen=True)
class Setup:
    """One way to set a server up. Of several for the same server the fastest is kept."""

    server: str
    told: str
    command: tuple[str, ...] = ()  # of a yardstick; the port goes where it says PORT
    threads: int | None = None  # torch's, of each process; None: its default


@dataclass
class Running:
    setup: Setup
    url: str  # to POST a picture to
    pid: int
    first_answer_seconds: float  # from the start of its process
    _asleep: list[int] = field(default_factory=list)

    def pids(self) -> list[int]:
        return [self.pid, *_descendants(self.pid)]

    def memory(self) -> dict[str, int]:
        """Bytes of its processes, by kind; what several share is divided between them."""
        found: dict[str, int] = {}
        for pid in self.pids():
            kind = _kind(pid)
            found[kind] = found.get(kind, 0) + _memory(pid)
        return found

    def sleep(self) -> None:
        """Even an idle server takes some of the processor."""
        self._asleep = self.pids()
        for pid in self._asleep:
            os.kill(pid, signal.SIGSTOP)

    def wake(self) -> None:
        if not self._asleep:
            return
        for pid in reversed(self._asleep):
            os.kill(pid, signal.SIGCONT)
        self._asleep = []
        time.sleep(_AWAKE_SECONDS)


def setups(network: str) -> list[Setup]:
    found = [Setup(EPOCHD, "as it comes")]
    for name, workers in zip(NAIVE, (1, cores()), strict=True):
        command = (
            "uvicorn", "--factory", "tests.bench.predicting.naive:app", "--port", "PORT", "--workers", str(workers),
            "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
            "--timeout-worker-healthcheck", "60",  # they are put to sleep
        )  # fmt: skip
        found += [Setup(name, _threads(threads), command, threads) for threads in (None, 1)]
    for workers, threads in ((1, None), (cores(), 1)):
        for timeout in ("0.01", "0.002"):
            options = ("PORT", str(workers), str(_BATCH[network]), timeout)
            told = f"workers: {workers}, {_threads(threads)}, batches of {_BATCH[network]}, {timeout} s"
            found.append(Setup(LITSERVE, told, ("tests.bench.predicting.batching", *options), threads))
    return found


@contextmanager
def running(setup: Setup, subject: Subject, folder: Path) -> Iterator[Running]:
    """Starts it, and yields when it has answered a picture."""
    started = time.perf_counter()
    if setup.server == EPOCHD:
        with epochd(subject.data_dir, wait_ready=False) as server:
            url = f"{server.url}/predict?job={subject.job_id}"
            yield _answering(Running(setup, url, server.process.pid, 0.0), subject, started, server.log)
        return
    port = _free_port()
    log = folder / f"{setup.server}.log"
    command = [sys.executable, "-m", *(str(port) if part == "PORT" else part for part in setup.command)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=_environment(setup, subject), stdout=output, stderr=output)
    try:
        yield _answering(Running(setup, f"http://127.0.0.1:{port}/predict", process.pid, 0.0), subject, started, log)
    finally:
        _end(process)


def _answering(server: Running, subject: Subject, started: float, log: Path) -> Running:
    with httpx2.Client(timeout=60) as http:
        while time.perf_counter() - started < _START_SECONDS:
            if ask(http, server.url, subject.pictures[0]) is not None:
                server.first_answer_seconds = time.perf_counter() - started
                return server
            time.sleep(_POLL_SECONDS)
    raise RuntimeError(f"{server.setup} never answered:\n{log.read_text()[-2000:]}")


def _environment(setup: Setup, subject: Subject) -> dict[str, str]:
    env = environment()
    env.pop("OMP_NUM_THREADS", None)  # an epochd does not heed it either
    env |= {classifier.NETWORK: subject.network, classifier.CHECKPOINT: str(subject.checkpoint)}
    return env if setup.threads is None else env | {classifier.THREADS: str(setup.threads)}


def _end(process: "subprocess.Popen[bytes]", seconds: float = 10) -> None:
    everybody = _descendants(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    for pid in everybody:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _threads(count: int | None) -> str:
    return "torch's threads" if count is None else f"threads: {count}"


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _memory(pid: int) -> int:
    """Proportional set size, else resident set size; 0 for a process that is gone."""
    for file, name in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        with suppress(OSError):
            _, _, rest = Path(f"/proc/{pid}/{file}").read_text().partition(name)
            if rest:
                return int(rest.split()[0]) * 1024
    return 0


def _kind(pid: int) -> str:
    """Its name, or the module that it runs."""
    with suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        if not name.startswith("python"):
            return name
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        return command[command.index("-m") + 1] if "-m" in command else "multiprocessing"
    return "gone"


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            children += map(int, task.read_text().split())
    return [each for child in children for each in (child, *_descendants(child))]
