"""What a process may know and do about itself and its parent, and the exit codes of an attempt's process."""

import ctypes
import os
import resource
import signal
import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

EXIT_DONE: Final = 0  # the job's row says how it ended
EXIT_STALE: Final = 1  # somebody else owns the job now
EXIT_BROKEN: Final = 70  # an error that even the attempt's own handlers did not expect (EX_SOFTWARE)
EXIT_UNFIT_PARENT: Final = 71  # forked from a process that must not fork; the job was not touched (EX_OSERR)
EXIT_STOPPED: Final = 75  # stopped by request; can go on (EX_TEMPFAIL)


class Pulse(bytes, Enum):
    """What an attempt's process tells its worker."""

    MOVED = b"."
    WAITING = b"-"  # for something with a time limit of its own: silence is no sign until it moves again


class Stopped(BaseException):
    """An attempt was asked to stop; its worker knows why. Not an error, so no `except Exception` takes it."""


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Has the kernel send `how` to this process when the thread that started it ends (prctl(2)). Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def adopt_orphans() -> None:
    """Processes that lose the parent between them and this one become its children. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def name_process(name: str) -> None:
    """What `ps` and `top` call it: up to 15 letters. One that was forked has its parent's command line. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def set_niceness(pid: int, niceness: int) -> None:
    """Of the leader of a session, and of its session: where sessions have a share of the processor each, as Linux has
    it outside containers, a process's own only counts inside its session (sched(7)).

    To go back to a lower one takes a right that few have; without it nothing happens.
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))


def limit_memory(extra_bytes: int) -> None:
    """Has every allocation fail that would map more than this on top of what is mapped now. Linux only."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + extra_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(pid: int | str) -> int:
    """How many threads the process has, those of native libraries included; 1 where this cannot be told."""
    tasks = Path(f"/proc/{pid}/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 1
