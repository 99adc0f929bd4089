"""Archives of real pictures, prepared as the worker does it."""

import io
import multiprocessing
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from worker.datasets import uploaded
from worker.datasets.source import Watch
from worker.jobs.card import FILES, Card, Finding, FindingKind, Task
from worker.jobs.errors import BadArchive, DatasetInvalid, DiskFull
from worker.jobs.form import Form
from worker.jobs.processes import Stopped
from worker.jobs.settings import Settings

# pytest's process may have threads, of torch or of xdist; one that prepares has none.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

Files = Mapping[str, bytes]
Pixels = NDArray[np.uint8]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(number: int, width: int = 8, height: int = 8, mode: str = "L") -> Image.Image:
    """A picture that no other number gives."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(number).integers(256, size=height * width * bands, dtype=np.uint8)
    return Image.frombytes(mode, (width, height), pixels.tobytes())


def png(number: int, width: int = 8, height: int = 8, mode: str = "L") -> bytes:
    return encoded(noise(number, width, height, mode))


def pixels_of(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).tobytes()


def classes(**counts: int) -> dict[str, bytes]:
    """Folders of classes, without an own folder for testing."""
    numbers = iter(range(10_000))
    return {f"{name}/{each:03}.png": png(next(numbers)) for name, count in counts.items() for each in range(count)}


def divided(train: Files, test: Files) -> dict[str, bytes]:
    return {f"train/{name}": data for name, data in train.items()} | {
        f"test/{name}": data for name, data in test.items()
    }


def clean() -> dict[str, bytes]:
    """Two classes in which nothing is to be found."""
    return divided(
        {f"{name}/{n}.png": png(n + at) for at, name in ((0, "cat"), (50, "dog")) for n in range(5)},
        {f"{name}/{n}.png": png(n + at) for at, name in ((100, "cat"), (150, "dog")) for n in range(3)},
    )


def zipped(path: Path, files: Files) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def tarred(path: Path, files: Files) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@dataclass(frozen=True)
class Result:
    card: Card
    train: Pixels
    train_labels: NDArray[Any]
    test: Pixels
    test_labels: NDArray[Any]

    def finding(self, kind: FindingKind) -> Finding:
        (found,) = [each for each in self.card.findings if each.kind == kind]
        return found

    def is_tested(self, data: bytes) -> bool:
        """On which side this grey picture is; it is on one only."""
        train, test = ([picture.tobytes() for picture in split] for split in (self.train, self.test))
        wanted = pixels_of(data)
        assert (wanted in train) != (wanted in test)
        return wanted in test


class Preparing:
    """Prepares archives, each in a folder of its own."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._count = 0

    def __call__(
        self,
        files: Files,
        *,
        pack: Any = zipped,
        watch: Watch = lambda *_: None,
        settings: Mapping[str, Any] | None = None,
        **form: Any,
    ) -> Result:
        self._count += 1
        self.folder = self._tmp_path / str(self._count)
        self.folder.mkdir()
        archive = self._tmp_path / f"{self._count}.archive"
        pack(archive, files)
        given = Settings(data_dir=self._tmp_path, **(settings or {}))
        card = uploaded.prepare(archive, Form(name="mine", **form), self.folder, given, watch)
        assert {path.name for path in self.folder.iterdir()} == set(FILES)  # no copy of the pictures is left
        train, train_labels, test, test_labels = (np.load(self.folder / file) for file in FILES)
        assert (card.train_count, card.test_count) == (len(train), len(test))
        return Result(card, train, train_labels, test, test_labels)

    def refusal(self, files: Files, **form: Any) -> DatasetInvalid:
        with pytest.raises(DatasetInvalid) as caught:
            self(files, **form)
        return caught.value


@pytest.fixture
def prepare(tmp_path: Path) -> Preparing:
    return Preparing(tmp_path)


