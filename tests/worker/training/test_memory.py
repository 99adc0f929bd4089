import subprocess
import sys

import pytest
import torch

from worker.training import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_failed_allocations_are_known(error: Exception) -> None:
    assert memory.is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_other_errors_are_not_taken_for_them(error: Exception) -> None:
    assert not memory.is_out_of_memory(error)


_LIMITED = """
import torch
from worker.training import memory
cpu = torch.device("cpu")
memory.limit(cpu, 200)
torch.ones(40 * 2**18)  # 40 MiB
try:
    torch.ones(400 * 2**18)
except RuntimeError as error:
    assert memory.is_out_of_memory(error), error
else:
    raise SystemExit("it fitted")
torch.ones(40 * 2**18)
"""


def test_beyond_the_limit_torchs_allocator_raises_and_recovers() -> None:
    subprocess.run([sys.executable, "-c", _LIMITED], check=True)


def test_the_peak_rises_with_an_allocation_and_can_be_reset() -> None:
    memory.release(CPU)  # another test may have had it kept
    block = torch.ones(64 * 2**18)
    high = memory.peak(CPU)
    del block
    memory.reset_peak(CPU)
    assert memory.peak(CPU) <= high - 32 * 2**20


def test_the_machines_memory_is_some_gigabytes() -> None:
    assert 2**28 < memory.total_bytes() < 2**50
