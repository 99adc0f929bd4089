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

MOST_BYTES: Final = 1_400 * 2**20  # for a moment; 25 million pixels have 75 MB, and a WebP is decoded in four copies
KEPT_BYTES: Final = 700 * 2**20  # afterwards; torch itself has 470
SHOE: Final = np.zeros((28, 28), dtype=np.uint8)
SHOE[14:22, 3:25] = 170  # what 2 bits and 4 bits can say, too
SHOE[8:14, 3:12] = 85
SIDE: Final = 5_000  # of the largest picture that is accepted
MAGIC: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"GIF87a", b"BM", b"RIFF\x10\0\0\0WEBPVP8 ")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def lines(pixels: "np.ndarray[Any, Any]", bits: int = 8) -> bytes:
    """The contents of a PNG: each row behind the number of its filter, packed."""
    numbers = pixels.reshape(len(pixels), -1)
    if bits == 16:
        packed = [row.astype(">u2").tobytes() for row in numbers]
    else:
        each = np.unpackbits(numbers[..., None] << np.uint8(8 - bits), axis=-1, count=bits)
        packed = [np.packbits(row).tobytes() for row in each.reshape(len(pixels), -1)]
    return zlib.compress(b"".join([b"\0" + row for row in packed]))


def even_png(side: int, bits: int, colour: int, bits_of_pixel: int, *extra: bytes) -> bytes:
    """All of it has one colour, so that it is small."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\x80" * -(-side * bits_of_pixel // 8)
    rows = b"".join([packer.compress(row) for _ in range(side)]) + packer.flush()
    whole = png_of(side, side, bits, colour, rows)
    return whole[:33] + b"".join(extra) + whole[33:]


def one_bit_bomb() -> bytes:
    return even_png(13_000, 1, 0, 1)


def gif_of_many_frames() -> bytes:
    frame = encoded(Image.fromarray(SHOE), "GIF")
    start = frame.index(b"\x2c")  # the first image descriptor
    return frame[:start] + frame[start:-1] * 10_000 + b"\x3b"


def text_bomb(kind: bytes, at: int = 33) -> bytes:
    """`at`: 33 is behind the header, -12 before the end."""
    contents = zlib.compress(b"!" * 50_000_000, 9)
    before = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"Profile\0\0"}[kind]
    whole = encoded(Image.fromarray(SHOE), "PNG")
    return whole[:at] + chunk(kind, before + contents) + whole[at:]


def jpeg_of_many_scans() -> bytes:
    """Decoding it takes as long as decoding 5,000 pictures of its size."""
    jpeg = encoded(Image.new("L", (2_000, 2_000), 128), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * 5_000 + jpeg[-2:]


def webp_of(width: int, height: int) -> bytes:
    """An animation of a shoe in the corner of a canvas, which alone says how large the picture is."""
    frame = encoded(Image.fromarray(SHOE).convert("RGB"), "WEBP", lossless=True)[12:]
    place = bytes(6) + (27).to_bytes(3, "little") * 2 + (100).to_bytes(3, "little") + b"\0"
    canvas = b"\x12" + bytes(3) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    parts = [(b"VP8X", canvas), (b"ANIM", bytes(6)), (b"ANMF", place + frame)]
    body = b"".join([name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in parts])
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def patched(data: bytes, at: int, put: bytes) -> bytes:
    return data[:at] + put + data[at + len(put) :]


def refused() -> dict[str, tuple[bytes, int, str]]:
    shoe = Image.fromarray(SHOE)
    jpeg, png, gif = encoded(shoe, "JPEG"), encoded(shoe, "PNG"), encoded(shoe, "GIF")
    bmp = encoded(Image.merge("RGB", [shoe] * 3), "BMP")
    wide_frame = struct.pack("<HH", 60_000, 60_000)
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
        "a PNG with a text of 50 MB": (text_bomb(b"zTXt"), 422, "bad_image"),
        "a PNG with a text of 50 MB behind its pixels": (text_bomb(b"zTXt", -12), 422, "bad_image"),
        "a PNG with an international text of 50 MB": (text_bomb(b"iTXt"), 422, "bad_image"),
        "a PNG with a colour profile of 50 MB": (text_bomb(b"iCCP"), 422, "bad_image"),
        "a PNG that has fewer pixels than it says": (png_of(5_000, 5_000, 8, 0, lines(SHOE)), 422, "bad_image"),
        "a PNG without pixels": (png_of(28, 28, 8, 2, zlib.compress(b"")), 422, "bad_image"),
        "a PNG with an unknown filter": (png_of(28, 28, 8, 0, zlib.compress(b"\x09" * 29 * 28)), 422, "bad_image"),
        "a PNG of 0 x 0": (png_of(0, 0, 8, 0, zlib.compress(b"")), 422, "bad_image"),
        "a PNG whose width is negative": (png_of(2**31 + 28, 28, 8, 0, lines(SHOE)), 413, "image_too_large"),
        "a JPEG of many scans": (jpeg_of_many_scans(), 422, "bad_image"),
        "a GIF in a larger frame": (patched(gif, gif.index(b"\x2c") + 5, wide_frame), 413, "image_too_large"),
        "a GIF without a frame": (b"GIF89a\x1c\0\x1c\0\0\0\0;", 422, "bad_image"),
        "a BMP with few of its pixels": (patched(bmp, 18, struct.pack("<ii", 5_000, 5_000)), 422, "bad_image"),
        "a BMP of 2,147,483,647 squared": (patched(bmp, 18, b"\xff\xff\xff\x7f" * 2), 413, "image_too_large"),
        "a WebP of 65,535 squared": (webp_of(65_535, 65_535), 413, "image_too_large"),
        "a BMP's beginning": (b"BM" + b"\xff" * 60, 422, "bad_image"),
    }


def answered() -> dict[str, bytes]:
    """Each shows the shoe."""
    shoe = Image.fromarray(SHOE)
    colour = Image.merge("RGB", [shoe] * 3)
    palette = shoe.convert("P")
    transparent = Image.merge("RGBA", [shoe, shoe, shoe, Image.new("L", shoe.size, 255)])
    deep = SHOE.astype(np.uint16) * 257
    opaque = np.full_like(deep, 65_535)
    upside_down = encoded(colour.transpose(Image.Transpose.FLIP_TOP_BOTTOM), "BMP")
    blank = Image.new("RGB", shoe.size, "white")
    return {
        "grey PNG": encoded(shoe, "PNG"),
        "colour PNG": encoded(colour, "PNG"),
        "palette PNG with transparency": encoded(palette, "PNG", transparency=255),
        "RGBA PNG": encoded(transparent, "PNG"),
        "16-bit grey PNG": encoded(Image.fromarray(deep), "PNG"),
        "16-bit colour PNG": png_of(28, 28, 16, 2, lines(np.stack([deep] * 3, axis=-1), 16)),
        "16-bit PNG with transparency": png_of(28, 28, 16, 4, lines(np.stack([deep, opaque], axis=-1), 16)),
        "2-bit PNG": png_of(28, 28, 2, 0, lines(SHOE // 85, 2)),
        "4-bit PNG": png_of(28, 28, 4, 0, lines(SHOE // 17, 4)),
        "PNG that is an animation": encoded(shoe, "PNG", save_all=True, append_images=[blank.convert("L")]),
        "BMP of runs": encoded(palette, "BMP"),
        "BMP from the top": patched(upside_down, 22, struct.pack("<i", -28)),
        "BMP": encoded(colour, "BMP"),
        "GIF": encoded(shoe, "GIF"),
        "GIF of 10,000 frames": gif_of_many_frames(),
        "lossless WebP": encoded(colour, "WEBP", lossless=True),
        "WebP that is an animation": encoded(colour, "WEBP", lossless=True, save_all=True, append_images=[blank]),
        "JPEG": encoded(shoe, "JPEG", quality=98),
        "progressive JPEG": encoded(colour, "JPEG", quality=98, progressive=True),
        "JPEG of two pictures": encoded(colour, "MPO", quality=98, save_all=True, append_images=[blank]),
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
        for field, most in (("VmHWM:", MOST_BYTES), ("VmRSS:", KEPT_BYTES)):
            assert int(status.partition(field)[2].split()[0]) * 1024 < most, field

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


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_on_its_side_is_turned_upright(server: Epochd, trained: str, orientation: int, kind: str) -> None:
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
    picture = encoded(lying, kind, quality=98, exif=exif)
    assert probabilities(server, picture) == pytest.approx(probabilities(server, ANSWERED["grey PNG"]), abs=0.02)


@pytest.mark.parametrize("magic", MAGIC)
def test_random_bytes_are_no_picture(server: Epochd, predictor: Callable[[], None], magic: bytes) -> None:
    rng = np.random.default_rng(0)
    for size in (0, 10, 300, 3_000):
        answer = post(server, magic + rng.bytes(size))
        assert answer.json()["code"] in ("bad_image", "image_too_large"), answer.text
    predictor()


def largest() -> dict[str, bytes]:
    """What each becomes while it is decoded differs."""
    red = Image.new("RGB", (SIDE, SIDE), (90, 120, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    half = b"\x80" * 6
    return {
        "grey PNG": even_png(SIDE, 8, 0, 8),
        "grey PNG with a transparent colour": even_png(SIDE, 8, 0, 8, chunk(b"tRNS", half[:2])),
        "palette PNG": even_png(SIDE, 8, 3, 8, chunk(b"PLTE", b"\1\2\3" * 256), chunk(b"tRNS", half)),
        "RGBA PNG": even_png(SIDE, 8, 6, 32),
        "16-bit colour PNG": even_png(SIDE, 16, 2, 48),
        "PNG on its side": even_png(SIDE, 8, 2, 24, chunk(b"eXIf", exif.tobytes()[6:])),
        "progressive CMYK JPEG on its side": encoded(red.convert("CMYK"), "JPEG", progressive=True, exif=exif),
        "WebP": encoded(red, "WEBP"),
        "WebP that is an animation": webp_of(SIDE, SIDE),
        "GIF": encoded(red.convert("P"), "GIF", transparency=0),
    }


def test_the_largest_pictures_stay_within_the_bound(server: Epochd, predictor: Callable[[], None]) -> None:
    for name, picture in largest().items():
        for query in ("?top_k=10", "?top_k=10&auto_fix=true"):
            answer = server.http.post(f"/predict{query}", content=picture, headers={"Content-Type": "image/png"})
            assert answer.status_code == 200, (name, answer.text)
        predictor()


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000), (SIDE, SIDE)])
def test_any_size_within_the_limit_is_answered(
    server: Epochd, predictor: Callable[[], None], size: tuple[int, int]
) -> None:
    picture = encoded(Image.new("RGB", size, (90, 120, 30)), "PNG", compress_level=1)
    assert sum(probabilities(server, picture)) == pytest.approx(1, abs=1e-4)
    predictor()


def test_many_harmful_pictures_at_once_do_not_add_up(server: Epochd, predictor: Callable[[], None]) -> None:
    large = encoded(Image.new("RGB", (SIDE, SIDE), (90, 120, 30)), "PNG", compress_level=1)
    bombs = [large, webp_of(SIDE, SIDE), even_png(SIDE, 8, 6, 32), one_bit_bomb()] * 2
    with ThreadPoolExecutor(len(bombs)) as pool:
        answers = list(pool.map(lambda bomb: post(server, bomb), bombs))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 413] * 2
    predictor()
