"""The input doctor: says what is odd, mends it when asked, and leaves ordinary pictures alone."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.tiny import prepare_tiny
from tests.worker.datasets.test_looks import lit_from_above
from tests.worker.inference.making import checkpoint, place
from worker.datasets.looks import Looks, summarise
from worker.datasets.opening import Prepared
from worker.datasets.pictures import plain
from worker.inference.answers import examined, look
from worker.inference.doctor import Doctor
from worker.inference.models import Ready
from worker.inference.parity import png


@pytest.fixture
def clothes(tmp_path: Path) -> Prepared:
    return prepare_tiny(tmp_path)


@pytest.fixture
def doctor(clothes: Prepared) -> Doctor:
    return Doctor(summarise(clothes.train.images), plain(1, 28, 28))


@pytest.fixture
def ready(tmp_path: Path, clothes: Prepared) -> Ready:
    saved = checkpoint(tmp_path, clothes.card, model={"name": "mlp", "hidden": [4]})
    return place(tmp_path).models.get(saved.path, saved.sha256)


def warned(doctor: Doctor, images: Tensor, sentence: str) -> float:
    """The share of pictures that are warned of by this sentence."""
    told = [doctor.warnings(images[index]) for index in doctor.suspects(images)]
    return sum(any(sentence in each for each in warnings) for warnings in told) / len(images)


def test_negatives_are_told_and_pictures_as_they_should_be_are_not(doctor: Doctor, clothes: Prepared) -> None:
    images = clothes.test.images
    assert warned(doctor, 255 - images, "exchanged") > 0.95
    assert warned(doctor, images, "") < 0.05


def test_a_negative_is_mended(doctor: Doctor, clothes: Prepared) -> None:
    for image in clothes.test.images[:20]:
        mended, done = doctor.mended(255 - image)
        assert (torch.equal(mended, image), done) == (True, ["Light and dark were exchanged."])
        untouched, done = doctor.mended(image)
        assert (torch.equal(untouched, image), done) == (True, [])


@pytest.fixture
def upright() -> tuple[Doctor, Tensor]:
    """Of pictures that are light above; and pictures that it has not seen."""
    pictures = lit_from_above(700)
    return Doctor(summarise(pictures[:600]), plain(1, 24, 24)), pictures[600:]


@pytest.mark.parametrize(
    ("quarters", "warning", "done"),
    [
        (1, "It looks turned to the left.", "It was turned a quarter to the right."),
        (2, "It looks upside down.", "It was turned upside down."),
        (3, "It looks turned to the right.", "It was turned a quarter to the left."),
    ],
)
def test_a_turned_picture_is_told_and_turned_back(
    upright: tuple[Doctor, Tensor], quarters: int, warning: str, done: str
) -> None:
    doctor, pictures = upright
    turned = torch.rot90(pictures, quarters, (2, 3)).contiguous()
    assert warned(doctor, pictures, "") == 0
    assert warned(doctor, turned, warning) > 0.95
    mended, said = doctor.mended(turned[0])
    assert (torch.equal(mended, pictures[0]), said) == (True, [done])


def test_turned_clothes_are_not_told_to_be_negatives(doctor: Doctor, clothes: Prepared) -> None:
    for quarters in (1, 2, 3):
        turned = torch.rot90(clothes.test.images, quarters, (2, 3)).contiguous()
        assert warned(doctor, turned, "exchanged") < 0.03


def test_a_set_of_faint_pictures_is_not_told_to_be_empty() -> None:
    faint = 100 + lit_from_above(700) // 64  # of four brightnesses
    doctor = Doctor(summarise(faint[:600]), plain(1, 24, 24))
    assert warned(doctor, faint[600:], "hardly anything") == 0


def test_colours_are_told_where_three_channels_were_always_equal() -> None:
    doctor = Doctor(summarise(lit_from_above(300).repeat(1, 3, 1, 1)), plain(3, 24, 24))
    picture = lit_from_above(1).repeat(1, 3, 1, 1)
    assert doctor.suspects(picture) == []
    picture[:, 0, 5:15] = 255 - picture[:, 0, 5:15]
    assert doctor.suspects(picture) == [0]
    assert any("colours" in each for each in doctor.warnings(picture[0]))


def test_a_small_piece_of_clothing_in_a_large_border_is_told_by_the_batch(doctor: Doctor, clothes: Prepared) -> None:
    small = torch.nn.functional.interpolate(clothes.test.images.float(), 10, mode="area").to(torch.uint8)
    laid = torch.nn.functional.pad(small, (3, 15, 10, 8))
    assert warned(doctor, laid, "small in a large empty border") > 0.9


def test_hardly_anything_on_it_is_told(doctor: Doctor) -> None:
    blank = torch.full((1, 1, 28, 28), 7, dtype=torch.uint8)
    assert doctor.suspects(blank) == [0]
    assert doctor.warnings(blank[0]) == ["There is hardly anything on it: nearly all of it has one brightness."]


@pytest.mark.parametrize(
    ("height", "width", "is_told"), [(28, 28, False), (30, 50, False), (28, 56, True), (300, 10, True)]
)
def test_a_shape_that_loses_half_of_the_picture_is_told(doctor: Doctor, height: int, width: int, is_told: bool) -> None:
    assert bool(doctor.of_shape(height, width)) == is_told


def test_a_picture_of_another_shape_is_laid_on_its_own_ground(doctor: Doctor, clothes: Prepared) -> None:
    wide = torch.nn.functional.pad(clothes.test.images[1], (40, 40, 0, 0))
    mended, done = doctor.mended(wide)
    assert mended.shape == (1, 28, 28)
    assert done == ["It was laid on a ground of its border's colour, so that nothing is cut away."]
    assert mended.float().sum() > 0


@pytest.mark.parametrize("shape", [(1, 30_000, 1), (1, 1, 30_000), (1, 1, 1)])
def test_no_shape_takes_all_memory(doctor: Doctor, shape: tuple[int, int, int]) -> None:
    assert doctor.mended(torch.zeros(shape, dtype=torch.uint8))[0].shape == (1, 28, 28)


def test_what_is_small_in_a_large_border_is_cut_out() -> None:
    pictures = torch.zeros(300, 1, 20, 20, dtype=torch.uint8)
    pictures[:, :, 3:17, 3:17] = torch.arange(300).view(-1, 1, 1, 1).remainder(100).add(120).to(torch.uint8)
    doctor = Doctor(summarise(pictures), plain(1, 20, 20))
    large = torch.zeros(1, 200, 200, dtype=torch.uint8)
    large[:, 50:64, 90:104] = 180
    mended, done = doctor.mended(large)
    assert done == ["It was cut to what is on it."]
    assert (mended - pictures[60]).abs().float().mean() < 10
    small = torch.nn.functional.interpolate(large[None].float(), 20).to(torch.uint8)
    assert "What is on it is small in a large empty border." in doctor.warnings(small[0])


def test_colours_are_told_where_the_training_was_grey(ready: Ready) -> None:
    colours = np.zeros((28, 28, 3), dtype=np.uint8)
    colours[4:20, 4:20] = (250, 10, 10)
    grey = np.repeat(colours.max(axis=2, keepdims=True), 3, axis=2)
    for pixels, is_told in ((colours, True), (grey, False)):
        for kind in ("PNG", "JPEG"):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, kind)
            told = look(ready, file.getvalue(), 10_000, auto_fix=False).warnings
            assert any("colours" in each for each in told) == is_told


def test_a_checkpoint_of_before_warns_of_nothing_that_it_cannot_know(clothes: Prepared) -> None:
    doctor = Doctor(None, plain(1, 28, 28))
    images = torch.cat([clothes.test.images, 255 - clothes.test.images])
    assert warned(doctor, images, "") == 0
    assert doctor.mended(255 - images[0])[1] == []


def test_the_answers_carry_what_was_found(ready: Ready, clothes: Prepared) -> None:
    files = [png(clothes.test.images[0]), png(torch.zeros(1, 28, 28, dtype=torch.uint8))]
    seen = [look(ready, file, 10_000, auto_fix=False) for file in files]
    told = examined(ready, torch.stack([each.pixels for each in seen]), seen)
    assert [bool(each.warnings) for each in told] == [False, True]


def test_looks_of_a_newer_epochd_are_read_without_what_is_not_known() -> None:
    assert Looks.model_validate({"is_grey": True, "directions": [], "more": 1}).is_grey
