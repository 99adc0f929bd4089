"""Where an attempt computes."""

import platform

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
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
