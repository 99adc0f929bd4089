"""Pictures and the preprocessing that training, testing and prediction share. It travels in the checkpoint."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from pydantic import BaseModel, Field
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from worker.jobs.errors import BadImage, ImageTooLarge

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_PNG, _PNG_COLOUR_TYPE = b"\x89PNG\r\n\x1a\n", 25  # https://www.w3.org/TR/png-3/#11IHDR
_ON_ITS_SIDE = (5, 6, 7, 8)
_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F"})
# Not PNG: torchvision's decoder crashes on what is damaged. Not WebP: it cannot give grey, and only warns.
_EXACT_IN_TORCHVISION = {("JPEG", "L"), ("JPEG", "RGB")}
_SAY_HOW_IT_LIES = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
_STRIP_PIXELS = 2**20
_SCAN, _MOST_SCANS = b"\xff\xda", 100  # of a JPEG: each takes as long as the whole picture, and has 42 bytes


class Preprocessing(BaseModel):
    """How a picture becomes the network's input."""

    channels: int = Field(description="1 for grey, 3 for colour")
    height: int
    width: int
    mean: list[float] = Field(description="Subtracted from pixels scaled to 0..1, per channel")
    std: list[float] = Field(description="Divided by, per channel")
    image_size: int | None = Field(None, description="Pixels a side that a batch is then scaled to, on the device")

    def picture(self, data: bytes, *, max_pixels: int) -> Tensor:
        """Decodes a picture file into uint8 C x H x W of this size and number of channels.

        A picture of another shape is scaled until it covers the target and cut to its centre; colour turns grey
        by luminance (or grey into three equal channels); transparency is laid on white.

        Raises BadImage, and ImageTooLarge when its header promises more than `max_pixels`.
        """
        pixels = decode(data, self.channels, max_pixels=max_pixels)
        return fit(pixels, self.height, self.width)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        return (self.image_size, self.image_size) if self.image_size else (self.height, self.width)

    @property
    def is_plain(self) -> bool:
        """Whether pixels in 0..1 are all that the network wants."""
        return self.image_size is None and not any(self.mean) and all(value == 1 for value in self.std)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 N x C x H x W to the float32 that the network sees, on the same device."""
        return self.finish(unit(images))

    def finish(self, X: Tensor) -> Tensor:
        """float32 0..1 to what the network sees: the part of `normalise` that comes after augmentation."""
        if any(self.mean) or any(value != 1 for value in self.std):
            mean, std = _statistics(tuple(self.mean), tuple(self.std), X.device)
            X = (X - mean) / std
        if self.image_size is None:
            return X
        return interpolate(X, self.image_size, mode="bilinear", antialias=True, align_corners=False)


def unit(images: Tensor) -> Tensor:
    """uint8 to float32 0..1, as the tutorial's ToTensor."""
    return images.float() / 255


@cache
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """On the device already: a copy at each batch would have a GPU wait."""
    return (
        torch.tensor(mean, device=device).view(1, -1, 1, 1),
        torch.tensor(std, device=device).view(1, -1, 1, 1),
    )


def plain(channels: int, height: int, width: int) -> Preprocessing:
    """As the tutorial's ToTensor: scaled to 0..1, not standardised."""
    return Preprocessing(channels=channels, height=height, width=width, mean=[0.0] * channels, std=[1.0] * channels)


@dataclass(frozen=True)
class Header:
    """What a picture's file promises."""

    width: int  # once it is upright
    height: int
    is_grey: bool


def read_header(data: bytes, *, max_pixels: int) -> Header:
    """Decodes nothing. Raises BadImage and ImageTooLarge."""
    with _open(data, max_pixels) as image:
        width, height = image.size
        try:
            if "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation, 1) in _ON_ITS_SIDE:
                width, height = height, width
        except Exception as error:
            raise BadImage("The picture's EXIF data is damaged.") from error
        return Header(width, height, image.mode in _GREY_MODES)


def may_be_coloured(data: bytes) -> bool:
    """Of a file that `decode` takes: quick, where it is a PNG."""
    if data.startswith(_PNG):
        return data[_PNG_COLOUR_TYPE] in (2, 3, 6)
    return not read_header(data, max_pixels=2**63).is_grey


def decode(data: bytes, channels: int, *, max_pixels: int) -> Tensor:
    """A picture file as uint8 channels x H x W, upright. Raises BadImage and ImageTooLarge.

    Pillow reads the header, so that a hostile size is refused before anything is decoded; torchvision decodes the
    plain JPEGs, which is 2 to 3 times faster; Pillow decodes the rest.
    """
    with _open(data, max_pixels) as image:
        if data.startswith(b"\xff\xd8") and data.count(_SCAN) > _MOST_SCANS:
            raise BadImage("The picture is a JPEG of too many scans.")
        try:
            if (image.format, image.mode) in _EXACT_IN_TORCHVISION and "transparency" not in image.info:
                return _decode_by_torchvision(data, channels)
            return _decode_by_pillow(image, channels)
        except Exception as error:
            raise BadImage("The picture's data is damaged or of a kind that is not supported.") from error


@contextmanager
def _open(data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """Reads the header. Raises BadImage, and ImageTooLarge when it promises more than `max_pixels`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is below
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageTooLarge from error
    except Exception as error:  # Pillow's readers raise what they like on hostile bytes
        raise BadImage from error
    with image:
        if image.width * image.height > max_pixels:
            raise ImageTooLarge(f"The picture has {image.width} x {image.height} pixels; the limit is {max_pixels}.")
        yield image


def fit(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 C x H x W cut to the shape of height x width around its centre, then scaled to that size.

    In this order: a picture of 100,000 x 1 scaled first would take gigabytes.
    """
    _, h, w = pixels.shape
    if (h, w) == (height, width):
        return pixels
    scale = max(height / h, width / w)
    kept = [min(h, max(1, round(height / scale))), min(w, max(1, round(width / scale)))]
    cut = transforms.center_crop(pixels, kept)
    scaled: Tensor = transforms.resize(cut, [height, width], interpolation=InterpolationMode.BILINEAR, antialias=True)
    return scaled


def _decode_by_torchvision(data: bytes, channels: int) -> Tensor:
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return decode_image(encoded, mode=mode, apply_exif_orientation=True)  # type: ignore[no-any-return]


def _decode_by_pillow(image: Image.Image, channels: int) -> Tensor:
    """In strips: each conversion makes another copy of what it is given."""
    image.load()  # a PNG may say behind its pixels how it lies
    upright = ImageOps.exif_transpose(image) if _SAY_HOW_IT_LIES.intersection(image.info) else image
    width, height = upright.size
    pixels = torch.empty(channels, height, width, dtype=torch.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = upright if height <= rows else upright.crop((0, top, width, bottom))
        converted = torch.frombuffer(bytearray(_converted(strip, channels)), dtype=torch.uint8)
        pixels[:, top:bottom] = converted.view(bottom - top, width, channels).permute(2, 0, 1)
    return pixels


def _converted(image: Image.Image, channels: int) -> bytes:
    if image.mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    mode = "L" if channels == 1 else "RGB"
    return (image if image.mode == mode else image.convert(mode)).tobytes()
