"""What a process may know and do about itself and its parent. Linux; elsewhere these are no-ops."""

import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Has the kernel send `how` to this process when the thread that started it ends (prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def thread_count(pid: int | str) -> int:
    """How many threads the process has, those of native libraries included; 1 where this cannot be told."""
    tasks = Path(f"/proc/{pid}/task")
    return len(list(tasks.iterdir())) if tasks.exists() else 1
