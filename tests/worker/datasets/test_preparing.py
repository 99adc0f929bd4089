import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from worker.datasets import preparing
from worker.datasets.opening import open_prepared
from worker.datasets.preparing import prepare
from worker.datasets.source import Source, Split
from worker.jobs.errors import DatasetMissing
from worker.jobs.settings import Settings


def source() -> Source:
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        images = torch.randint(256, (n, 3, 4, 5), dtype=torch.uint8, generator=generator)
        return Split(images, torch.arange(n) % 2)

    return Source(classes=["cat", "dog"], train=split(10), test=split(4))


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setitem(preparing._READERS, "fashion-mnist", lambda _: source())
    return Settings(data_dir=tmp_path)


def test_what_was_prepared_opens_as_it_was(settings: Settings) -> None:
    opened, original = open_prepared(prepare(settings, "fashion-mnist")), source()
    assert torch.equal(opened.train.images, original.train.images)
    assert torch.equal(opened.test.labels, original.test.labels)
    assert opened.card.classes == ["cat", "dog"]
    assert (opened.card.channels, opened.card.height, opened.card.width) == (3, 4, 5)
    assert (opened.card.train_count, opened.card.test_count) == (10, 4)


def test_the_card_has_the_statistics_of_the_training_pixels(settings: Settings) -> None:
    card = open_prepared(prepare(settings, "fashion-mnist")).card
    pixels = source().train.images.double() / 255
    assert card.mean == pytest.approx(pixels.mean(dim=(0, 2, 3)).tolist())
    assert card.std == pytest.approx(pixels.std(dim=(0, 2, 3), correction=0).tolist())


def test_the_digest_is_of_the_contents(settings: Settings, tmp_path: Path) -> None:
    first = open_prepared(prepare(settings, "fashion-mnist")).card.sha256
    again = open_prepared(prepare(Settings(data_dir=tmp_path / "other"), "fashion-mnist")).card.sha256
    assert first == again
    changed = source()
    changed.test.labels[0] = 1
    folder = tmp_path / "changed"
    folder.mkdir()
    preparing.write(changed, "fashion-mnist", folder)
    assert open_prepared(folder).card.sha256 != first


def test_a_second_use_prepares_nothing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare(settings, "fashion-mnist")
    monkeypatch.setitem(preparing._READERS, "fashion-mnist", lambda _: 1 / 0)
    assert prepare(settings, "fashion-mnist") == folder


def test_a_failed_preparation_leaves_no_dataset_and_the_next_one_sweeps_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(settings, "fashion-mnist")
    datasets = settings.data_dir / "datasets"
    assert not (datasets / "fashion-mnist").exists()
    prepare(settings, "fashion-mnist")
    assert {path.name for path in datasets.iterdir()} == {"fashion-mnist", ".fashion-mnist.lock"}


def test_two_processes_prepare_once(settings: Settings) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        folders = pool.starmap(prepare, [(settings, "fashion-mnist")] * 4)
    assert len(set(folders)) == 1
    assert json.loads((folders[0] / "card.json").read_text())["train_count"] == 10


def test_writing_to_an_opened_tensor_does_not_change_the_file(settings: Settings) -> None:
    folder = prepare(settings, "fashion-mnist")
    open_prepared(folder).train.images.fill_(0)
    assert torch.equal(open_prepared(folder).train.images, source().train.images)


def test_an_absent_dataset_leaves_nothing_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Settings) -> Source:
        raise DatasetMissing

    monkeypatch.setitem(preparing._READERS, "fashion-mnist", absent)
    with pytest.raises(DatasetMissing):
        prepare(settings, "fashion-mnist")
    assert not list((settings.data_dir / "datasets").glob(".preparing-*/*"))
