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
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import structlog

from worker.jobs import logs
from worker.jobs.attempt_logs import training_log
from worker.jobs.processes import EXIT_BROKEN, EXIT_UNFIT_PARENT, Pulse, die_with_parent, thread_count
from worker.jobs.settings import Settings
from worker.jobs.starting import OF_THE_SERVICE

if TYPE_CHECKING:
    from worker.training.arithmetic import Arithmetic

DUMP_STACKS = signal.SIGUSR1
_PRELOAD = "worker.launchers.preload"
_PULSES = 4096  # read at once
_LOOK_SECONDS = 5.0  # a worker looks more often than that


def preparing_log(dataset_id: str, attempt: int) -> str:
    """Where an attempt at a dataset logs, relative to the data folder."""
    return f"datasets/{dataset_id}.attempt-{attempt}.log"


class Running:
    """The process of an attempt."""

    def __init__(self, process: BaseProcess, pulse: Connection) -> None:
        self._process, self._pulse = process, pulse
        os.set_blocking(pulse.fileno(), False)
        self._still, self._looked = 0.0, time.monotonic()
        self._waits = False

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

    def seconds_still(self) -> float:
        """How long nothing has moved in there; 0 while it waits for something that has a time limit of its own.

        Time in which this process did not look does not count: it may have been frozen together with that one.
        """
        now = time.monotonic()
        self._still, self._looked = self._still + min(now - self._looked, _LOOK_SECONDS), now
        with suppress(BlockingIOError):
            while said := os.read(self._pulse.fileno(), _PULSES):
                self._still, self._waits = 0.0, said[-1:] == Pulse.WAITING
        return 0.0 if self._waits else self._still

    def stop(self) -> None:
        """Asks it to leave at the next batch."""
        self._send(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Has it write what each of its threads is doing into its log, even while it hangs in native code."""
        self._send(DUMP_STACKS)

    def kill(self) -> None:
        """Ends it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


class LocalLauncher:
    def __init__(self, settings: Settings) -> None:
        # An attempt needs no secret, so it gets none.
        self._settings = settings.model_copy(update={"api_key": None, "webhook_secret": None, "webhooks": False})  # nosec B105  # none
        for name in OF_THE_SERVICE:
            os.environ.pop(name, None)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([_PRELOAD])
        self.arithmetic = ["highest"]  # until the probe has said

    def warm_up(self) -> None:
        """Starts the preloaded parent, waits until it can fork, and has a child find the fastest exact arithmetic.

        Raises RuntimeError when it cannot.
        """
        ours, theirs = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_check_preloaded, args=(theirs,))
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise RuntimeError("the preloaded process did not start; its log is above") from error
        theirs.close()
        with suppress(EOFError):  # the forkserver passes over an ImportError in silence
            self.arithmetic = ours.recv()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError("the preloaded process could not import torch and the training engine")

    def train(self, job_id: str, attempt: int) -> Running:
        return self._start(_train, job_id, attempt, self.arithmetic)

    def prepare(self, dataset_id: str, attempt: int) -> Running:
        return self._start(_prepare, dataset_id, attempt)

    def _start(self, target: Callable[..., NoReturn], row_id: str, attempt: int, *more: list[str]) -> Running:
        name = f"epochd attempt {row_id}.{attempt}"
        ours, theirs = self._context.Pipe(duplex=False)
        args = (self._settings, row_id, attempt, theirs, *more)
        process = self._context.Process(target=target, args=args, name=name)
        with theirs:
            process.start()
        return Running(process, ours)


def wait_any(running: Iterable[Running], seconds: float) -> None:
    """Returns when one of the processes has ended, at the latest after `seconds`."""
    wait([each.sentinel for each in running], timeout=seconds)


def _check_preloaded(answer: Connection) -> None:
    if _PRELOAD not in sys.modules:
        importlib.import_module(_PRELOAD)  # says in the log what is wrong
        raise SystemExit(1)
    from worker.training import arithmetic

    answer.send(arithmetic.probe())


def _train(settings: Settings, job_id: str, attempt: int, worker: Connection, exact: "list[Arithmetic]") -> NoReturn:
    from worker.training import attempt as training  # already loaded: forked from the preloaded process

    os.set_blocking(worker.fileno(), False)
    structlog.contextvars.bind_contextvars(job=job_id, attempt=attempt)
    run = partial(training.run, exact=exact, pulse=partial(_send_pulse, worker))
    _live(run, settings, job_id, attempt, settings.data_dir / training_log(job_id, attempt))


def _send_pulse(worker: Connection, pulse: Pulse) -> None:
    """A worker that does not listen, or is gone, is no reason to wait."""
    with suppress(BlockingIOError, BrokenPipeError):
        os.write(worker.fileno(), pulse.value)


def _prepare(settings: Settings, dataset_id: str, attempt: int, worker: Connection) -> NoReturn:
    from worker.datasets import attempt as preparing

    worker.close()  # it watches its own progress
    structlog.contextvars.bind_contextvars(dataset=dataset_id, attempt=attempt)
    _live(preparing.run, settings, dataset_id, attempt, settings.data_dir / preparing_log(dataset_id, attempt))


def _live(
    run: Callable[[Settings, str, int], int], settings: Settings, row_id: str, attempt: int, log: Path
) -> NoReturn:
    """The whole life of an attempt's process. `os._exit` spares the seconds that torch takes to tear down."""
    parent_threads = thread_count(os.getppid())
    os.setsid()
    die_with_parent()
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, sys.stdout.fileno())
    os.dup2(descriptor, sys.stderr.fileno())
    faulthandler.enable()
    faulthandler.register(DUMP_STACKS)
    logs.configure("attempt")
    code = EXIT_BROKEN
    try:
        if parent_threads == 1:
            code = run(settings, row_id, attempt)
        else:  # this attempt could hang
            structlog.get_logger().error("preloaded_process_has_threads", threads=parent_threads)
            code = EXIT_UNFIT_PARENT
    except BaseException:
        structlog.get_logger().exception("attempt_broke")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
