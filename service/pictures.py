"""The pictures in a prediction's body, which is small enough to be taken apart in memory.

FastAPI's `UploadFile` costs more than a small network's whole answer: it parses in Python, into a temporary file.
"""

from functools import lru_cache
from typing import Final

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive
from worker.jobs.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

MOST: Final = 64  # pictures in one form
_HEADER_BYTES: Final = 4096  # of a part
_USAGE: Final = "Send the picture as a file in the form field `image` (curl: -F image=@shoe.png)."


async def read(receive: Receive, headers: Headers, most_bytes: int) -> bytes:
    """The body of a request. Raises BodyTooLarge, before it is read where the client says its length, and
    ClientDisconnect.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > most_bytes:
        raise BodyTooLarge
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        whole: bytes = message.get("body", b"")
        if len(whole) > most_bytes:
            raise BodyTooLarge
        return whole
    body = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > most_bytes:
            raise BodyTooLarge
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()


def pictures(content_type: str, body: bytes) -> list[bytes]:
    """The pictures' files. Raises InvalidRequest and UnsupportedMediaType."""
    kind, boundary = _kind(content_type)
    if kind == "multipart/form-data":
        images = _parts(body, boundary)
    elif kind.startswith("image/") or kind in ("", "application/octet-stream"):
        images = [body]
    else:
        raise UnsupportedMediaType(
            "Send a form with an `image` file (curl: -F image=@shoe.png), or the picture itself as image/png."
        )
    if not all(images):
        raise InvalidRequest("The picture is empty.")
    return images


def _parts(body: bytes, boundary: bytes) -> list[bytes]:
    """RFC 7578: parts between lines of two hyphens and the boundary, the last of which ends with two hyphens more."""
    if not boundary:
        raise InvalidRequest(f"The form has no boundary. {_USAGE}")
    delimiter = b"\r\n--" + boundary
    at = 0 if body.startswith(delimiter[2:]) else body.find(delimiter) + 2
    if at == 1:
        raise InvalidRequest(f"The form cannot be read. {_USAGE}")
    images: list[bytes] = []
    at += len(delimiter) - 2
    while not body.startswith(b"--", at):
        head = body.find(b"\r\n", at)
        content = body.find(b"\r\n\r\n", at, at + _HEADER_BYTES)
        end = body.find(delimiter, content + 2)
        if body[at:head].strip() or content < 0 or end < 0 or len(images) == MOST:
            too_many = f"A form holds up to {MOST} pictures." if len(images) == MOST else "The form cannot be read."
            raise InvalidRequest(f"{too_many} {_USAGE}")
        if _of_part(body[head:content]) != (b"image", True):
            raise InvalidRequest(_USAGE)
        images.append(body[content + 4 : end])
        at = end + len(delimiter)
    if not images:
        raise InvalidRequest(_USAGE)
    return images


@lru_cache(maxsize=64)
def _kind(content_type: str) -> tuple[str, bytes]:
    kind, options = parse_options_header(content_type)
    return kind.decode("latin-1").strip().lower(), options.get(b"boundary", b"")


@lru_cache(maxsize=256)
def _of_part(headers: bytes) -> tuple[bytes, bool]:
    """The field's name, and whether it is a file."""
    for line in headers.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value.strip())
            return options.get(b"name", b""), b"filename" in options
    return b"", False
