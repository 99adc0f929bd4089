"""Receiving an upload: a form whose file is streamed to disk, never into memory, and that leaves nothing when it
breaks off.
"""

import fcntl
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Generic, Protocol, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from worker.jobs.archives import HEAD_BYTES, kind_of
from worker.jobs.errors import BadArchive, InvalidRequest
from worker.jobs.files import require_space, told_when_full

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ARCHIVE, FORM = "archive", "dataset"  # the parts of the form
FORM_BYTES = 64 * 2**10
_BUFFER_BYTES = 2**20
_USAGE = (
    f"Send a form with the file `{ARCHIVE}` and the JSON text `{FORM}` "
    f"""(curl: -F {ARCHIVE}=@shoes.zip -F '{FORM}={{"name": "shoes"}}')."""
)


@asynccontextmanager
async def received(
    request: Request, path: Path, validate: Callable[[bytes], T], *, spare_bytes: int
) -> AsyncIterator[T]:
    """Streams the form's archive to `path`, and gives what `validate` makes of the form's text, as soon as each can be
    judged. The block moves the file away, or it goes.

    Raises InvalidRequest, BadArchive, DiskFull, and what `validate` raises.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with told_when_full(), path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the sweep takes one that nobody holds
            _, options = parse_options_header(request.headers.get("content-type"))
            boundary = options.get(b"boundary", b"")
            form = await _receive(request, _Form(boundary, file, validate, spare_bytes=spare_bytes))
            assert form is not None  # every part was there
            yield form
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read. {_USAGE}") from error
    except ClientDisconnect as error:
        raise InvalidRequest("The upload broke off.") from error
    finally:
        path.unlink(missing_ok=True)


@asynccontextmanager
async def received_file(request: Request, path: Path, field: str, *, spare_bytes: int) -> AsyncIterator[None]:
    """Streams one archive to `path`: the form's only file, or the body as it is. It goes with the block.

    Raises InvalidRequest, BadArchive and DiskFull.
    """
    usage = f"Send the file as the body, or in the form field `{field}` (curl: -F {field}=@file.zip)."
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with told_when_full(), path.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # the sweep takes one that nobody holds
            kind, options = parse_options_header(request.headers.get("content-type"))
            if kind == b"multipart/form-data":
                boundary = options.get(b"boundary", b"")
                form: _Form[None] = _Form(boundary, file, None, file_field=field, usage=usage, spare_bytes=spare_bytes)
                await _receive(request, form)
            else:
                await _receive(request, _Raw(file, usage, spare_bytes=spare_bytes))
            yield
    except FormParserError as error:
        raise InvalidRequest(f"The form cannot be read. {usage}") from error
    except ClientDisconnect as error:
        raise InvalidRequest("The upload broke off.") from error
    finally:
        path.unlink(missing_ok=True)


class _Receiver(Protocol[T_co]):
    def feed(self, data: bytes) -> None: ...

    def end(self) -> T_co: ...


async def _receive(request: Request, form: _Receiver[T]) -> T:
    waiting = bytearray()
    async for chunk in request.stream():
        waiting += chunk
        if len(waiting) >= _BUFFER_BYTES:  # the disk may take its time: not in the event loop's
            await run_in_threadpool(form.feed, bytes(waiting))
            waiting.clear()
    await run_in_threadpool(form.feed, bytes(waiting))
    return await run_in_threadpool(form.end)


class _Form(Generic[T]):
    """Takes a multipart body apart as it comes."""

    def __init__(
        self,
        boundary: bytes,
        file: IO[bytes],
        validate: Callable[[bytes], T] | None,
        *,
        file_field: str = ARCHIVE,
        usage: str = _USAGE,
        spare_bytes: int,
    ) -> None:
        """`validate`: what is made of the form's text; None where the form has only the file."""
        self._spare_bytes, self._file_field, self._usage = spare_bytes, file_field, usage
        self._wanted = {file_field, FORM} if validate else {file_field}
        if not boundary:
            raise InvalidRequest(f"The form has no boundary. {usage}")
        self._file, self._validate = file, validate
        self._head = bytearray()  # of the archive
        self._text = bytearray()
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._part = ""
        self._seen: list[str] = []
        self._form: T | None = None
        self._parser = MultipartParser(
            boundary,
            {
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": lambda: self._seen.append("end"),
            },
        )

    def feed(self, data: bytes) -> None:
        require_space(Path(self._file.name).parent, self._spare_bytes)
        self._parser.write(data)

    def end(self) -> T | None:
        """What was made of the form's text. What was received is on the disk from now on."""
        self._parser.finalize()
        if sorted(self._seen) != sorted({*self._wanted, "end"}):
            raise InvalidRequest(self._usage)
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._form

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part, self._disposition = options.get(b"name", b"").decode("latin-1"), b""
        if self._part not in self._wanted or self._part in self._seen:
            raise InvalidRequest(self._usage)
        self._seen.append(self._part)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self._file_field:
            if len(self._head) < HEAD_BYTES:
                self._head += data[start:end][:HEAD_BYTES]
                if len(self._head) >= HEAD_BYTES:
                    self._judge_archive()
            _write(self._file, data[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > FORM_BYTES:
            raise InvalidRequest(f"The form's text is longer than {FORM_BYTES} bytes.")

    def _on_part_end(self) -> None:
        if self._part != self._file_field:
            assert self._validate is not None
            self._form = self._validate(bytes(self._text))
        else:
            self._judge_archive()

    def _judge_archive(self) -> None:
        if kind_of(bytes(self._head)) is None:
            raise BadArchive


class _Raw:
    """Takes the body as it comes."""

    def __init__(self, file: IO[bytes], usage: str, *, spare_bytes: int) -> None:
        self._file, self._usage, self._spare_bytes = file, usage, spare_bytes
        self._head = b""

    def feed(self, data: bytes) -> None:
        require_space(Path(self._file.name).parent, self._spare_bytes)
        if len(self._head) < HEAD_BYTES:
            self._head += data[: HEAD_BYTES - len(self._head)]
            if len(self._head) == HEAD_BYTES and kind_of(self._head) is None:
                raise BadArchive
        _write(self._file, data)

    def end(self) -> None:
        if not self._head:
            raise InvalidRequest(self._usage)
        if kind_of(self._head) is None:
            raise BadArchive
        self._file.flush()


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
