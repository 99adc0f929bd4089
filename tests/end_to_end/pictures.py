"""Archives of real pictures, as users make them."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def png(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> bytes:
    """H x W grey, or H x W x C."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def zip_files(path: Path, files: Iterable[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in files:
            archive.writestr(name, contents)
    return path


def zip_of_prepared(prepared: Path, path: Path, splits: dict[str, int]) -> Path:
    """The first pictures of a prepared dataset, as PNG files in a folder a class; numbered through, in their order.

    `splits` says how many of train and of test.
    """

    def files() -> Iterable[tuple[str, bytes]]:
        for split, count in splits.items():
            images, labels = (np.load(prepared / f"{split}_{part}.npy", mmap_mode="r") for part in ("images", "labels"))
            for number in range(count):
                yield f"{split}/class-{labels[number]}/{number:05d}.png", png(np.array(images[number, 0]))

    return zip_files(path, files())
