"""Patches of a spec: JSON Merge Patch (RFC 7396), by which null goes back to the default."""

from typing import Any

Patch = dict[str, Any]

# The result is that of the training so far gone on with, up to rounding: none of it has to be thrown away.
_KEEPS_WHAT_IS_TRAINED = {"accumulation", "memory_limit_mb", "checkpoints", "device"}


def patched(spec: dict[str, Any], patch: Patch) -> dict[str, Any]:
    """Neither is modified."""
    result = dict(spec)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict):
            was = result.get(name)
            result[name] = patched(was if isinstance(was, dict) else {}, value)
        else:
            result[name] = value
    return result


def keeps_training(patch: Patch) -> bool:
    """Whether a training can go on from its checkpoints with the patched spec, or has to begin anew."""
    return patch.keys() <= _KEEPS_WHAT_IS_TRAINED
