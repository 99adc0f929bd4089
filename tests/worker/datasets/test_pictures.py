import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from worker.datasets.pictures import Preprocessing, decode, fit
from worker.jobs.errors import BadImage, ImageTooLarge

GREY = Preprocessing(channels=1, height=28, width=28, mean=[0.0], std=[1.0])
LIMIT = 25_000_000


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pattern(mode: str, width: int = 40, height: int = 30) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_accepted_format_decodes_to_what_pillow_sees(kind: str, mode: str, channels: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    smooth = pattern(mode).resize((80, 60), Image.Resampling.BICUBIC)  # JPEG decoders differ on noise
    data = file(smooth, kind, **options)
    ours = decode(data, channels, max_pixels=LIMIT)
    theirs = np.asarray(Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB"))
    assert ours.shape == (channels, 60, 80)
    assert ours.dtype == torch.uint8
    difference = ours.permute(1, 2, 0).int().numpy() - theirs.reshape(60, 80, channels).astype(int)
    # libjpeg's grey is the luminance as stored, before colours were clipped to 0..255; Pillow's is of the clipped ones.
    assert abs(difference).max() <= (16 if kind == "JPEG" else 1)


def test_a_png_of_the_right_size_keeps_its_pixels_to_the_bit() -> None:
    image = pattern("L", 28, 28)
    ours = GREY.picture(file(image, "PNG"), max_pixels=LIMIT)
    assert torch.equal(ours[0], torch.from_numpy(np.array(image)))


def test_transparency_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    assert GREY.picture(file(clear, "PNG"), max_pixels=LIMIT).min() == 255
    half = Image.new("LA", (28, 28), (0, 128))
    assert GREY.picture(file(half, "PNG"), max_pixels=LIMIT).unique().tolist() == [127]  # type: ignore[no-untyped-call]


def test_a_palette_with_a_transparent_entry_is_laid_on_white() -> None:
    image = Image.new("P", (28, 28), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert GREY.picture(file(image, "PNG", transparency=0), max_pixels=LIMIT).min() == 255


def test_sixteen_bits_a_pixel_keep_their_brightness() -> None:
    image = Image.fromarray(np.full((28, 28), 0x8000, dtype=np.uint16))
    assert GREY.picture(file(image, "PNG"), max_pixels=LIMIT).unique().tolist() == [0x80]  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_a_channel_become_eight(channels: int) -> None:
    """Pillow cannot write such a PNG, and calls one RGB all the same."""
    rows = b"".join(b"\0" + struct.pack("!3H", 0x8000, 0x40FF, 0xFFFF) * 28 for _ in range(28))
    pixels = decode(png_of(28, 28, 16, 2, rows), channels, max_pixels=LIMIT)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (channels, 28, 28))
    if channels == 3:
        assert pixels[:, 0, 0].tolist() == [0x80, 0x40, 0xFF]


def test_cmyk_is_converted() -> None:
    red = Image.new("RGB", (28, 28), (200, 0, 0)).convert("CMYK")
    r, g, b = decode(file(red, "JPEG"), 3, max_pixels=LIMIT).float().mean(dim=(1, 2)).tolist()
    assert r > 180
    assert max(g, b) < 30


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_taken_sideways_is_turned_upright(kind: str) -> None:
    image = Image.new("L", (40, 20))
    image.paste(255, (0, 0, 20, 20))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 clockwise": left becomes top
    upright = decode(file(image, kind, exif=exif), 1, max_pixels=LIMIT)
    assert upright.shape == (1, 40, 20)
    assert upright[0, :18].min() > 200
    assert upright[0, 22:].max() < 50


def test_a_wide_picture_is_scaled_to_cover_and_cut_to_its_centre() -> None:
    image = torch.zeros(1, 56, 112, dtype=torch.uint8)
    image[:, :, 28:84] = 255  # the central square
    assert fit(image, 28, 28)[:, :, 1:-1].min() == 255  # the edges are blended
    tall = fit(image.transpose(1, 2), 28, 28)
    assert tall.shape == (1, 28, 28)
    assert tall[:, 1:-1].min() == 255


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 500), (500, 1), (27, 29), (3024, 4032), (1, 100_000), (100_000, 1)]
)
def test_any_size_fits(height: int, width: int) -> None:
    assert fit(torch.zeros(3, height, width, dtype=torch.uint8), 28, 28).shape == (3, 28, 28)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises pixels it does not hold."""

    return png_of(width, height, 1, 0, bytes(100))


def png_of(width: int, height: int, bits: int, colours: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))

    head = struct.pack("!IIBBBBB", width, height, bits, colours, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(13_000, 13_000), (100_000, 100_000), (25_000_001, 1)])
def test_a_picture_that_promises_too_many_pixels_is_refused_before_it_is_decoded(width: int, height: int) -> None:
    with pytest.raises(ImageTooLarge):
        decode(png_header(width, height), 1, max_pixels=LIMIT)


def tiff() -> bytes:
    return file(pattern("L"), "TIFF")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, I am a text file\n" * 10,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        tiff(),
        file(pattern("RGB"), "JPEG")[:400],
        file(pattern("RGB"), "PNG")[:-400],
        b"GIF89a\x00\x00\x00\x00",
    ],
    ids=["empty", "text", "svg", "pdf", "tiff", "cut jpeg", "cut png", "gif 0x0"],
)
def test_what_is_no_readable_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(data, 1, max_pixels=LIMIT)


def test_an_animation_answers_for_its_first_frame() -> None:
    frames = [Image.new("L", (28, 28), shade) for shade in (10, 200)]
    data = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    pixels: Tensor = GREY.picture(data, max_pixels=LIMIT)
    assert pixels.unique().tolist() == [10]  # type: ignore[no-untyped-call]
