"""A request as a value: what it says and what its answer means. Who sends it, and how, is somebody else's business."""

import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from .transfers import Receiving

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Not DELETE: between two of them a name may have come to mean something else, and also somebody else's.
_REPEATABLE: Final = frozenset({"GET", "PUT"})


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    content: bytes


class Pause(NamedTuple):
    seconds: float


@dataclass(frozen=True)
class Call(Generic[T_co]):
    method: str
    path: str
    parse: Callable[[Answer], T_co]
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)  # of the request, as httpx2 names it: json, files, headers
    may_repeat: bool = False  # also where the method alone does not say so
    waits: float = 0.0  # seconds that the service may take over this one, beyond what it may take over any
    into: "Receiving | None" = None  # where the body goes, if not into memory

    @property
    def is_repeatable(self) -> bool:
        """Whether to send it twice is the same as to send it once."""
        return self.may_repeat or self.method in _REPEATABLE

    def request(self, timeout: float) -> dict[str, Any]:
        """What httpx2 is to send."""
        params = {name: value for name, value in self.params.items() if value is not None}
        return {
            "method": self.method,
            "url": self.path,
            "params": params or None,
            "timeout": timeout + self.waits,
            **self.more,
        }


Flow = Generator[Call[Any] | Pause, Any, T]
"""Calls that follow from one another: yields what is to be done, is sent each answer, and returns what came of it."""


def idempotent(key: str | None) -> dict[str, str]:
    """The header by which the service knows a request again; unset: of a key of its own. Raises ValueError."""
    if key is not None and not (key.strip() and key.isascii() and key.isprintable()):
        raise ValueError("An idempotency key is of letters, digits and signs of ASCII: choose another one.")
    return {"Idempotency-Key": key or f"client-{uuid.uuid4().hex}"}


def segment(text: str) -> str:
    """Part of a path. Whatever it holds, it stays one part."""
    return quote(text, safe="").replace(".", "%2E") if text.strip(".") == "" else quote(text, safe="")