def test_pictures_keep_their_labels_and_come_by_their_own_names(prepare: Preparing) -> None:
    files = clean()
    result = prepare(files)
    assert result.card.classes == ["cat", "dog"]
    names = [f"train/{name}/{n}.png" for n in range(5) for name in ("cat", "dog")]
    assert [picture.tobytes() for picture in result.train] == [pixels_of(files[name]) for name in names]
    assert result.train_labels.tolist() == [0, 1] * 5
    assert result.test_labels.tolist() == [0, 1] * 3
    assert result.train.dtype == np.uint8
    assert result.train_labels.dtype == np.int64


def test_the_card_tells_what_there_is(prepare: Preparing) -> None:
    card = prepare(clean() | {"README.txt": b"hello", "train/a.txt": b"hello", "notes": b""}).card
    assert (card.name, card.task) == ("mine", Task.CLASSIFICATION)
    assert (card.channels, card.height, card.width) == (1, 8, 8)
    assert (card.train_counts, card.test_counts) == ([5, 5], [3, 3])
    assert (card.targets, card.target_mean, card.target_std) == ([], [], [])
    assert card.ignored == {".txt": 2, "": 1}
    assert card.findings == []


def test_the_card_has_the_statistics_of_the_training_pixels(prepare: Preparing) -> None:
    result = prepare({name: png(number, mode="RGB") for number, name in enumerate(clean())})
    scaled = result.train / 255
    assert result.card.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)))
    assert result.card.std == pytest.approx(scaled.std(axis=(0, 2, 3)))


@pytest.mark.parametrize(
    ("fraction", "expected"), [(None, [2, 4, 6]), (0.3, [3, 6, 9]), (0.5, [5, 10, 15]), (0.99, [9, 19, 29])]
)
def test_the_fraction_to_test_on_is_that_of_each_class(
    prepare: Preparing, fraction: float | None, expected: list[int]
) -> None:
    card = prepare(classes(cat=10, dog=20, owl=30), test_fraction=fraction).card
    assert card.test_counts == expected
    assert [sum(both) for both in zip(card.train_counts, card.test_counts, strict=True)] == [10, 20, 30]


def test_a_small_class_is_trained_on_first_and_then_tested(prepare: Preparing) -> None:
    card = prepare(classes(one=1, two=2, three=3)).card
    assert dict(zip(card.classes, zip(card.train_counts, card.test_counts, strict=True), strict=True)) == {
        "one": (1, 0),
        "two": (1, 1),
        "three": (2, 1),
    }


def test_the_same_pictures_are_the_same_dataset_in_any_archive_and_order(prepare: Preparing) -> None:
    files = classes(cat=20, dog=20)
    first = prepare(files)
    backwards = dict(reversed(files.items()))
    assert prepare(backwards).card == first.card
    assert prepare(backwards, pack=tarred).card == first.card
    wrapped = {f"My pictures/{name}": data for name, data in files.items()}
    assert prepare(wrapped).card == first.card


def test_a_division_does_not_depend_on_names(prepare: Preparing) -> None:
    files = classes(cat=20, dog=20)
    first = prepare(files)
    renamed = prepare({name.replace("/", "/IMG_").replace("0", "x"): data for name, data in files.items()})
    assert all(first.is_tested(data) == renamed.is_tested(data) for data in files.values())


def test_a_division_stays_when_another_class_grows_and_hardly_moves_when_its_own_does(prepare: Preparing) -> None:
    """The share is exact in each class, so a class that grows may take a few over, all in one direction."""
    files = classes(cat=60, dog=40)
    more = {f"dog/more {number}.png": png(5000 + number) for number in range(10)}
    before, after = prepare(files), prepare(files | more)
    moved = {
        name: after.is_tested(data) for name, data in files.items() if before.is_tested(data) != after.is_tested(data)
    }
    assert not any(name.startswith("cat/") for name in moved)
    assert len(moved) <= 4
    assert len(set(moved.values())) <= 1


