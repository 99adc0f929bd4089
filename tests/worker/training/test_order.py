import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from worker.datasets.source import Split
from worker.training import order
from worker.training.order import Order, derived_seed, epoch_order, lying_order, shuffled_order, windowed_order

PICTURE_BYTES = 3 * 4 * 5
BLOCK, WINDOW = 10, 4  # pictures in a block, blocks in a window


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_BLOCK_BYTES", BLOCK * PICTURE_BYTES + 7)
    monkeypatch.setattr(order, "_WINDOW_BLOCKS", WINDOW)


@pytest.fixture
def small_memory(small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split of more than 100 pictures is not to be in memory as a whole."""
    monkeypatch.setattr(order, "_WHOLE_BYTES", 100 * PICTURE_BYTES)


def split(samples: int) -> Split:
    return Split(torch.zeros(samples, 3, 4, 5, dtype=torch.uint8), torch.zeros(samples, dtype=torch.int64))


def indices(of: Order) -> list[int]:
    assert of.indices is not None
    assert of.indices.dtype == torch.int64
    listed: list[int] = of.indices.tolist()
    return listed


@pytest.mark.parametrize("epoch", [1, 2, 7])
def test_the_shuffled_order_is_that_of_a_stock_dataloader(epoch: int) -> None:
    generator = torch.Generator().manual_seed(derived_seed(3, epoch, "order"))
    loader = DataLoader(TensorDataset(torch.arange(1000)), batch_size=None, shuffle=True, generator=generator)
    assert [int(row[0]) for row in loader] == shuffled_order(1000, seed=3, epoch=epoch).tolist()


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = {tuple(shuffled_order(50, seed, epoch).tolist()) for seed in (0, 1) for epoch in (1, 2, 3)}
    assert len(orders) == 6


def test_derived_seeds_are_pinned_because_resumed_jobs_depend_on_them() -> None:
    assert derived_seed(0, 1, "order") == 7869624158837258281
    assert all(0 <= derived_seed(seed, 1, "step") < 2**63 for seed in range(100))


@given(
    samples=st.integers(1, 500),
    picture_bytes=st.integers(1, 2**21),
    seed=st.integers(0, 2**31),
    epoch=st.integers(1, 9),
)
@settings(deadline=None)
def test_a_windowed_order_sees_each_picture_once_whatever_its_size(
    samples: int, picture_bytes: int, seed: int, epoch: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_WINDOW_BLOCKS", WINDOW)
        windowed = windowed_order(samples, picture_bytes, seed, epoch)
    assert sorted(indices(windowed)) == list(range(samples))
    assert_windows_fit(windowed, samples)


def assert_windows_fit(windowed: Order, samples: int) -> None:
    """They partition the order, their blocks partition the pictures, and each has only pictures of its blocks."""
    order_indices = indices(windowed)
    assert [window.start for window in windowed.windows] == [0, *(window.stop for window in windowed.windows[:-1])]
    assert windowed.windows[-1].stop == samples
    blocks = sorted(block for window in windowed.windows for block in window.blocks)
    assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
    assert blocks[-1][1] == samples
    for window in windowed.windows:
        lying = [picture for start, stop in window.blocks for picture in range(start, stop)]
        assert sorted(order_indices[window.start : window.stop]) == lying  # the blocks come as they lie
        assert len(window.blocks) <= WINDOW


@pytest.mark.usefixtures("small_blocks")
def test_windows_are_of_some_blocks_from_anywhere() -> None:
    windowed = windowed_order(1003, PICTURE_BYTES, 0, 1)
    assert [len(window.blocks) for window in windowed.windows] == [WINDOW] * 25 + [1]
    lengths = [stop - start for window in windowed.windows for start, stop in window.blocks]
    assert sorted(lengths) == [3] + [BLOCK] * 100
    assert any(window.blocks[-1][1] - window.blocks[0][0] > 500 for window in windowed.windows)
    for window in windowed.windows[:-1]:  # and within a window all are mixed, not only the blocks
        seen = indices(windowed)[window.start : window.stop]
        assert len({picture // BLOCK for picture in seen[:BLOCK]}) > 1


@pytest.mark.usefixtures("small_blocks")
def test_a_windowed_order_repeats_and_differs_by_epoch_and_seed() -> None:
    def made(seed: int, epoch: int) -> tuple[list[int], frozenset[frozenset[tuple[int, int]]]]:
        windowed = windowed_order(400, PICTURE_BYTES, seed, epoch)
        return indices(windowed), frozenset(frozenset(window.blocks) for window in windowed.windows)

    assert made(0, 1) == made(0, 1)
    several = [made(seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3)]
    assert len({tuple(seen) for seen, _ in several}) == 6
    assert len({windows for _, windows in several}) == 6  # not the same windows in another order


def test_a_windowed_order_is_pinned_because_resumed_jobs_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "_WINDOW_BLOCKS", 2)
    windowed = windowed_order(10, 2**19, 0, 1)
    assert indices(windowed) == [3, 2, 4, 5, 6, 1, 7, 0, 8, 9]
    assert [(window.start, window.stop) for window in windowed.windows] == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.usefixtures("small_blocks")
def test_pictures_larger_than_a_block_are_blocks_of_their_own() -> None:
    windowed = windowed_order(6, 1000 * PICTURE_BYTES, 0, 1)
    assert [len(window.blocks) for window in windowed.windows] == [WINDOW, 2]
    assert all(stop - start == 1 for window in windowed.windows for start, stop in window.blocks)


@pytest.mark.usefixtures("small_memory")
def test_a_split_that_may_be_in_memory_is_shuffled_as_a_whole() -> None:
    small = epoch_order(split(100), 5, 2)
    assert indices(small) == shuffled_order(100, 5, 2).tolist()
    assert small.windows == []


@pytest.mark.usefixtures("small_memory")
def test_a_larger_split_is_shuffled_in_windows() -> None:
    large, expected = epoch_order(split(101), 5, 2), windowed_order(101, PICTURE_BYTES, 5, 2)
    assert indices(large) == indices(expected)
    assert large.windows == expected.windows
    assert len(large.windows) == 3


@pytest.mark.usefixtures("small_memory")
def test_pictures_as_they_lie_have_windows_where_they_are_more_than_one() -> None:
    one = WINDOW * (BLOCK * PICTURE_BYTES + 7) // PICTURE_BYTES
    assert lying_order(split(one)) == Order(None, [])
    assert len(lying_order(split(one + 1)).windows) == 2
    large = lying_order(split(101))
    assert large.indices is None
    step = WINDOW * (BLOCK * PICTURE_BYTES + 7) // PICTURE_BYTES
    ends = [(0, step), (step, 2 * step), (2 * step, 101)]
    assert [(window.start, window.stop) for window in large.windows] == ends
    assert [window.blocks for window in large.windows] == [[end] for end in ends]
