"""`epochd serve`: a small parent that keeps the service, the worker and any sinks running. It never loads torch.

It owns the listening socket: while the service restarts, connections wait instead of being refused.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from types import FrameType

import structlog
from worker.jobs.processes import die_with_parent
from worker.jobs.settings import Settings
from worker.jobs.starting import EXIT_SETTINGS, OF_THE_SERVICE, leave

from .sinks.sink import missing

_LOOK_SECONDS = 0.2  # each look takes a core from a training's threads for a moment
_GRACE_SECONDS = 10.0  # on top of what the worker gives its attempts
_YOUNG_SECONDS = 5.0  # one that dies younger than this is restarted more and more slowly
_MAX_BACKOFF_SECONDS = 30.0
_log = structlog.get_logger()


class Kept:
    """A child process that is started again whenever it dies."""

    def __init__(self, name: str, start: Callable[[], subprocess.Popen[bytes]]) -> None:
        self.name, self._start = name, start
        self._backoff, self._start_at, self._started = 0.0, 0.0, 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def keep(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            age = time.monotonic() - self._started
            self._backoff = 0.1 if age > _YOUNG_SECONDS else min(2 * self._backoff + 0.1, _MAX_BACKOFF_SECONDS)
            self._start_at = time.monotonic() + self._backoff
            code = self.process.returncode
            _log.warning("process_died", name=self.name, exit_code=code, restart_in_seconds=self._backoff)
            self.process = None
        if self.process is None and time.monotonic() >= self._start_at:
            self.process = self._start()
            self._started = time.monotonic()


def listen(settings: Settings) -> socket.socket:
    """The listening socket. Raises OSError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError:
        listener.close()
        raise
    listener.listen(2048)
    return listener


def run(listener: socket.socket, settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then stops its children; a second signal kills them.

    Returns the exit code: 1 when a child had to be killed. Leaves at once when a sink's library is not installed.
    """
    if sentences := missing(settings.sinks):
        leave(EXIT_SETTINGS, *sentences)
    signals: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    address, port = listener.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
    _log.info("listening", url=url, docs=f"{url}/docs")  # only now: whoever reads it may send a signal
    fd = listener.fileno()
    kept = [
        Kept("service", lambda: _start("service", "--fd", str(fd), pass_fds=(fd,))),
        Kept("worker", lambda: _start("worker", without=OF_THE_SERVICE)),
    ]
    if settings.sinks:
        kept.append(Kept("sinks", lambda: _start("service.sinks", without=OF_THE_SERVICE)))
    while not signals:
        for each in kept:
            each.keep()
        time.sleep(_LOOK_SECONDS)
    return _stop([each.process for each in kept if each.process is not None], signals, settings)


def _start(
    module: str, *arguments: str, pass_fds: tuple[int, ...] = (), without: Collection[str] = ()
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        pass_fds=pass_fds,
        env={name: value for name, value in os.environ.items() if name not in without},
        # Ctrl-C reaches only us, and we forward it: each child is told once. And see `yielding.py`.
        start_new_session=True,
        preexec_fn=_follow_parent,  # noqa: PLW1509  (one system call, before any thread exists)
    )


def _follow_parent() -> None:
    die_with_parent(signal.SIGTERM)


def _stop(processes: list[subprocess.Popen[bytes]], signals: list[int], settings: Settings) -> int:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + settings.cancel_seconds + _GRACE_SECONDS
    killed = False
    while any(process.poll() is None for process in processes):
        if len(signals) > 1 or time.monotonic() > deadline:
            killed = True
            for process in processes:
                process.kill()
        time.sleep(0.02)
    _log.info("stopped", killed=killed)
    return int(killed)
