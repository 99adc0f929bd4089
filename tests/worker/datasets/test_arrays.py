import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.datasets.arrays import Writer
from worker.jobs.card import FILES

RNG = np.random.default_rng(0)
TRAIN, TEST = 23, 7

Part = tuple[NDArray[np.uint8], NDArray[Any]]


def part(count: int, shape: tuple[int, int, int] = (3, 4, 5)) -> Part:
    return RNG.integers(256, size=(count, *shape), dtype=np.uint8), RNG.integers(10, size=count)


def write(folder: Path, train: Part, test: Part, chunk: int = 10) -> Writer:
    images = train[0]
    writer = Writer(folder, (images.shape[1], images.shape[2], images.shape[3]))
    for images, labels in (train, test):
        for start in range(0, len(labels), chunk):
            writer.add(images[start : start + chunk], labels[start : start + chunk])
        np.testing.assert_array_equal(writer.end_split(), labels)
    assert writer.count == len(train[1]) + len(test[1])
    return writer


def assert_files_hold(folder: Path, *arrays: NDArray[Any]) -> None:
    for file, array in zip(FILES, arrays, strict=True):
        for mode in (None, "r"):
            loaded = np.load(folder / file, mmap_mode=mode, allow_pickle=False)
            assert loaded.dtype == array.dtype
            assert loaded.shape == array.shape
            np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("chunk", [1, 10, 1000])
def test_the_files_load_as_what_was_added(tmp_path: Path, chunk: int) -> None:
    train, test = part(TRAIN), part(TEST)
    write(tmp_path, train, test, chunk)
    assert_files_hold(tmp_path, *train, *test)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_the_digest_is_of_the_four_arrays_bytes(tmp_path: Path) -> None:
    train, test = part(TRAIN), part(TEST)
    expected = hashlib.sha256()
    for array in (*train, *test):
        expected.update(array.tobytes())
    for chunk in (3, 1000):
        assert write(tmp_path, train, test, chunk).sha256 == expected.hexdigest()


def test_each_bit_counts_for_the_digest(tmp_path: Path) -> None:
    arrays = (*part(TRAIN), *part(TEST))
    digests = set()
    for changed in (None, 0, 1, 2, 3):
        copies = [array.copy() for array in arrays]
        if changed is not None:
            copies[changed].reshape(-1)[-1] ^= 1
        digests.add(write(tmp_path, (copies[0], copies[1]), (copies[2], copies[3])).sha256)
    assert len(digests) == 5


def test_statistics_are_those_of_the_training_pixels_in_double_precision(tmp_path: Path) -> None:
    train, test = part(TRAIN), part(TEST)
    train[0][:, 1] //= 7  # the channels differ
    test[0][:] = 255
    mean, std = write(tmp_path, train, test).statistics()
    pixels = train[0].astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean(axis=(0, 2, 3)), rel=1e-12)
    assert std == pytest.approx(pixels.std(axis=(0, 2, 3)), rel=1e-12)


def test_pixels_that_are_all_the_same_have_no_deviation(tmp_path: Path) -> None:
    train, test = part(TRAIN, (1, 4, 5)), part(TEST, (1, 4, 5))
    train[0][:] = 77
    (mean,), (std,) = write(tmp_path, train, test).statistics()
    assert mean == pytest.approx(77 / 255)
    assert 0 <= std < 1e-7  # and no NaN


def test_the_header_grows_with_the_count_and_stays_in_its_place(tmp_path: Path) -> None:
    """It is written first, for no pictures, and again when their number is known: six digits instead of one."""
    train, test = part(100_000, (1, 1, 1)), part(TEST, (1, 1, 1))
    write(tmp_path, train, test, chunk=999)
    assert_files_hold(tmp_path, *train, *test)
    saved = tmp_path / "saved.npy"
    np.save(saved, train[0])
    assert (tmp_path / FILES[0]).read_bytes() == saved.read_bytes()  # as numpy itself writes it


def test_a_split_without_pictures_is_an_array_without_rows(tmp_path: Path) -> None:
    train, nothing = part(TRAIN), part(0)
    write(tmp_path, train, nothing)
    assert_files_hold(tmp_path, *train, *nothing)
    mean, std = write(tmp_path, nothing, train).statistics()
    assert (mean, std) == ([0, 0, 0], [0, 0, 0])
    assert_files_hold(tmp_path, *nothing, *train)


def test_numbers_to_predict_are_labels_too(tmp_path: Path) -> None:
    train, test = ((part(count)[0], RNG.normal(size=(count, 2)).astype(np.float32)) for count in (TRAIN, TEST))
    writer = write(tmp_path, train, test)
    assert_files_hold(tmp_path, *train, *test)
    assert writer.sha256 == hashlib.sha256(b"".join(array.tobytes() for array in (*train, *test))).hexdigest()


def test_pictures_need_not_lie_in_one_piece(tmp_path: Path) -> None:
    turned = RNG.integers(256, size=(5, 4, 3, TRAIN), dtype=np.uint8).transpose(3, 2, 1, 0)
    labels = part(TRAIN)[1]
    test = part(TEST)
    writer = write(tmp_path, (turned, labels), test)
    assert_files_hold(tmp_path, turned, labels, *test)
    assert writer.statistics()[0] == pytest.approx((turned / 255).mean(axis=(0, 2, 3)))


def test_pictures_of_another_shape_are_not_taken(tmp_path: Path) -> None:
    images, labels = part(TRAIN)
    writer = Writer(tmp_path, (3, 4, 5))
    for wrong in (part(TRAIN, (3, 5, 4)), (images, labels[1:])):
        with pytest.raises(AssertionError):
            writer.add(*wrong)
    writer.end_split()
    writer.end_split()
    assert_files_hold(tmp_path, *part(0), *part(0))


def test_a_writer_that_is_left_early_leaves_no_file_open(tmp_path: Path) -> None:
    with Writer(tmp_path, (3, 4, 5)) as writer:
        writer.add(*part(TRAIN))
    assert writer._images.closed
