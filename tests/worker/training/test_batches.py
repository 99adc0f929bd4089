from pathlib import Path

import pytest
import torch
from torchvision.transforms import ToTensor

from tests.tiny import TRAIN, prepare_tiny
from worker.datasets.opening import Prepared
from worker.datasets.pictures import Preprocessing
from worker.datasets.source import Split
from worker.training import batches, order
from worker.training.batches import Batches
from worker.training.order import Order, Window, lying_order, shuffled_order, windowed_order

CPU = torch.device("cpu")
AS_TENSOR = Preprocessing(channels=1, height=28, width=28, mean=[0.0], std=[1.0])
LYING = Order(None, [])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_tiny(tmp_path_factory.mktemp("data"))


def test_batches_walk_the_split_in_order_and_end_with_the_short_one(tiny: Prepared) -> None:
    walked = list(Batches(tiny.train, 64, CPU, LYING))
    assert [len(y) for _, y in walked] == [64] * 7 + [TRAIN - 7 * 64]
    assert len(Batches(tiny.train, 64, CPU, LYING)) == len(walked)
    assert torch.equal(torch.cat([y for _, y in walked]), tiny.train.labels)
    assert torch.equal(torch.cat([X for X, _ in walked]), tiny.train.images.float() / 255)


def test_batches_follow_an_order(tiny: Prepared) -> None:
    indices = shuffled_order(TRAIN, 0, 1)
    walked = list(Batches(tiny.train, 64, CPU, Order(indices, [])))
    assert torch.equal(torch.cat([y for _, y in walked]), tiny.train.labels[indices])
    assert torch.equal(torch.cat([X for X, _ in walked]), tiny.train.images[indices].float() / 255)


def test_numbers_to_predict_stay_with_their_pictures(tiny: Prepared) -> None:
    numbers = torch.stack([torch.arange(TRAIN), torch.arange(TRAIN) / 7], dim=1)
    split, indices = Split(tiny.train.images, numbers), shuffled_order(TRAIN, 0, 1)
    for each in (LYING, Order(indices, [])):
        labels = torch.cat([y for _, y in Batches(split, 64, CPU, each)])
        assert labels.dtype == torch.float32
        assert torch.equal(labels, numbers if each is LYING else numbers[indices])


def test_pixels_equal_the_tutorials_to_tensor_to_the_bit(tiny: Prepared) -> None:
    X, _ = next(iter(Batches(tiny.train, 3, CPU, LYING)))
    for picture, raw in zip(X, tiny.train.images, strict=False):
        assert torch.equal(picture, ToTensor()(raw[0].numpy()))


def test_normalising_subtracts_the_mean_and_divides_by_the_deviation(tiny: Prepared) -> None:
    card = tiny.card
    standard = Preprocessing(channels=1, height=28, width=28, mean=card.mean, std=card.std)
    X = standard.normalise(tiny.train.images[:])
    assert X.mean().item() == pytest.approx(0, abs=1e-5)
    assert X.std().item() == pytest.approx(1, abs=1e-4)


def test_test_batches_are_larger_than_training_ones_but_bounded() -> None:
    assert batches.test_batch_size(AS_TENSOR, 64) == 4 * 2**20 // (4 * 28 * 28)
    large = Preprocessing(channels=3, height=224, width=224, mean=[0.0] * 3, std=[1.0] * 3)
    assert batches.test_batch_size(large, 64) == 64


def test_the_arrays_are_mapped_and_not_read(tiny: Prepared, tmp_path: Path) -> None:
    mapped = Path("/proc/self/maps").read_text()
    assert "train_images.npy" in mapped


Block = tuple[int, int]


class Pages:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Block]] = []
        self.held: set[Block] = set()

    def expect(self, start: int, stop: int) -> None:
        self.calls.append(("expect", (start, stop)))
        self.held.add((start, stop))

    def release(self, start: int, stop: int) -> None:
        self.calls.append(("release", (start, stop)))
        self.held.discard((start, stop))


def calls(what: str, window: Window) -> list[tuple[str, Block]]:
    return [(what, block) for block in window.blocks]


@pytest.fixture
def windowed(monkeypatch: pytest.MonkeyPatch) -> Order:
    """Of the tiny split: blocks of 10 pictures, 12 of them in a window."""
    monkeypatch.setattr(order, "_BLOCK_BYTES", 10 * 28 * 28)
    monkeypatch.setattr(order, "_WINDOW_BLOCKS", 12)
    return windowed_order(TRAIN, 28 * 28, 0, 1)


def test_a_window_is_read_ahead_while_one_is_at_work_and_then_released(tiny: Prepared, windowed: Order) -> None:
    first, second, third, fourth, last = windowed.windows
    pages = Pages()
    walk = iter(Batches(Split(tiny.train.images, tiny.train.labels, pages), 60, CPU, windowed))
    told = []
    for _ in walk:
        told.append(pages.calls)
        pages.calls = []
    assert told == [
        calls("expect", first) + calls("expect", second),
        [],
        calls("release", first) + calls("expect", third),
        [],
        calls("release", second) + calls("expect", fourth),
        [],
        calls("release", third) + calls("expect", last),
        [],
        calls("release", fourth),
    ]
    assert pages.calls == calls("release", last)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 120])
@pytest.mark.parametrize("shuffled", [True, False])
def test_each_batchs_pictures_are_held_and_in_the_end_none_are(
    tiny: Prepared, windowed: Order, monkeypatch: pytest.MonkeyPatch, batch_size: int, shuffled: bool
) -> None:
    monkeypatch.setattr(order, "_WHOLE_BYTES", 0)
    chosen = windowed if shuffled else lying_order(tiny.train)
    indices = torch.arange(TRAIN) if chosen.indices is None else chosen.indices
    pages = Pages()
    walked = Batches(Split(tiny.train.images, tiny.train.labels, pages), batch_size, CPU, chosen)
    for number, _ in enumerate(walked):
        held = {picture for block in pages.held for picture in range(*block)}
        assert held.issuperset(indices[number * batch_size : (number + 1) * batch_size].tolist())
        assert len(held) <= 2 * 120
    assert pages.held == set()
    released = [block for what, block in pages.calls if what == "release"]
    assert released == [block for window in chosen.windows for block in window.blocks]


@pytest.mark.parametrize("batch_size", [7, 64, 250, 1000])
def test_batches_are_the_same_with_pages_and_without(tiny: Prepared, windowed: Order, batch_size: int) -> None:
    def walked(split: Split) -> list[torch.Tensor]:
        return [tensor for batch in Batches(split, batch_size, CPU, windowed) for tensor in batch]

    images, labels = tiny.train.images, tiny.train.labels
    expected = walked(Split(images, labels))
    assert tiny.train.pages is not None
    for split in (tiny.train, Split(images, labels, Pages())):
        assert all(map(torch.equal, walked(split), expected))
        assert len(walked(split)) == len(expected)


def test_batches_larger_than_windows_expect_none_that_is_done_with(tiny: Prepared, windowed: Order) -> None:
    pages = Pages()
    list(Batches(Split(tiny.train.images, tiny.train.labels, pages), 490, CPU, windowed))
    assert pages.held == set()
    done: set[Block] = set()
    for what, block in pages.calls:
        assert block not in done
        if what == "release":
            done.add(block)
