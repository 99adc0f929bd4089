from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import ToTensor

from tests.tiny import TRAIN, prepare_tiny
from worker.datasets.opening import Prepared
from worker.datasets.pictures import Preprocessing
from worker.training import batches
from worker.training.batches import Batches, derived_seed, shuffled_order

CPU = torch.device("cpu")
AS_TENSOR = Preprocessing(channels=1, height=28, width=28, mean=[0.0], std=[1.0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_tiny(tmp_path_factory.mktemp("data"))


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


def test_batches_walk_the_split_in_order_and_end_with_the_short_one(tiny: Prepared) -> None:
    walked = list(Batches(tiny.train, 64, AS_TENSOR, CPU))
    assert [len(y) for _, y in walked] == [64] * 7 + [TRAIN - 7 * 64]
    assert len(Batches(tiny.train, 64, AS_TENSOR, CPU)) == len(walked)
    assert torch.equal(torch.cat([y for _, y in walked]), tiny.train.labels)


def test_batches_follow_an_order(tiny: Prepared) -> None:
    order = shuffled_order(TRAIN, 0, 1)
    walked = list(Batches(tiny.train, 64, AS_TENSOR, CPU, order))
    assert torch.equal(torch.cat([y for _, y in walked]), tiny.train.labels[order])
    assert torch.equal(torch.cat([X for X, _ in walked]), tiny.train.images[order].float() / 255)


def test_pixels_equal_the_tutorials_to_tensor_to_the_bit(tiny: Prepared) -> None:
    X, _ = next(iter(Batches(tiny.train, 3, AS_TENSOR, CPU)))
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
