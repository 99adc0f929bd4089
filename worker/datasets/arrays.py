"""The files of a prepared dataset, written from front to back with no more in memory than what is being added."""

import hashlib
import os
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from worker.jobs.card import FILES
from worker.jobs.files import fsync

_GREYS: Final = 256


class Writer:
    """Writes images and labels of train, then of test. Digest and statistics come along the way."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        """`shape` is C x H x W."""
        self._folder, self._shape = folder, shape
        self._digest = hashlib.sha256()
        self._histogram = np.zeros((shape[0], _GREYS), dtype=np.int64)  # of the training pixels, exact at any size
        self._split = 0
        self.count = 0  # of pictures, in both splits
        self._labels: list[NDArray[Any]] = []
        self._images = self._begin_images()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._images.close()  # still open where a split did not come to its end

    def add(self, images: NDArray[np.uint8], labels: NDArray[Any]) -> None:
        """uint8 N x C x H x W, and int64 N (classes) or float32 N x targets."""
        assert images.dtype == np.uint8
        assert images.shape[1:] == self._shape
        assert len(images) == len(labels)
        data = np.ascontiguousarray(images)
        self._images.write(data.data)
        self._digest.update(data.data)
        self._labels.append(labels)
        self.count += len(images)
        if self._split == 0:
            for channel in range(len(self._histogram)):
                self._histogram[channel] += np.bincount(images[:, channel].ravel(), minlength=_GREYS)

    def end_split(self) -> NDArray[Any]:
        """Returns the labels of the split that ends here; the next `add` belongs to the other one."""
        labels = np.concatenate(self._labels) if self._labels else np.empty(0, dtype=np.int64)
        _write_header(self._images, np.dtype(np.uint8), (len(labels), *self._shape))
        self._images.close()
        path = self._folder / FILES[2 * self._split + 1]
        np.save(path, labels, allow_pickle=False)
        for written in FILES[2 * self._split : 2 * self._split + 2]:
            fsync(self._folder / written)
        self._digest.update(np.ascontiguousarray(labels).data)
        self._labels = []
        self._split += 1
        if self._split == 1:
            self._images = self._begin_images()
        return labels

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of the training pixels, scaled to 0..1."""
        values = np.arange(_GREYS) / (_GREYS - 1)
        weights = self._histogram / np.maximum(self._histogram.sum(axis=1, keepdims=True), 1)
        mean = weights @ values
        std = np.sqrt(np.maximum(weights @ values**2 - mean**2, 0))
        return mean.tolist(), std.tolist()

    def _begin_images(self) -> BinaryIO:
        file = (self._folder / FILES[2 * self._split]).open("wb")
        _write_header(file, np.dtype(np.uint8), (0, *self._shape))  # numpy leaves room for the count to grow
        return file


def _write_header(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(file, header)
    assert end == 0 or file.tell() <= end
    file.seek(0, os.SEEK_END)
