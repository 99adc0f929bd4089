"""The state of torch's own generators, which dropout draws from."""

from collections.abc import Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor | None]


def state(device: torch.device) -> State:
    """Of the CPU, and of the GPU where that computes."""
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_state(state: State, device: torch.device) -> None:
    assert state["cpu"] is not None
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
