"""The processor threads of a training."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from worker.jobs.processes import cores

_TASKS = Path("/proc/self/task")
_ELEMENTS = 2**20  # enough that torch divides the work


def use(threads: int) -> None:
    """Computes with so many threads from now on. Those of a job that has all cores get one each.

    They wait for each other, several thousand times a second, and spin meanwhile. Beside other processes the kernel
    now and then puts two of them on one core, where one spins while the other should work: a training then takes ten
    times as long.
    """
    torch.set_num_threads(threads)
    if threads == 1 or threads != cores() or not _TASKS.exists():
        return
    before = _threads()
    torch.zeros(_ELEMENTS).add_(1)  # has the others started
    ours = [os.getpid(), *sorted(_threads() - before)]
    if len(ours) != threads:  # started before, or by somebody else: who is who cannot be told
        return
    for thread, core in zip(ours, sorted(os.sched_getaffinity(0)), strict=True):
        with suppress(OSError):
            os.sched_setaffinity(thread, {core})


def _threads() -> set[int]:
    return {int(each.name) for each in _TASKS.iterdir()}
