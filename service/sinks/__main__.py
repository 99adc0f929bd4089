"""`python -m service.sinks`: writes metrics into the sinks that EPOCHD_SINKS names, in the foreground."""

import contextvars
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from typing import IO, Final
from urllib.parse import urlsplit

import structlog
from worker.jobs import logs
from worker.jobs.processes import set_niceness
from worker.jobs.starting import EXIT_SETTINGS, leave, open_database, read_settings

from .pump import Pump
from .sink import missing, opened

_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_LEAVE_SECONDS: Final = 0.5  # for what is being written
_LOCK: Final = "sinks.lock"
_NICENESS: Final = 10  # whoever trains or answers comes first
_log = structlog.get_logger()


def main() -> None:
    logs.configure("sinks")
    logging.captureWarnings(capture=True)  # a library's own are lines of the log
    settings = read_settings()
    if not settings.sinks:
        leave(EXIT_SETTINGS, "EPOCHD_SINKS names no sink: set it to some of csv, tensorboard, mlflow.")
    if sentences := missing(settings.sinks):
        leave(EXIT_SETTINGS, *sentences)
    if password := urlsplit(settings.mlflow_tracking_uri or "").password:
        logs.hide(password)
    db = open_database(settings)
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # libraries would load it because it is there
    if os.getsid(0) == os.getpid():  # else others would be made to wait too
        set_niceness(os.getpid(), _NICENESS)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # in all threads: this one takes them below
    with (settings.data_dir / _LOCK).open("wb") as lock:
        if not _locked(lock):
            return
        stop = threading.Event()
        pumps = [Pump(kind, db, partial(opened, kind, settings)) for kind in dict.fromkeys(settings.sinks)]
        threads = [_started(pump, stop) for pump in pumps]
        _log.info(
            "sinks_started", sinks=[str(kind) for kind in settings.sinks], folder=str(settings.resolved_sinks_dir)
        )
        signal.sigwait(_SIGNALS)
        stop.set()
        deadline = time.monotonic() + _LEAVE_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        _log.info("sinks_stopped", whole=not any(thread.is_alive() for thread in threads))
        sys.stderr.flush()
        os._exit(0)  # a library that waits for its server would keep us; whatever is not recorded is written again


def _started(pump: Pump, stop: threading.Event) -> threading.Thread:
    """With what the lines of this process's log have in common."""
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(pump.run, stop), daemon=True)
    thread.start()
    return thread


def _locked(lock: IO[bytes]) -> bool:
    """Whether this is the only one beside this data folder; waits for another one to leave. False: told to stop."""
    said = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not said:
                _log.warning("sinks_wait", reason="another process writes them already")
                said = True
            if signal.sigtimedwait(_SIGNALS, 0.5) is not None:
                return False
        else:
            return True


if __name__ == "__main__":
    main()
