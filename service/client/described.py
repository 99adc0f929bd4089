"""Methods that are made of descriptions of calls, so that the two clients share each one, its types and its words."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

M = TypeVar("M", bound=Callable[..., Any])


def like(describe: Callable[..., Any], method: M, *, without: int = 0) -> M:
    """`method`, under the name and with the words of `describe`; its first parameters are none of the caller's."""
    given = list(inspect.signature(describe).parameters.values())[without:]
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__name__, method.__doc__ = describe.__name__, describe.__doc__
    method.__signature__ = inspect.Signature([itself, *given])  # type: ignore[attr-defined]
    return method