def test_identical_files_are_on_one_side(prepare: Preparing) -> None:
    files = classes(cat=40, dog=40)
    files |= {name.replace(".", " copy."): data for name, data in files.items()}
    result = prepare(files)
    assert not any(finding.kind == FindingKind.LEAKAGE for finding in result.card.findings)
    assert result.card.test_count > 0
    for data in files.values():
        result.is_tested(data)  # asserts that it is on one side only


def test_identical_files_are_on_one_side_even_when_their_classes_differ(prepare: Preparing) -> None:
    files = classes(cat=50, dog=10, owl=10)
    files |= {
        f"{name}/{each:03} of cats.png": files[f"cat/{each:03}.png"] for name in ("dog", "owl") for each in range(30)
    }
    result = prepare(files)
    assert not any(finding.kind == FindingKind.LEAKAGE for finding in result.card.findings)
    assert result.card.test_count > 0


@pytest.mark.parametrize("testing", ["test", "val", "Validation"])
def test_folders_say_what_is_for_testing(prepare: Preparing, testing: str) -> None:
    files = {name.replace("test/", f"{testing}/"): data for name, data in clean().items()}
    result = prepare(files)
    assert (result.card.train_counts, result.card.test_counts) == ([5, 5], [3, 3])
    assert all(result.is_tested(data) == name.startswith(testing) for name, data in files.items())


def test_a_fraction_beside_folders_that_say_it_already_is_refused(prepare: Preparing) -> None:
    assert "leave out test_fraction" in prepare.refusal(clean(), test_fraction=0.5).detail


def test_a_table_may_say_what_is_for_testing(prepare: Preparing) -> None:
    files = {f"images/{n}.png": png(n) for n in range(8)}
    rows = [f"{n}.png,{'cat' if n % 2 else 'dog'},{'test' if n < 4 else 'train'}" for n in range(8)]
    result = prepare(files | {"labels.csv": "\n".join(["file,label,split", *rows]).encode()})
    assert result.card.classes == ["cat", "dog"]
    assert result.train_labels.tolist() == [1, 0, 1, 0]  # as the table lists them
    assert [picture.tobytes() for picture in result.test] == [noise(n).tobytes() for n in range(4)]


@pytest.mark.parametrize(
    ("sizes", "image_size", "expected"),
    [
        ([(20, 10)], None, (10, 20)),  # width and height of the pictures; height and width of what they become
        ([(256, 256)], None, (256, 256)),
        ([(257, 100)], None, (64, 64)),
        ([(20, 10), (10, 20)], None, (64, 64)),
        ([(20, 10)], 12, (12, 12)),
        ([(20, 10), (300, 200)], [12, 16], (12, 16)),
    ],
)
def test_pictures_get_the_size_that_is_asked_for_or_keep_their_own(
    prepare: Preparing, sizes: list[tuple[int, int]], image_size: Any, expected: tuple[int, int]
) -> None:
    files = {name: png(number, *sizes[number % len(sizes)]) for number, name in enumerate(clean())}
    result = prepare(files, image_size=image_size)
    assert (result.card.height, result.card.width) == expected
    assert result.train.shape == (10, 1, *expected)


@pytest.mark.parametrize(
    ("modes", "channels", "expected"),
    [
        (["L"], None, 1),
        (["L", "1", "LA"], None, 1),
        (["L", "RGB"], None, 3),
        (["RGB"], None, 3),
        (["RGB"], "grey", 1),
        (["L"], "colour", 3),
    ],
)
def test_pictures_are_grey_where_all_are_and_else_as_it_is_asked_for(
    prepare: Preparing, modes: list[str], channels: str | None, expected: int
) -> None:
    images = [noise(number).convert(modes[number % len(modes)]) for number in range(16)]
    files = {name: encoded(image) for name, image in zip(clean(), images, strict=True)}
    result = prepare(files, channels=channels)
    assert result.card.channels == expected
    assert result.train.shape[1] == len(result.card.mean) == expected
    if expected == 3 and modes == ["L"]:
        assert (result.train[:, :1] == result.train).all()


