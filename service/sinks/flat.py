"""A spec as single values, by names with dots: what tools that compare runs by their parameters take."""

import json
from collections.abc import Iterator
from typing import Any, Final

_NOT_OF_TRAINING: Final = frozenset(
    {"name", "labels", "priority", "webhooks"}
)  # the addresses of webhooks may hold secrets

Value = str | int | float | bool


def of_training(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without what leaves the training as it is."""
    return {name: value for name, value in spec.items() if name not in _NOT_OF_TRAINING}


def flattened(spec: dict[str, Any]) -> dict[str, Value]:
    """`{"optimizer": {"lr": 0.1}}` as `{"optimizer.lr": 0.1}`; lists as JSON, nulls left out."""
    return dict(_leaves(of_training(spec)))


def _leaves(part: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for name, value in part.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", json.dumps(value) if isinstance(value, list) else value
