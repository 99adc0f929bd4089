"""Pictures to predict, as files: whatever a caller has one in. Pillow is loaded when something has to be encoded."""

import io
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Union

if TYPE_CHECKING:
    from PIL.Image import Image

# A numpy array is `Any` here: numpy is not needed to hand one over.
Picture = Union["str | PathLike[str]", bytes, bytearray, memoryview, "Image", Any]

_MODES: Final = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
_AS_PNG: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_AS_RGB: Final = frozenset({"CMYK", "HSV", "LAB", "PA", "RGBX", "RGBa", "YCbCr"})


def encoded(picture: Picture) -> bytes:
    """The picture's file. Raises OSError for a path that cannot be read, TypeError and ValueError for what is none."""
    if isinstance(picture, str | PathLike):
        return Path(picture).read_bytes()
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if hasattr(picture, "getbands"):
        return _png(picture)
    if hasattr(picture, "__array_interface__"):
        return _png(_of_array(picture))
    raise TypeError(
        f"A picture is a path, bytes of a file, a PIL image or a numpy array, and not a {type(picture).__name__}."
    )


def _png(image: "Image") -> bytes:
    if image.mode in _AS_RGB:
        image = image.convert("RGB")
    if image.mode not in _AS_PNG:
        raise ValueError(f"A PIL image of mode {image.mode} has no 8 bits a channel: convert it to L or RGB first.")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _of_array(array: Any) -> "Image":
    from PIL import Image

    shape = tuple(array.shape)
    channels = 1 if len(shape) == 2 else shape[2] if len(shape) == 3 else 0
    if str(array.dtype) != "uint8" or channels not in _MODES or 0 in shape:
        raise ValueError(
            f"An array must be uint8 (0 to 255) of height x width, or height x width x 1, 3 or 4 channels; this one is "
            f"{array.dtype} of shape {shape}."
        )
    return Image.frombytes(_MODES[channels], (shape[1], shape[0]), array.tobytes())
