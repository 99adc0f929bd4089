import io
import multiprocessing
import os
import signal
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from worker.datasets import catalogue, opening, preparing
from worker.datasets.opening import CARD, open_prepared
from worker.datasets.preparing import prepare
from worker.datasets.source import Source, Split, Watch
from worker.jobs.card import FILES, Card
from worker.jobs.errors import BadArchive, DatasetInvalid, DatasetMissing
from worker.jobs.form import Form
from worker.jobs.processes import Stopped
from worker.jobs.settings import Settings
from worker.jobs.tables import Dataset

# pytest's process may have threads, of torch or of xdist; one that prepares has none.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

ID = "0123456789abcdef01234567"


def built_in(name: str = "mnist") -> Dataset:
    return Dataset(id="f" * 24, name=name, version=1, created_at=datetime.now(UTC))


def uploaded(settings: Settings, *, archive: bytes | None = None, **form: Any) -> Dataset:
    """A row whose archive lies where uploads lie."""
    path = settings.data_dir / "uploads" / f"{ID}.archive"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zipped() if archive is None else archive)
    given = Form(name="mine", **form).model_dump(mode="json")
    return Dataset(id=ID, name="mine", version=3, form=given, created_at=datetime.now(UTC))


def zipped() -> bytes:
    """Two classes of five pictures, each of a shade of its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(10):
            picture = io.BytesIO()
            Image.new("L", (6, 5), 10 * number).save(picture, "PNG")
            archive.writestr(f"{'cat' if number % 2 else 'dog'}/{number}.png", picture.getvalue())
    return buffer.getvalue()


def source() -> Source:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(256, (n, 3, 4, 5), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(n) % 2)

    return Source(classes=["cat", "dog"], train=split(10), test=split(5))


def silent(step: str, done: int, total: int) -> None:
    """Watches and says nothing."""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(catalogue, "read", lambda *_: source())
    return Settings(data_dir=tmp_path / "data")


def prepared(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.data_dir / "datasets").iterdir())


def test_a_built_in_dataset_opens_as_its_reader_gave_it(settings: Settings) -> None:
    card = prepare(settings, built_in(), silent)
    opened, original = open_prepared(settings.data_dir / "datasets" / "mnist-v1", card.sha256), source()
    assert opened.card == card
    for split, expected in ((opened.train, original.train), (opened.test, original.test)):
        assert torch.equal(split.images, expected.images)
        assert torch.equal(split.labels, expected.labels)


def test_the_card_tells_what_a_built_in_dataset_holds(settings: Settings) -> None:
    card = prepare(settings, built_in(), silent)
    assert (card.name, card.classes) == ("mnist", ["cat", "dog"])
    assert (card.channels, card.height, card.width) == (3, 4, 5)
    assert (card.train_count, card.test_count) == (10, 5)
    assert (card.train_counts, card.test_counts) == ([5, 5], [3, 2])
    pixels = source().train.images.double() / 255
    assert card.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert card.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_the_reader_is_asked_for_the_dataset_and_progress_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, told = [], []

    def read(given: Settings, name: str, scratch: Path, watch: Watch) -> Source:
        assert scratch.parent == settings.data_dir / "datasets"
        asked.append((given, name))
        watch("fetching", 0, 0)
        return source()

    monkeypatch.setattr(catalogue, "read", read)
    monkeypatch.setattr(preparing, "_CHUNK", 4)
    prepare(settings, built_in("kmnist"), lambda *each: told.append(each))
    assert asked == [(settings, "kmnist")]
    assert told == [("fetching", 0, 0), *(("writing", done, 15) for done in (4, 8, 10, 14, 15))]


def test_the_digest_is_of_the_contents_however_they_are_written(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(settings, built_in(), silent).sha256
    monkeypatch.setattr(preparing, "_CHUNK", 3)
    assert prepare(Settings(data_dir=tmp_path / "other"), built_in(), silent).sha256 == first
    changed = source()
    changed.test.labels[0] = 1
    monkeypatch.setattr(catalogue, "read", lambda *_: changed)
    assert prepare(Settings(data_dir=tmp_path / "changed"), built_in(), silent).sha256 != first


def test_an_uploaded_dataset_lies_under_its_id_and_opens(settings: Settings) -> None:
    card = prepare(settings, uploaded(settings), silent)
    assert prepared(settings) == [ID]
    opened = open_prepared(settings.data_dir / "datasets" / ID, card.sha256)
    assert opened.card == card
    assert (card.name, card.classes, card.train_count, card.test_count) == ("mine", ["cat", "dog"], 8, 2)
    shades = torch.cat([opened.train.images, opened.test.images])
    labels = torch.cat([opened.train.labels, opened.test.labels])
    assert shades.shape == (10, 1, 5, 6)
    assert sorted(zip(shades[:, 0, 0, 0].tolist(), labels.tolist(), strict=True)) == [
        (10 * number, (number + 1) % 2) for number in range(10)
    ]


def test_an_uploaded_datasets_form_is_followed(settings: Settings) -> None:
    form: dict[str, Any] = {"image_size": [7, 8], "channels": "colour", "test_fraction": 0.4}
    card = prepare(settings, uploaded(settings, **form), silent)
    assert (card.channels, card.height, card.width, card.test_count) == (3, 7, 8, 4)


BOTH = pytest.mark.parametrize("row", [lambda _: built_in(), uploaded], ids=["built in", "uploaded"])


@BOTH
def test_the_folder_appears_whole(settings: Settings, row: Callable[[Settings], Dataset]) -> None:
    seen: list[list[str]] = []
    dataset = row(settings)
    prepare(settings, dataset, lambda *_: seen.append(prepared(settings)))
    (name,) = prepared(settings)
    assert name in ("mnist-v1", ID)
    assert seen
    assert all(each[0].startswith(f".preparing-{name}-") and len(each) == 1 for each in seen)
    files = {path.name for path in (settings.data_dir / "datasets" / name).iterdir()}
    assert files == {*FILES, CARD, "verified.json"}


def test_opening_what_was_just_prepared_reads_nothing_through(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = prepare(settings, built_in(), silent)
    monkeypatch.setattr(opening, "hashlib", None)
    assert open_prepared(settings.data_dir / "datasets" / "mnist-v1", card.sha256).card == card


def stop_at(step: str) -> Watch:
    def watch(at: str, done: int, total: int) -> None:
        if at == step:
            raise Stopped

    return watch


@pytest.mark.parametrize(
    ("form", "archive", "watch", "error"),
    [
        ({}, b"no archive", silent, BadArchive),
        ({}, zipped()[:-100], silent, BadArchive),
        ({"strict": True, "image_size": 9}, None, silent, DatasetInvalid),  # the pictures are smaller
        ({}, None, stop_at("unpacking"), Stopped),
        ({}, None, stop_at("decoding"), Stopped),
    ],
)
def test_an_upload_that_fails_leaves_nothing(
    settings: Settings, form: dict[str, Any], archive: bytes | None, watch: Watch, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        prepare(settings, uploaded(settings, archive=archive, **form), watch)
    assert prepared(settings) == []
    prepare(settings, uploaded(settings), silent)
    assert prepared(settings) == [ID]


def missing(*_: object) -> Source:
    raise DatasetMissing("MNIST was not found.")


def test_a_built_in_dataset_that_is_absent_leaves_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "read", missing)
    with pytest.raises(DatasetMissing):
        prepare(settings, built_in(), silent)
    assert prepared(settings) == []


def test_a_disk_that_fails_leaves_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", fail)
        with pytest.raises(OSError, match="no space left"):
            prepare(settings, built_in(), silent)
    assert prepared(settings) == []
    prepare(settings, built_in(), silent)
    assert prepared(settings) == ["mnist-v1"]


def die_writing(step: str, done: int, total: int) -> None:
    if step == "writing":
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_one_left_is_swept_by_the_next(settings: Settings) -> None:
    killed = multiprocessing.get_context("fork").Process(target=prepare, args=(settings, built_in(), die_writing))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    (left_over,) = prepared(settings)
    assert left_over.startswith(".preparing-mnist-v1-")
    prepare(settings, built_in(), silent)
    assert prepared(settings) == ["mnist-v1"]


def test_only_left_overs_of_the_same_dataset_are_swept(settings: Settings) -> None:
    folder = settings.data_dir / "datasets"
    others = [".preparing-cifar100-v1-x", ".preparing-cifar10-v10-x", "cifar100-v1", "notes.txt"]
    for name in (*others, ".preparing-cifar10-v1-x", ".preparing-cifar10-v1-y"):
        (folder / name).mkdir(parents=True)
        (folder / name / "train_images.npy").touch()
    prepare(settings, built_in("cifar10"), silent)
    assert prepared(settings) == sorted([*others, "cifar10-v1"])


@BOTH
def test_a_folder_that_is_whole_already_is_adopted(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, row: Callable[[Settings], Dataset]
) -> None:
    dataset = row(settings)
    card = prepare(settings, dataset, silent)
    (name,) = prepared(settings)
    folder = settings.data_dir / "datasets" / name
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(catalogue, "read", missing)
    (settings.data_dir / "uploads" / f"{ID}.archive").unlink(missing_ok=True)
    assert prepare(settings, dataset, silent) == card
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert Card.model_validate_json((folder / CARD).read_text()) == card


def test_a_folder_without_a_card_is_made_anew(settings: Settings) -> None:
    folder = settings.data_dir / "datasets" / "mnist-v1"
    folder.mkdir(parents=True)
    (folder / FILES[0]).write_bytes(b"half")
    (folder / "something else").touch()
    card = prepare(settings, built_in(), silent)
    assert torch.equal(open_prepared(folder, card.sha256).train.images, source().train.images)
    assert not (folder / "something else").exists()
