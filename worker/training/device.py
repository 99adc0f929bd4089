"""Where an attempt computes."""

import platform
from contextlib import suppress
from pathlib import Path

import torch

from worker.jobs.errors import DeviceUnavailable


def choose(wanted: str) -> torch.device:
    """The device for a spec's `device`. Raises DeviceUnavailable."""
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        index = torch.device("cuda" if wanted == "auto" else wanted).index or 0
        if index < torch.cuda.device_count():
            return torch.device("cuda", index)
    if wanted == "auto":
        return torch.device("cpu")
    raise DeviceUnavailable(f"This job asks for {wanted}, which this machine does not have.")


def name(device: torch.device) -> str:
    """The model of the GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def capability(device: torch.device) -> str:
    """Which instructions there are: kernels are chosen by them."""
    if device.type == "cuda":
        return ".".join(map(str, torch.cuda.get_device_capability(device)))
    return torch.backends.cpu.get_cpu_capability()