def kept(prepare: Preparing, data: bytes, name: str = "odd.png", **form: Any) -> Pixels:
    """What becomes of a picture among others of its kind."""
    files = divided(
        {f"a/{name}": data, **{f"b/{n}.png": png(n, 16, 16) for n in range(2)}},
        {"a/1.png": png(7, 16, 16), "b/1.png": png(8, 16, 16)},
    )
    result = prepare(files, image_size=16, **form)
    (place,) = np.flatnonzero(result.train_labels == 0)
    picture: Pixels = result.train[place]
    return picture


def test_colour_turns_grey_by_luminance(prepare: Preparing) -> None:
    image = noise(99, 16, 16, "RGB")
    difference = kept(prepare, encoded(image), channels="grey")[0].astype(int) - np.asarray(image.convert("L"))
    assert abs(difference).max() <= 1


def test_transparency_is_laid_on_white(prepare: Preparing) -> None:
    image = Image.new("RGBA", (16, 16), (10, 20, 30, 0))
    image.paste((10, 20, 30, 255), (0, 8, 16, 16))
    colour = kept(prepare, encoded(image))
    assert colour.shape == (3, 16, 16)
    assert (colour[:, :8] == 255).all()
    assert colour[:, 8:].reshape(3, -1).T.tolist() == [[10, 20, 30]] * 128


def test_a_picture_taken_sideways_comes_upright(prepare: Preparing) -> None:
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 16))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 clockwise": left becomes top
    picture = kept(prepare, encoded(image, "JPEG", exif=exif, quality=95), "a.jpg")
    assert picture[0, :7].min() > 200
    assert picture[0, 9:].max() < 50


def test_pictures_that_are_all_on_their_side_have_the_upright_size(prepare: Preparing) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    files = {name: encoded(noise(number, 20, 10), exif=exif) for number, name in enumerate(clean())}
    result = prepare(files)
    assert (result.card.height, result.card.width) == (20, 10)
    assert result.card.findings == []


def test_sixteen_bits_a_pixel_keep_their_brightness(prepare: Preparing) -> None:
    deep = Image.fromarray((np.arange(256, dtype=np.uint16).reshape(16, 16) << 8) + 0x7F)
    picture = kept(prepare, encoded(deep))
    assert picture.shape == (1, 16, 16)
    assert picture.ravel().tolist() == list(range(256))


def test_a_palette_becomes_its_colours(prepare: Preparing) -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    for kind in ("PNG", "GIF", "BMP"):
        picture = kept(prepare, encoded(image, kind), f"a.{kind.lower()}")
        assert picture.reshape(3, -1).T.tolist() == [[10, 20, 30]] * 256


def test_cmyk_becomes_its_colours(prepare: Preparing) -> None:
    red = Image.new("RGB", (16, 16), (200, 0, 0)).convert("CMYK")
    r, g, b = kept(prepare, encoded(red, "JPEG"), "a.jpeg").mean(axis=(1, 2))
    assert r > 180
    assert max(g, b) < 30


def numbered(count: int, **columns: Any) -> dict[str, bytes]:
    """Pictures and a table of numbers, whose names are the columns'."""
    rows = [",".join([f"{n}.png", *(str(column[n]) for column in columns.values())]) for n in range(count)]
    table = "\n".join([",".join(["file", *columns]), *rows]).encode()
    return {f"images/{n}.png": png(n) for n in range(count)} | {"labels.csv": table}


def test_a_table_of_numbers_is_a_regression_dataset(prepare: Preparing) -> None:
    ink = np.random.default_rng(0).normal(size=50).round(3)
    result = prepare(numbered(50, ink=ink, twice=2 * ink), task="regression")
    card = result.card
    assert (card.task, card.targets, card.classes) == (Task.REGRESSION, ["ink", "twice"], [])
    assert (card.train_counts, card.test_counts, card.outputs) == ([], [], 2)
    assert (card.train_count, card.test_count) == (40, 10)
    assert result.train_labels.dtype == result.test_labels.dtype == np.float32
    assert result.test_labels.shape == (10, 2)
    by_pixels = {noise(n).tobytes(): ink[n] for n in range(50)}
    for images, labels in ((result.train, result.train_labels), (result.test, result.test_labels)):
        expected = np.array([by_pixels[picture.tobytes()] for picture in images])
        np.testing.assert_array_equal(labels, np.stack([expected, 2 * expected], axis=1).astype(np.float32))


