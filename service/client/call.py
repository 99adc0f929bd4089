"""A request as a value: what it says and what its answer means. Who sends it, and how, is somebody else's business."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import quote

if TYPE_CHECKING:
    from .transfers import Receiving

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_REPEATABLE: Final = frozenset({"GET", "PUT", "DELETE"})


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


def segment(text: str) -> str:
    """Part of a path. Whatever it holds, it stays one part."""
    return quote(text, safe="").replace(".", "%2E") if text.strip(".") == "" else quote(text, safe="")
