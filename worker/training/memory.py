"""Memory: limiting it, measuring its peak, and knowing an error that means there was not enough."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_CGROUP_MAX, _CGROUP_CURRENT = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
_RESET_PEAK: Final = "5"  # proc(5)
_STACKS_BYTES: Final = 16 * 2**20  # of a thread: its stack and its part of malloc's heap, which are no training's
_KEEP_FREED: Final = (
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: the heap does not shrink
    (-2, 64 * 2**20),  # M_TOP_PAD: and grows in large steps
    (-3, 2**30),  # M_MMAP_THRESHOLD: pieces up to this come from the heap; mallopt(3)
)
_GIVE_BACK: Final = ((-3, 2**20), (-1, 2**20), (-2, 0))  # or a freed tensor would still count as in use
_SIGNS: Final = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, without saying why
    "status_alloc_failed",  # cuBLAS and cuDNN
    "could not create a memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, as Python, torch's allocators and oneDNN say so."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def limit(device: torch.device, mebibytes: int | None) -> None:
    """Has allocations fail beyond so much more than what is in use now. Linux or CUDA.

    None: beyond what the machine has left. Linux promises more than it has, and kills who takes it.
    """
    if device.type == "cuda":
        if mebibytes is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, mebibytes * 2**20 / total), device)
    elif sys.platform == "linux":
        wanted = available_bytes() if mebibytes is None else mebibytes * 2**20
        used = _status_bytes("VmData")
        stacks = _STACKS_BYTES * (torch.get_num_threads() + 1)
        if mebibytes is not None:
            _tune_malloc(_GIVE_BACK)
        resource.setrlimit(resource.RLIMIT_DATA, (used + stacks + wanted, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def keep_freed() -> None:
    """Has malloc keep what is freed, up to a GiB a piece, for the next step, which will want just as much.

    By itself glibc gives large pieces back to the kernel and gets them anew, zeroed page by page, at every step: that
    costs a convolutional network a third of its time. Does nothing where there is no glibc.
    """
    _tune_malloc(_KEEP_FREED)


def trim() -> None:
    """Gives back what is free now, wherever it lies."""
    _tune_malloc(())


def reset_peak(device: torch.device) -> None:
    """`peak` counts from here, where the system can forget the peak before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        try:
            _CLEAR.write_text(_RESET_PEAK)
        except OSError:  # a container may forbid it: then it is the peak of the whole process
            return


def peak(device: torch.device) -> int:
    """Bytes: of this process on the CPU, of its tensors on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():
        return _status_bytes("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts in bytes


def total_bytes() -> int:
    """What this machine has, or what the container may take of it (cgroup v2)."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no such limit, or the word "max"
        return min(physical, int(_CGROUP_MAX.read_text()))
    return physical


def available_bytes() -> int:
    """What is left of it (Linux)."""
    left = total_bytes()
    with suppress(OSError, ValueError):
        left -= int(_CGROUP_CURRENT.read_text())
    lines = _MEMINFO.read_text().splitlines()
    (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return min(left, free)


def release(device: torch.device) -> None:
    """Gives back what is kept for later, now and from now on, so that smaller pieces find room."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        _tune_malloc(_GIVE_BACK)


def _tune_malloc(parameters: Iterable[tuple[int, int]]) -> None:
    """mallopt(3), and malloc_trim(3)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in parameters:
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)