def test_a_regression_card_has_the_statistics_of_the_training_numbers(prepare: Preparing) -> None:
    year = [2000 + n for n in range(30)]
    result = prepare(numbered(30, year=year, same=[7] * 30), task="regression")
    numbers = result.train_labels.astype(np.float64)
    assert result.card.target_mean == pytest.approx(numbers.mean(axis=0))
    assert result.card.target_std == pytest.approx(numbers.std(axis=0))
    assert result.card.target_std[1] == 0


def test_a_regression_dataset_without_a_table_is_refused(prepare: Preparing) -> None:
    assert "labels.csv" in prepare.refusal(clean(), task="regression").detail


def cut(data: bytes) -> bytes:
    """Its header is whole: only decoding tells."""
    return data[:60]


def test_a_regression_dataset_may_lack_a_picture_at_its_end(prepare: Preparing) -> None:
    """Which decoding finds in a chunk of its own: 128 pictures are in the one before."""
    columns = {"ink": [0.5] * 149, "split": ["train"] * 129 + ["test"] * 20}
    files = numbered(149, **columns)
    files["images/128.png"] = cut(files["images/128.png"])
    result = prepare(files, task="regression")
    assert (result.card.train_count, result.card.test_count) == (128, 20)
    assert result.train_labels.shape == (128, 1)


def many(broken: dict[str, bytes]) -> dict[str, bytes]:
    """Two hundred pictures, some of them replaced."""
    return classes(cat=100, dog=100) | broken


def test_up_to_one_percent_that_cannot_be_read_is_left_out_and_named(prepare: Preparing) -> None:
    files = many({"cat/000.png": b"<html>404</html>", "dog/000.png": cut(png(9999))})
    result = prepare(files)
    assert result.card.train_count + result.card.test_count == 198
    finding = result.finding(FindingKind.UNREADABLE)
    assert finding.count == 2
    assert {note.file for note in finding.files} == {"cat/000.png", "dog/000.png"}
    assert all(note.detail for note in finding.files)
    shown = {pixels_of(data): name for name, data in files.items() if not name.endswith("/000.png")}
    for images, labels, counts in (
        (result.train, result.train_labels, result.card.train_counts),
        (result.test, result.test_labels, result.card.test_counts),
    ):
        names = [shown.pop(picture.tobytes()) for picture in images]  # each of them once, on one side
        assert [name.startswith("dog/") for name in names] == labels.tolist()
        assert np.bincount(labels).tolist() == counts
    assert shown == {}


def test_more_than_one_percent_that_cannot_be_read_is_refused_with_the_report(prepare: Preparing) -> None:
    error = prepare.refusal(many({"cat/000.png": b"", "dog/000.png": b"", "dog/001.png": cut(png(9999))}))
    assert error.detail.startswith("3 of 200 pictures cannot be read; at most 1 % may be left out.")
    assert "cat/000.png" in error.detail
    assert error.card is not None
    assert [(finding.kind, finding.count) for finding in error.card.findings] == [(FindingKind.UNREADABLE, 3)]


def test_when_no_picture_can_be_read_the_report_says_so(prepare: Preparing) -> None:
    for task, files in (("classification", clean()), ("regression", numbered(16, ink=range(16)))):
        broken = {name: data if name == "labels.csv" else cut(data) for name, data in files.items()}
        error = prepare.refusal(broken, task=task)
        assert error.detail.startswith("16 of 16 pictures cannot be read")
        assert error.card is not None


