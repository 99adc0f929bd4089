"""Pictures that were made to harm, and those that are merely unusual: each its refusal or its right answer, and the
process that looks at them stays the same, and small.
"""

import io
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.serving import Epochd

MOST_BYTES: Final = 1_000 * 2**20  # resident; a picture of 25 million pixels has 75 MB, and is decoded whole
SHOE: Final = np.zeros((28, 28), dtype=np.uint8)
SHOE[14:22, 3:25] = 180
SHOE[8:14, 3:12] = 120


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def one_bit_bomb() -> bytes:
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + 13_000 // 8)
    return png_of(13_000, 13_000, 1, 0, b"".join([packer.compress(row) for _ in range(13_000)]) + packer.flush())


def gif_of_many_frames() -> bytes:
    frame = encoded(Image.fromarray(SHOE), "GIF")
    start = frame.index(b"\x2c")  # the first image descriptor
    return frame[:start] + frame[start:-1] * 10_000 + b"\x3b"


def text_bomb() -> bytes:
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"!" * 50_000_000, 9))
    whole = encoded(Image.fromarray(SHOE), "PNG")
    return whole[:33] + text + whole[33:]


def refused() -> dict[str, tuple[bytes, int, str]]:
    shoe = Image.fromarray(SHOE)
    jpeg, png = encoded(shoe, "JPEG"), encoded(shoe, "PNG")
    return {
        "13,000 x 13,000 bits": (one_bit_bomb(), 413, "image_too_large"),
        "30,000 x 30,000 in a header": (png_of(30_000, 30_000, 8, 0, b""), 413, "image_too_large"),
        "a cut JPEG": (jpeg[: len(jpeg) // 2], 422, "bad_image"),
        "a cut PNG": (png[: len(png) // 2], 422, "bad_image"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 422, "bad_image"),
        "TIFF": (encoded(shoe, "TIFF"), 422, "bad_image"),
        "EPS": (encoded(shoe, "EPS"), 422, "bad_image"),
        "PSD": (b"8BPS\0\1" + b"\0" * 64, 422, "bad_image"),
        "ICO": (encoded(shoe, "ICO"), 422, "bad_image"),
        "empty": (b"", 400, "invalid_request"),
        "noise": (bytes(range(256)) * 16, 422, "bad_image"),
        "a JPEG's beginning": (b"\xff\xd8\xff\xe0" + b"\0" * 500, 422, "bad_image"),
        "a WebP's beginning": (b"RIFF\x10\0\0\0WEBPVP8 " + b"\0" * 20, 422, "bad_image"),
        "a PNG with a text of 50 MB": (text_bomb(), 422, "bad_image"),
        "a BMP's beginning": (b"BM" + b"\xff" * 60, 422, "bad_image"),
    }


def answered() -> dict[str, bytes]:
    """Each shows the shoe."""
    shoe = Image.fromarray(SHOE)
    colour = Image.merge("RGB", [shoe] * 3)
    palette = shoe.convert("P")
    transparent = Image.merge("RGBA", [shoe, shoe, shoe, Image.new("L", shoe.size, 255)])
    deep = Image.fromarray(SHOE.astype(np.uint16) * 257)
    return {
        "grey PNG": encoded(shoe, "PNG"),
        "colour PNG": encoded(colour, "PNG"),
        "palette PNG with transparency": encoded(palette, "PNG", transparency=255),
        "RGBA PNG": encoded(transparent, "PNG"),
        "16-bit PNG": encoded(deep, "PNG"),
        "BMP": encoded(colour, "BMP"),
        "GIF": encoded(shoe, "GIF"),
        "GIF of 10,000 frames": gif_of_many_frames(),
        "lossless WebP": encoded(colour, "WEBP", lossless=True),
        "JPEG": encoded(shoe, "JPEG", quality=98),
        "CMYK JPEG": encoded(colour.convert("CMYK"), "JPEG", quality=98),
    }


REFUSED: Final = refused()
ANSWERED: Final = answered()


def post(server: Epochd, picture: bytes) -> httpx2.Response:
    return server.http.post("/predict?top_k=10", content=picture, headers={"Content-Type": "image/png"})


def probabilities(server: Epochd, picture: bytes) -> list[float]:
    answer = post(server, picture)
    assert answer.status_code == 200, answer.text
    top = sorted(answer.json()["predictions"][0]["top"], key=lambda guess: int(guess["class_index"]))
    return [guess["probability"] for guess in top]


@pytest.fixture(scope="module")
def predictor(server: Epochd, trained: str) -> Callable[[], None]:
    """To be called afterwards: it is still the same process, and it is small."""
    before = server.predictor_pid()

    def check() -> None:
        assert server.predictor_pid() == before
        status = Path(f"/proc/{before}/status").read_text()
        assert int(status.partition("VmHWM:")[2].split()[0]) * 1024 < MOST_BYTES

    return check


@pytest.mark.parametrize("name", REFUSED)
def test_a_picture_that_was_made_to_harm_is_refused(server: Epochd, predictor: Callable[[], None], name: str) -> None:
    picture, status, code = REFUSED[name]
    answer = post(server, picture)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    predictor()


@pytest.mark.parametrize("name", ANSWERED)
def test_an_unusual_picture_gets_the_answer_of_the_usual_one(
    server: Epochd, predictor: Callable[[], None], name: str
) -> None:
    assert probabilities(server, ANSWERED[name]) == pytest.approx(probabilities(server, ANSWERED["grey PNG"]), abs=0.02)
    predictor()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_on_its_side_is_turned_upright(server: Epochd, orientation: int) -> None:
    turns = {
        1: lambda image: image,
        2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
        4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = turns[orientation](Image.fromarray(SHOE))
    picture = encoded(lying, "JPEG", quality=98, exif=exif)
    assert probabilities(server, picture) == pytest.approx(probabilities(server, ANSWERED["grey PNG"]), abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000), (5_000, 5_000)])
def test_any_size_within_the_limit_is_answered(
    server: Epochd, predictor: Callable[[], None], size: tuple[int, int]
) -> None:
    picture = encoded(Image.new("RGB", size, (90, 120, 30)), "PNG", compress_level=1)
    assert sum(probabilities(server, picture)) == pytest.approx(1, abs=1e-4)
    predictor()


def test_many_large_pictures_at_once_do_not_add_up(server: Epochd, predictor: Callable[[], None]) -> None:
    large = encoded(Image.new("RGB", (5_000, 5_000), (90, 120, 30)), "PNG", compress_level=1)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: post(server, large).status_code, range(8)))
    assert set(statuses) <= {200, 503}
    predictor()
