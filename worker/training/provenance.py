"""What a training's bits depend on beside its spec, and where two attempts differ in that."""

import platform
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
import torchvision

from worker.jobs.spec import Spec

from . import device as devices
from .arithmetic import Arithmetic

_COMPUTES: Final = ("device", "device_name", "capability", "threads", "arithmetic", "channels_last")  # and the versions


def of(
    spec: Spec,
    *,
    dataset_sha256: str,
    network: torch.nn.Module,
    device: torch.device,
    arithmetic: Arithmetic,
    channels_last: bool,
) -> dict[str, Any]:
    return {
        "seed": spec.seed,
        "device": str(device),
        "device_name": devices.name(device),
        "capability": devices.capability(device),
        "threads": torch.get_num_threads(),
        "arithmetic": arithmetic,
        "channels_last": channels_last,
        "dataset": {"name": spec.dataset.name, "version": spec.dataset.version, "sha256": dataset_sha256},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What computes otherwise than before, as phrases. What an older epochd did not note does not count."""
    return list(_differences(before, now))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    pairs = [(name.replace("_", " "), before.get(name), now[name]) for name in _COMPUTES]
    versions = before.get("versions", {})
    pairs += [(name, versions.get(name), version) for name, version in now["versions"].items() if name != "python"]
    for name, old, new in pairs:
        if old is not None and old != new:
            yield f"{name} was {old} and is {new}"