@pytest.mark.parametrize(
    ("settings", "file", "says"),
    [
        ({"max_image_bytes": 400}, png(1, 64, 64), "its file is too large"),
        ({"max_pixels": 100}, png(1, 11, 10), "11 x 10 pixels; the limit is 100"),
    ],
)
def test_pictures_beyond_a_limit_are_left_out_like_unreadable_ones(
    prepare: Preparing, settings: dict[str, int], file: bytes, says: str
) -> None:
    finding = prepare(many({"cat/000.png": file}), settings=settings).finding(FindingKind.UNREADABLE)
    assert [(note.file, says in note.detail) for note in finding.files] == [("cat/000.png", True)]


def test_a_row_without_its_picture_counts_as_unreadable(prepare: Preparing) -> None:
    files = {name: data for name, data in numbered(200, ink=range(200)).items() if name != "images/7.png"}
    finding = prepare(files, task="regression").finding(FindingKind.UNREADABLE)
    assert [note.file for note in finding.files] == ["7.png"]


def test_the_same_picture_again_is_a_duplicate_in_whatever_file(prepare: Preparing) -> None:
    again = {"train/cat/again.bmp": encoded(noise(0), "BMP"), "test/dog/again.png": png(150)}
    finding = prepare(clean() | again).finding(FindingKind.DUPLICATE)
    assert {note.file: note.detail for note in finding.files} == {
        "train/cat/again.bmp": "the same as train/cat/0.png",
        "test/dog/again.png": "the same as test/dog/0.png",
    }


def test_a_test_picture_that_was_trained_on_is_a_leak_in_whatever_file(prepare: Preparing) -> None:
    result = prepare(clean() | {"test/cat/leak.bmp": encoded(noise(0), "BMP")})
    finding = result.finding(FindingKind.LEAKAGE)
    assert [(note.file, note.detail) for note in finding.files] == [
        ("test/cat/leak.bmp", "the same as train/cat/0.png")
    ]


def test_a_class_of_many_pictures_beside_one_of_few_is_an_imbalance(prepare: Preparing) -> None:
    train = classes(cat=2, dog=21)
    test = {"cat/0.png": png(8000), "dog/0.png": png(8001)}
    (note,) = prepare(divided(train, test)).finding(FindingKind.IMBALANCE).files
    assert (note.file, note.detail) == ("dog", "21 training pictures; the smallest class has 2")


def test_pictures_that_do_not_suit_the_size_are_odd(prepare: Preparing) -> None:
    odd = {
        "train/cat/small.png": png(1, 15, 40),
        "train/cat/long.png": png(2, 64, 20),
        "train/cat/fine.png": png(3, 60, 20),
    }
    files = {name: png(100 + number, 16, 16) for number, name in enumerate(clean())} | odd
    finding = prepare(files, image_size=16).finding(FindingKind.ODD_SIZE)
    assert {note.file for note in finding.files} == {"train/cat/small.png", "train/cat/long.png"}


def test_classes_without_pictures_are_named(prepare: Preparing) -> None:
    files = clean() | {"train/owl/1.png": png(900), "test/emu/1.png": png(901), "train/void/": b""}
    result = prepare(files)
    assert result.card.classes == ["cat", "dog", "emu", "owl"]
    assert [(note.file, note.detail) for note in result.finding(FindingKind.EMPTY_CLASS).files] == [
        ("void", "no pictures at all; left out"),
        ("emu", "no pictures to train on"),
        ("owl", "no pictures to test on"),
    ]


def test_pictures_that_the_table_does_not_list_are_left_out(prepare: Preparing) -> None:
    result = prepare(numbered(10, ink=range(10)) | {"images/extra.png": png(77)}, task="regression")
    assert [note.file for note in result.finding(FindingKind.UNUSED).files] == ["images/extra.png"]
    assert result.card.train_count + result.card.test_count == 10


