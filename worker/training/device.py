"""Where an attempt computes, and with how many threads."""

import platform

import torch

from worker.jobs.errors import DeviceUnavailable
from worker.jobs.processes import cores


def choose(wanted: str) -> torch.device:
    """The device for a spec's `device`. Raises DeviceUnavailable."""
    if wanted == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda" if wanted == "auto" else wanted)
        if (device.index or 0) < torch.cuda.device_count():
            return device
    if wanted == "auto":
        return torch.device("cpu")
    raise DeviceUnavailable(f"This job asks for {wanted}, which this machine does not have.")


def name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def threads_for(slots: int) -> int:
    """The cores that a job may use when `slots` jobs share the machine; they are part of a result's bits."""
    return max(1, cores() // slots)
