"""A picture goes to a server, its class comes back."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import httpx2

_AT_ONCE: Final = 8
_SECONDS: Final = 60.0


class Picture(NamedTuple):
    name: str
    data: bytes


class Answer(NamedTuple):
    class_index: int
    probability: float


def ask(http: httpx2.Client, url: str, picture: Picture) -> Answer | None:
    """None when the server had no good answer."""
    try:
        response = http.post(url, files={"image": (picture.name, picture.data)})
    except httpx2.TransportError:
        return None
    if response.status_code != 200:
        return None
    body: dict[str, Any] = response.json()
    (prediction,) = body.get("predictions", [body])  # epochd answers several pictures at once
    return Answer(prediction["class_index"], prediction["probability"])


def ask_all(url: str, pictures: Sequence[Picture]) -> list[Answer | None]:
    """Several at a time, so that an answer can be to somebody else's picture if a server mixes them up."""
    with httpx2.Client(timeout=_SECONDS) as http, ThreadPoolExecutor(_AT_ONCE) as clients:
        return list(clients.map(lambda picture: ask(http, url, picture), pictures))
