"""The form parser of predictions, with what clients send, what they might, and what only a harmful one would.

`python_multipart`, which FastAPI uses everywhere else, is the oracle: what both take means the same to both.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message

from service import pictures
from worker.jobs.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

BOUNDARY: Final = b"Edge"
DELIMITER: Final = b"\r\n--" + BOUNDARY
TYPE: Final = "multipart/form-data; boundary=Edge"
DISPOSITION: Final = b'Content-Disposition: form-data; name="image"; filename="shoe.png"'

PIECES: Final = (
    b"\r\n",
    b"\r",
    b"\n",
    b"--",
    b"-",
    BOUNDARY,
    b"--" + BOUNDARY,
    DELIMITER[:-1],
    b"\r\n\r\n",
    b"\0",
    b" ",
)
# What is nearly a boundary, and everything else.
any_bytes = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12).map(b"".join)
any_picture = any_bytes.filter(lambda data: len(data) > 0 and DELIMITER not in b"\r\n" + data)
any_pictures = st.lists(any_picture, min_size=1, max_size=5)
any_file_name = st.text(min_size=1, max_size=12)
any_header = st.sampled_from(
    (b"Content-Type: image/png", b"content-transfer-encoding:binary", b"X-Boundary: --" + BOUNDARY, b"X-Empty:")
)


@dataclass
class Form:
    """How a form may be written down, beside its pictures."""

    preamble: bytes = b""
    epilogue: bytes = b"\r\n"
    padding: bytes = b""  # behind a boundary
    before: list[bytes] = field(default_factory=list)  # lines beside a part's Content-Disposition
    after: list[bytes] = field(default_factory=list)
    disposition: bytes = DISPOSITION

    def written(self, contents: Sequence[bytes]) -> bytes:
        head = b"\r\n".join([*self.before, self.disposition, *self.after])
        parts = [DELIMITER + self.padding + b"\r\n" + head + b"\r\n\r\n" + each for each in contents]
        body = b"".join([*parts, DELIMITER, b"--", self.epilogue])
        return self.preamble + body if self.preamble else body[2:]


any_form = st.builds(
    Form,
    preamble=st.sampled_from((b"", b"\r\n", b"This is a form.", b"--", b"\r\n\r\n--Edg", b"see --Edge in a line")),
    epilogue=any_bytes | st.just(b"\r\n"),
    padding=st.sampled_from((b"", b" ", b"\t  ")),
    before=st.lists(any_header, max_size=2),
    after=st.lists(any_header, max_size=2),
    disposition=st.sampled_from(
        (
            DISPOSITION,
            b"content-disposition:form-data;name=image;filename=shoe.png",
            b'Content-Disposition: form-data; filename=""; name="image"',
            b'Content-Disposition: form-data; name="image"; filename="a; name=\\"label\\".png"',
            b'Content-Disposition: form-data; name="image"; filename="x"; filename*=UTF-8\'\'%E2%82%AC',
        )
    ),
)


def test_a_form_by_a_client_gives_its_pictures() -> None:
    files = [("image", ("shoe.png", b"one", "image/png")), ("image", ("shoe.png", b"two", "image/png"))]
    request = httpx2.Request("POST", "http://epochd/predict", files=files)
    assert pictures.pictures(request.headers["Content-Type"], request.read()) == [b"one", b"two"]


@given(contents=any_pictures, names=st.lists(any_file_name, min_size=5, max_size=5))
def test_what_a_client_puts_into_a_form_comes_out_of_it(contents: list[bytes], names: list[str]) -> None:
    files = [("image", (name, each, "image/png")) for name, each in zip(names, contents, strict=False)]
    headers = {"Content-Type": 'multipart/form-data; charset=utf-8; boundary="Edge"'}
    request = httpx2.Request("POST", "http://epochd/predict", files=files, headers=headers)
    assert pictures.pictures(request.headers["Content-Type"], request.read()) == contents


@given(contents=any_pictures, form=any_form)
def test_however_a_form_is_written_its_pictures_come_out_of_it(contents: list[bytes], form: Form) -> None:
    assert pictures.pictures(TYPE, form.written(contents)) == contents


@pytest.mark.parametrize(
    ("said", "boundary"),
    [
        ("multipart/form-data; boundary=Edge", b"Edge"),
        ('Multipart/Form-Data;boundary="Edge"', b"Edge"),
        ('multipart/form-data; charset="a;b"; Boundary="Edge" ; x=y', b"Edge"),
        ('multipart/form-data; boundary="two words: (a)/b=?"', b"two words: (a)/b=?"),
        (r'multipart/form-data; boundary="a\"b"', b'a"b'),
        (
            "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        ("multipart/form-data; boundary=--", b"--"),
        ("multipart/form-data; boundary=" + "x" * 256, b"x" * 256),
    ],
)
def test_a_boundary_may_be_quoted(said: str, boundary: bytes) -> None:
    body = Form().written([b"--not yet\r\n--"]).replace(BOUNDARY, boundary)
    assert pictures.pictures(said, body) == [b"--not yet\r\n--"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--Edge",
        b"--Edge--",
        b"--Edge--\r\n",
        b"--Edge\r\n",
        b"--Edge\r\n\r\n",
        b"--Edge\r\n\r\nno headers\r\n--Edge--\r\n",
        b"--Edge\r\n" + DISPOSITION,
        b"--Edge\r\n" + DISPOSITION + b"\r\n\r\n",
        b"--Edge\r\n" + DISPOSITION + b"\r\n\r\ncut",
        b"--Edge\r\n" + DISPOSITION + b"\r\n\r\ncut\r\n--Edge",
        b"--Edge\r\n" + DISPOSITION + b"\r\n\r\ncut\r\n--Edge\r\n",
        b"--Edge\r\n" + DISPOSITION + b"\r\n\r\n\r\n--Edge--\r\n",
        b"--Edge\r\n" + DISPOSITION + b"\r\n--Edge--\r\n",
        b"--Edge\r\n" + DISPOSITION + b"\r\nX: " + b"x" * 5000 + b"\r\n\r\nlate\r\n--Edge--\r\n",
        b"--Edge and more\r\n" + DISPOSITION + b"\r\n\r\nother\r\n--Edge--\r\n",
        b"--Other\r\n" + DISPOSITION + b"\r\n\r\nother\r\n--Other--\r\n",
        b"--edge\r\n" + DISPOSITION + b"\r\n\r\nother\r\n--edge--\r\n",
        Form().written([b"lines that end with a line feed alone"]).replace(b"\r\n", b"\n"),
        Form().written([b"a picture", b""]),
        Form(disposition=b'Content-Disposition: form-data; name="image"').written([b"a text"]),
        Form(disposition=b'Content-Disposition: form-data; name="picture"; filename="x"').written([b"other"]),
        Form(disposition=b"Content-Disposition: form-data; name*=UTF-8''image; filename=x").written([b"other"]),
        Form(disposition=b"Content-Type: image/png").written([b"other"]),
        Form().written([b"x"] * 65),
    ],
)
def test_a_form_without_a_whole_picture_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        pictures.pictures(TYPE, body)


@given(contents=any_pictures, form=any_form, at=st.integers(0, 999), cut=st.integers(0, 30), put=any_bytes)
@example(contents=[b"x"], form=Form(), at=0, cut=0, put=b"\r\n")
def test_a_form_that_was_tampered_with_means_what_it_means_elsewhere_or_is_refused(
    contents: list[bytes], form: Form, at: int, cut: int, put: bytes
) -> None:
    body = form.written(contents)
    at %= len(body)
    body = body[:at] + put + body[at + cut :]
    try:
        found = pictures.pictures(TYPE, body)
    except InvalidRequest:
        return
    assert all(found)
    if body.startswith(DELIMITER[2:]):  # it takes a single CR or LF before the first boundary for the end of a line
        assert by_python_multipart(body) in (None, found)


@given(
    kind=st.text(st.characters(max_codepoint=255), max_size=60) | st.sampled_from((TYPE, "image/png")), body=any_bytes
)
def test_nothing_that_is_sent_causes_an_error_of_ours(kind: str, body: bytes) -> None:
    try:
        found = pictures.pictures(kind, body)
    except (InvalidRequest, UnsupportedMediaType):
        return
    assert all(found)


def by_python_multipart(body: bytes) -> list[bytes] | None:
    """The contents of all parts. None where it refuses the form, or finds no end."""
    found: list[bytearray] = []
    headers: list[dict[bytes, bytes]] = []
    ended, name, value = [], bytearray(), bytearray()

    def on_header_end() -> None:
        headers[-1][bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def on_part_begin() -> None:
        found.append(bytearray())
        headers.append({})

    callbacks: Any = {
        "on_part_begin": on_part_begin,
        "on_part_data": lambda data, start, end: found[-1].extend(data[start:end]),
        "on_header_field": lambda data, start, end: name.extend(data[start:end]),
        "on_header_value": lambda data, start, end: value.extend(data[start:end]),
        "on_header_end": on_header_end,
        "on_end": lambda: ended.append(True),
    }
    try:
        parser = MultipartParser(BOUNDARY, callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError:
        return None
    if not ended:
        return None
    for each in headers:
        _, options = parse_options_header(each.get(b"content-disposition"))
        assert (options.get(b"name"), b"filename" in options) == (b"image", True)
    return [bytes(each) for each in found]


def received(*chunks: bytes, headers: dict[str, str] | None = None, most: int = 1000, leaves: bool = False) -> bytes:
    """The body that comes in these chunks."""
    messages: list[Message] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    if leaves:
        messages.append({"type": "http.disconnect"})
    else:
        messages[-1]["more_body"] = False

    async def receive() -> Message:
        return messages.pop(0)

    return asyncio.run(pictures.read(receive, Headers(headers or {}), most))


@given(chunks=st.lists(st.binary(max_size=300), min_size=1, max_size=8))
def test_a_body_comes_in_any_chunks(chunks: list[bytes]) -> None:
    body = b"".join(chunks)
    assert received(*chunks, most=len(body)) == body
    if body:
        with pytest.raises(BodyTooLarge):
            received(*chunks, most=len(body) - 1)


@pytest.mark.parametrize("chunks", [(), (b"",), (b"half", b"")])
def test_a_client_that_leaves_has_sent_nothing(chunks: tuple[bytes, ...]) -> None:
    with pytest.raises(ClientDisconnect):
        received(*chunks, leaves=True)


@pytest.mark.parametrize("length", ["", "-1", "1e9", "x", "\u00b2", "5"])
def test_a_length_that_is_none_is_found_out(length: str) -> None:
    assert received(b"three", headers={"Content-Length": length}) == b"three"


def test_a_length_that_is_too_large_is_refused_before_anything_comes() -> None:
    async def receive() -> Message:
        raise AssertionError("nothing was to be read")

    with pytest.raises(BodyTooLarge):
        asyncio.run(pictures.read(receive, Headers({"Content-Length": "1001"}), 1000))
