import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.datasets import opening
from worker.datasets.opening import CARD, MappedPages, open_prepared, remember_contents
from worker.datasets.preparing import write
from worker.datasets.source import Source, Split
from worker.jobs.card import FILES, Card
from worker.jobs.errors import DatasetChanged, DatasetMissing

TRAIN, TEST, SHAPE = 50, 7, (3, 37, 41)  # a picture is longer than a page, and no multiple of one


def source(train: int = TRAIN) -> Source:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(count) % 2)

    return Source(["cat", "dog"], split(train), split(TEST))


def make(folder: Path, what: Source) -> Card:
    """A prepared dataset, as `preparing` leaves it."""
    folder.mkdir()
    card = write(what, "animals", folder, lambda *_: None)
    (folder / CARD).write_text(card.model_dump_json())
    remember_contents(folder)
    return card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "animals"


@pytest.fixture
def card(folder: Path) -> Card:
    return make(folder, source())


def touch(path: Path) -> None:
    """Makes it a second newer."""
    at = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(at, at))


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the files were read through")

    monkeypatch.setattr(opening, "hashlib", type("NoHashes", (), {"sha256": staticmethod(refuse)}))


def test_what_was_prepared_opens_as_it_was(folder: Path, card: Card) -> None:
    opened, original = open_prepared(folder, card.sha256), source()
    assert opened.card == card
    for split, expected in ((opened.train, original.train), (opened.test, original.test)):
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.labels, expected.labels)
        assert split.images.dtype == torch.uint8
        assert split.labels.dtype == torch.int64


def test_numbers_to_predict_open_as_they_were(folder: Path) -> None:
    numbers = Split(source().train.images, torch.rand(TRAIN, 2))
    folder.mkdir()
    writer_card = write(Source([], source().train, source().test), "x", folder, lambda *_: None)
    np.save(folder / FILES[1], numbers.labels.numpy())
    digest = hashlib.sha256(b"".join(np.load(folder / file).tobytes() for file in FILES)).hexdigest()
    (folder / CARD).write_text(writer_card.model_copy(update={"sha256": digest}).model_dump_json())
    opened = open_prepared(folder, digest)
    assert torch.equal(opened.train.labels, numbers.labels)
    assert opened.train.labels.dtype == torch.float32


def test_a_split_without_pictures_opens(folder: Path) -> None:
    opened = open_prepared(folder, make(folder, source(train=0)).sha256)
    assert opened.train.images.shape == (0, *SHAPE)
    assert len(opened.train) == 0


def test_writing_to_the_tensor_does_not_change_the_file(folder: Path, card: Card) -> None:
    before = {file: (folder / file).read_bytes() for file in FILES}
    opened = open_prepared(folder, card.sha256)
    opened.train.images.fill_(0)
    opened.test.labels.fill_(9)
    assert int(opened.train.images.max()) == 0
    assert {file: (folder / file).read_bytes() for file in FILES} == before
    assert torch.equal(open_prepared(folder, card.sha256).train.images, source().train.images)


def test_another_digest_is_refused(folder: Path, card: Card) -> None:
    with pytest.raises(DatasetChanged):
        open_prepared(folder, card.sha256[::-1])


@pytest.mark.parametrize("file", FILES)
def test_contents_that_changed_are_refused_though_the_card_says_nothing(folder: Path, card: Card, file: str) -> None:
    flip_last_byte(folder / file)
    touch(folder / file)
    for _ in range(2):  # and are not remembered as right
        with pytest.raises(DatasetChanged):
            open_prepared(folder, card.sha256)


def test_files_that_are_known_are_not_read_through_again(
    folder: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_reading(monkeypatch)
    assert open_prepared(folder, card.sha256).card == card


def test_a_copy_is_accepted_and_remembered(
    folder: Path, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for file in FILES:
        touch(copy / file)
    with monkeypatch.context() as patch:
        forbid_reading(patch)
        with pytest.raises(AssertionError, match="read through"):
            open_prepared(copy, card.sha256)
    assert torch.equal(open_prepared(copy, card.sha256).test.images, source().test.images)
    forbid_reading(monkeypatch)
    open_prepared(copy, card.sha256)


@pytest.mark.parametrize("note", [None, "", "{", "[]"])
def test_without_a_readable_note_of_what_is_known_the_files_are_read_through(
    folder: Path, card: Card, note: str | None
) -> None:
    (folder / "verified.json").unlink()
    if note is not None:
        (folder / "verified.json").write_text(note)
    assert open_prepared(folder, card.sha256).card == card
    flip_last_byte(folder / FILES[0])
    touch(folder / FILES[0])
    with pytest.raises(DatasetChanged):
        open_prepared(folder, card.sha256)


def test_a_folder_that_cannot_be_written_to_opens_all_the_same(
    folder: Path, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(opening, "remember_contents", read_only)
    touch(folder / FILES[0])
    assert open_prepared(folder, card.sha256).card == card


@pytest.mark.parametrize("file", [*FILES, CARD])
def test_a_missing_file_is_a_missing_dataset(folder: Path, card: Card, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(DatasetMissing, match="delete it, then upload or ask for it again"):
        open_prepared(folder, card.sha256)


def test_a_missing_folder_is_a_missing_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing):
        open_prepared(tmp_path / "nothing", "")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetMissing):
        open_prepared(tmp_path / "file", "")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in its pixels": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut in its header": lambda path: os.truncate(path, 50),
    "empty": lambda path: os.truncate(path, 0),
    "no array": lambda path: path.write_bytes(b"<html>404 Not Found</html>" * 10),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_array_is_refused(folder: Path, card: Card, file: str, damage: str) -> None:
    DAMAGES[damage](folder / file)
    with pytest.raises(DatasetChanged):
        open_prepared(folder, card.sha256)


def test_a_damaged_card_is_refused(folder: Path, card: Card) -> None:
    (folder / CARD).write_text((folder / CARD).read_text()[:-10])
    with pytest.raises(DatasetChanged):
        open_prepared(folder, card.sha256)


def resident_bytes(path: Path) -> int:
    """What of this file's mappings lies in this process's memory."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    own = [mapping for mapping in mappings if str(path) in mapping.partition("\n")[0]]
    assert own
    return sum(int(size) * 1024 for mapping in own for size in re.findall(r"^Rss:\s+(\d+) kB", mapping, re.MULTILINE))


def test_pages_hold_the_same_pictures_whatever_is_expected_and_released(folder: Path, card: Card) -> None:
    train = open_prepared(folder, card.sha256).train
    expected = source().train.images
    assert isinstance(train.pages, MappedPages)
    for start, stop in ((0, 1), (0, TRAIN), (13, 14), (TRAIN - 1, TRAIN), (7, 7)):
        train.pages.expect(start, stop)
        assert torch.equal(train.images, expected)
        train.pages.release(start, stop)
        assert torch.equal(train.images, expected)


def test_released_pictures_leave_memory(folder: Path, card: Card) -> None:
    train = open_prepared(folder, card.sha256).train
    assert train.pages is not None
    whole = train.images.nbytes
    assert int(train.images.sum()) > 0  # reads all of it
    assert resident_bytes(folder / FILES[0]) >= whole
    train.pages.release(0, TRAIN // 2)
    assert resident_bytes(folder / FILES[0]) <= 0.6 * whole
    train.pages.release(TRAIN // 2, TRAIN)
    assert resident_bytes(folder / FILES[0]) == 0