FOUND: dict[FindingKind, tuple[dict[str, bytes], dict[str, Any]]] = {
    FindingKind.UNREADABLE: (many({"cat/000.png": b""}), {}),
    FindingKind.DUPLICATE: (clean() | {"train/cat/again.png": png(0)}, {}),
    FindingKind.LEAKAGE: (clean() | {"test/cat/leak.png": png(0)}, {}),
    FindingKind.EMPTY_CLASS: (clean() | {"train/void/": b""}, {}),
    FindingKind.IMBALANCE: (clean() | {f"train/dog/{n}.png": png(n) for n in range(500, 550)}, {}),
    FindingKind.ODD_SIZE: (clean(), {"image_size": 9}),
    FindingKind.UNUSED: (numbered(10, ink=range(10)) | {"extra.png": png(77)}, {"task": "regression"}),
}


@pytest.mark.parametrize("kind", FindingKind)
def test_strict_refuses_what_is_accepted_else_and_gives_the_report(prepare: Preparing, kind: FindingKind) -> None:
    files, form = FOUND[kind]
    accepted = prepare(files, **form).card
    assert [finding.kind for finding in accepted.findings] == [kind]
    error = prepare.refusal(files, strict=True, **form)
    assert error.card == accepted
    assert f"{accepted.findings[0].count} {kind}" in error.detail


def test_strict_accepts_a_dataset_in_which_nothing_is_found(prepare: Preparing) -> None:
    assert prepare(clean(), strict=True).card.findings == []


def test_one_class_is_none(prepare: Preparing) -> None:
    error = prepare.refusal(classes(cat=10))
    assert "one class only" in error.detail
    assert error.card is not None
    assert error.card.classes == ["cat"]


def test_a_side_without_pictures_is_refused(prepare: Preparing) -> None:
    rows = "\n".join(["file,ink,split", *(f"{n}.png,{n},train" for n in range(5))])
    files = {f"images/{n}.png": png(n) for n in range(5)} | {"labels.csv": rows.encode()}
    assert "no pictures left to train on or to test on" in prepare.refusal(files, task="regression").detail


def test_an_archive_without_pictures_is_refused(prepare: Preparing) -> None:
    with pytest.raises(BadArchive, match=r"no pictures .* but 1 \.txt"):
        prepare({"cat/a.txt": b"meow"})


@pytest.mark.parametrize(("missing", "is_enough"), [(1, False), (0, True)])
def test_a_dataset_that_would_fill_the_disk_is_refused_before_it_is_decoded(
    prepare: Preparing, monkeypatch: pytest.MonkeyPatch, missing: int, is_enough: bool
) -> None:
    needed = 16 * 1 * 32 * 32 + 256 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - missing))
    if is_enough:
        prepare(clean(), image_size=32)
        return
    with pytest.raises(DiskFull, match=rf"{16 * 32 * 32} bytes more .*{needed - missing} are free"):
        prepare(clean(), image_size=32)
    assert not any((prepare.folder / file).exists() for file in FILES)


@pytest.mark.parametrize(("pack", "total"), [(zipped, 40), (tarred, 0)])
def test_progress_is_told_step_by_step(prepare: Preparing, pack: Any, total: int) -> None:
    told: list[tuple[str, int, int]] = []
    prepare(classes(cat=20, dog=20), pack=pack, watch=lambda *each: told.append(each))
    steps = [step for step, _, _ in told]
    assert list(dict.fromkeys(steps)) == ["unpacking", "decoding"]
    assert steps == sorted(steps, key=["unpacking", "decoding"].index)
    for step, known in (("unpacking", total), ("decoding", 40)):
        done = [(number, of) for name, number, of in told if name == step]
        assert done == sorted(done)
        assert done[-1] == (40, known)
        assert {of for _, of in done} == {known}


@pytest.mark.parametrize("step", ["unpacking", "decoding"])
def test_who_watches_can_stop_it_at_any_step(prepare: Preparing, step: str) -> None:
    def stop(at: str, done: int, total: int) -> None:
        if at == step:
            raise Stopped

    with pytest.raises(Stopped):
        prepare(clean(), watch=stop)
    assert multiprocessing.active_children() == []
