"""The local launcher: each attempt is a process and a session of its own, forked from a preloaded parent.

The parent of the attempts is multiprocessing's forkserver: exec'd, single-threaded, with torch imported and CUDA
untouched. An attempt therefore starts in well under a tenth of a second, and dies alone.
"""

import faulthandler
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

import structlog

from worker.jobs import logs
from worker.jobs.processes import EXIT_BROKEN, EXIT_UNFIT_PARENT, die_with_parent, thread_count
from worker.jobs.settings import Settings

_PRELOAD = "worker.launchers.preload"


class Running:
    """The process of an attempt."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -n when signal n ended it."""
        return self._process.exitcode

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when the process ends."""
        return self._process.sentinel

    def stop(self) -> None:
        """Asks it to leave at the next batch."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class LocalLauncher:
    def __init__(self, settings: Settings) -> None:
        # An attempt needs no key, so it gets none.
        self._settings = settings.model_copy(update={"api_key": None})
        os.environ.pop("EPOCHD_API_KEY", None)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])

    def warm_up(self) -> None:
        """Starts the preloaded parent and waits until it can fork. Raises RuntimeError when it cannot."""
        process = self._context.Process(target=_check_preloaded)
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise RuntimeError("the preloaded process did not start; its log is above") from error
        process.join()
        if process.exitcode != 0:  # the forkserver passes over an ImportError in silence
            raise RuntimeError("the preloaded process could not import torch and the training engine")

    def start(self, job_id: str, attempt: int) -> Running:
        process = self._context.Process(
            target=_attempt, args=(self._settings, job_id, attempt), name=f"epochd attempt {job_id}.{attempt}"
        )
        process.start()
        return Running(process)


def wait_any(running: Iterable[Running], seconds: float) -> None:
    """Returns when one of the processes has ended, at the latest after `seconds`."""
    wait([each.sentinel for each in running], timeout=seconds)


def _check_preloaded() -> None:
    if _PRELOAD not in sys.modules:
        importlib.import_module(_PRELOAD)  # says in the log what is wrong
        raise SystemExit(1)


def _attempt(settings: Settings, job_id: str, attempt: int) -> NoReturn:
    """The whole life of an attempt's process. `os._exit` spares the seconds that torch takes to tear down."""
    from worker.training import attempt as training  # already loaded: forked from the preloaded process

    parent_threads = thread_count(os.getppid())
    os.setsid()
    die_with_parent()
    folder = settings.data_dir / "jobs" / job_id
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / f"attempt-{attempt}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    faulthandler.enable()
    logs.configure("attempt")
    structlog.contextvars.bind_contextvars(job=job_id, attempt=attempt)
    code = EXIT_BROKEN
    try:
        if parent_threads == 1:
            code = training.run(settings, job_id, attempt)
        else:  # this attempt could hang
            structlog.get_logger().error("preloaded_process_has_threads", threads=parent_threads)
            code = EXIT_UNFIT_PARENT
    except BaseException:
        structlog.get_logger().exception("attempt_broke")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
