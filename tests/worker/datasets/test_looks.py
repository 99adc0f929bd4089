"""What training pictures look like: calibrated, so that it says nothing where it cannot tell."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.tiny import prepare_tiny
from worker.datasets.looks import TURNS, Upright, box, brightness, summarise


@pytest.fixture
def clothes(tmp_path: Path) -> Tensor:
    return prepare_tiny(tmp_path).train.images


def noise(count: int, channels: int = 3, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def test_light_clothes_on_black_are_told_from_their_negatives(clothes: Tensor) -> None:
    looks = summarise(clothes)
    (inverted,) = looks.directions
    assert inverted.change == "inverted"
    assert inverted.power > 0.98
    assert looks.is_grey
    assert len(looks.model_dump_json()) < 8_000


def lit_from_above(count: int, height: int = 24, width: int = 24) -> Tensor:
    """Light above, dark below, with noise: each turn shows."""
    generator = torch.Generator().manual_seed(1)
    light = torch.linspace(230, 30, height).view(1, 1, height, 1) + torch.linspace(0, 20, width)
    return (light + 20 * torch.randn(count, 1, height, width, generator=generator)).clamp(0, 255).to(torch.uint8)


def test_turned_pictures_are_told_where_all_have_one_way_up() -> None:
    looks = summarise(lit_from_above(600))
    assert looks.upright is not None
    assert looks.upright.powers.keys() == TURNS.keys()
    assert min(looks.upright.powers.values()) > 0.98
    assert len(looks.model_dump_json()) < 8_000


def test_pictures_that_are_not_square_are_told_upside_down_only() -> None:
    looks = summarise(lit_from_above(600, width=40))
    assert looks.upright is not None
    assert looks.upright.powers.keys() == {"turned_180"}


def test_pictures_whose_negatives_are_alike_are_not_told() -> None:
    looks = summarise(noise(500))
    assert (looks.directions, looks.upright, looks.extent) == ([], None, None)


def test_kinds_that_do_not_fit_their_weights_are_refused() -> None:
    looks = summarise(lit_from_above(300))
    assert looks.upright is not None
    fields = looks.upright.model_dump()
    wrongs: list[dict[str, object]] = [
        {"weights": fields["weights"][:-4]},
        {"weights": "?"},
        {"offsets": []},
        {"unit": float("nan")},
    ]
    for wrong in wrongs:
        with pytest.raises(ValidationError):
            Upright.model_validate({**fields, **wrong})


def test_few_pictures_calibrate_nothing(clothes: Tensor) -> None:
    looks = summarise(clothes[:50])
    assert (looks.directions, looks.upright, looks.least_std, looks.extent) == ([], None, None, None)


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
