"""What training pictures look like: calibrated, so that it says nothing where it cannot tell."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiny import prepare_tiny
from worker.datasets.looks import box, brightness, summarise


@pytest.fixture
def clothes(tmp_path: Path) -> Tensor:
    return prepare_tiny(tmp_path).train.images


def noise(count: int, channels: int = 3, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_light_clothes_on_black_are_told_from_their_negatives(clothes: Tensor) -> None:
    looks = summarise(clothes)
    assert [(each.change, each.power) for each in looks.directions if each.change == "inverted"] == [("inverted", 1.0)]
    assert looks.is_grey
    assert len(looks.model_dump_json()) < 8_000


def test_pictures_whose_negatives_are_alike_are_not_told() -> None:
    assert summarise(noise(500)).directions == []


def test_few_pictures_calibrate_nothing(clothes: Tensor) -> None:
    looks = summarise(clothes[:50])
    assert (looks.directions, looks.least_std, looks.extent) == ([], None, None)


@pytest.mark.parametrize("shape", [(300, 1, 1, 1), (300, 3, 20, 40), (1, 1, 5, 5), (300, 1, 3, 3)])
def test_pictures_of_any_shape_are_summarised(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    looks = summarise(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
    assert all(each.change in ("inverted", "turned_180") for each in looks.directions) or shape[2] == shape[3]


def test_colours_are_seen() -> None:
    assert not summarise(noise(300)).is_grey
    assert summarise(noise(300)[:, :1].repeat(1, 3, 1, 1)).is_grey


def test_the_same_pictures_give_the_same_looks_and_no_random_number_is_drawn(clothes: Tensor) -> None:
    before = torch.random.get_rng_state()
    assert summarise(clothes) == summarise(clothes)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_usual_extent_is_that_of_what_is_on_the_pictures() -> None:
    pictures = torch.zeros(300, 1, 20, 20, dtype=torch.uint8)
    pictures[:, :, 5:15, 7:11] = 200
    assert summarise(pictures).extent == 0.5
    assert box(brightness(pictures[:1])[0]) == (5, 15, 7, 11)
    assert box(brightness(noise(1))[0]) is None
