from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from worker.jobs.spec import Augmentation
from worker.training import augmentation
from worker.training.augmentation import (
    Augment,
    augments,
    brightness,
    contrast,
    flip,
    mix,
    rotate,
    saturation,
    shift,
)

CLASSES = 10
ALONE: list[dict[str, Any]] = [
    {"flip": "horizontal"},
    {"flip": "vertical"},
    {"flip": "both"},
    {"rotate": 30.0},
    {"shift": 3},
    {"brightness": 0.5},
    {"contrast": 0.5},
    {"saturation": 0.5},
    {"cutout": 4},
    {"mixup": 0.4},
    {"cutmix": 1.0},
]
MOST = {key: value for fields in ALONE for key, value in fields.items()}  # all there is at once
ONE_BY_ONE = pytest.mark.parametrize("fields", ALONE, ids=lambda fields: str(next(iter(fields.items()))))
COLOUR_AND_GREY = pytest.mark.parametrize("channels", [1, 3])


def augment(seed: int = 0, epoch: int = 1, classes: int | None = CLASSES, **fields: Any) -> Augment:
    return Augment(Augmentation(**fields), classes=classes, seed=seed, epoch=epoch)


def pictures(n: int = 16, channels: int = 3, height: int = 9, width: int = 12, seed: int = 0) -> Tensor:
    """With no black pixel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, height, width, generator=generator) * 0.9 + 0.1


def classes_of(n: int = 16) -> Tensor:
    return torch.arange(n) * 7 % CLASSES


def numbers(n: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def ramps(n: int, channels: int = 1, height: int = 9, width: int = 12) -> Tensor:
    """Picture i is 1 + i plus a fraction that is another one for each pixel, so that a pixel says where it is from."""
    size = channels * height * width
    fractions = (torch.arange(size) / (2 * size)).view(1, channels, height, width)
    return 1 + torch.arange(n).view(-1, 1, 1, 1) + fractions


def test_it_is_on_as_soon_as_one_thing_is() -> None:
    assert not augments(Augmentation())
    assert not augments(Augmentation(flip="none", rotate=0.0, cutout=0))
    assert all(augments(Augmentation(**fields)) for fields in ALONE)


def test_without_any_change_a_batch_stays_as_it_is() -> None:
    X, y = pictures(), classes_of()
    changed, targets = augment()(X, y)
    assert torch.equal(changed, X)
    assert targets is y


@ONE_BY_ONE
def test_the_same_seed_and_epoch_give_the_same_bits(fields: dict[str, Any]) -> None:
    def run(seed: int, epoch: int) -> list[Tensor]:
        changes = augment(seed, epoch, **fields)
        return [changes(pictures(n), classes_of(n))[0] for n in (16, 16, 5)]

    first = run(3, 2)
    assert all(torch.equal(one, other) for one, other in zip(first, run(3, 2), strict=True))
    assert not torch.equal(first[0], first[1])  # each batch has changes of its own
    assert not torch.equal(first[0], run(3, 1)[0])
    assert not torch.equal(first[0], run(4, 2)[0])


def test_what_a_batch_gets_does_not_depend_on_the_pictures_before() -> None:
    after_some, after_others = augment(**MOST), augment(**MOST)
    after_some(pictures(11), classes_of(11))
    after_others(pictures(11, seed=1).sqrt(), classes_of(11) * 0)
    for one, other in zip(after_some(pictures(), classes_of()), after_others(pictures(), classes_of()), strict=True):
        assert torch.equal(one, other)


@ONE_BY_ONE
def test_the_global_generators_are_left_alone(fields: dict[str, Any]) -> None:
    before, numpy_before = torch.get_rng_state(), str(np.random.get_state(legacy=False))
    augment(**fields)(pictures(), classes_of())
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state(legacy=False)) == numpy_before


@ONE_BY_ONE
@pytest.mark.parametrize("is_regression", [False, True])
@pytest.mark.parametrize("n", [1, 2, 16])
@COLOUR_AND_GREY
def test_shape_type_and_range_stay_and_inputs_are_not_modified(
    channels: int, n: int, is_regression: bool, fields: dict[str, Any]
) -> None:
    X, y = pictures(n, channels), numbers(n) if is_regression else classes_of(n)
    X_before, y_before = X.clone(), y.clone()
    changed, targets = augment(classes=None if is_regression else CLASSES, **fields)(X, y)
    assert (changed.shape, changed.dtype, changed.device) == (X.shape, X.dtype, X.device)
    assert changed.min() >= 0
    assert changed.max() <= 1 + 1e-6
    assert torch.equal(X, X_before)
    assert torch.equal(y, y_before)
    if "mixup" not in fields and "cutmix" not in fields:
        assert targets is y
    else:
        assert targets.shape == (y.shape if is_regression else (n, CLASSES))
        assert targets.dtype == torch.float32


@ONE_BY_ONE
def test_each_picture_has_its_own_changes(fields: dict[str, Any]) -> None:
    X = pictures(1).expand(32, -1, -1, -1)
    if "mixup" in fields or "cutmix" in fields:
        X = torch.cat((X[:16], 1 - X[16:]))
    changed, _ = augment(**fields)(X, classes_of(32))
    assert len({tuple(picture.flatten().tolist()) for picture in changed}) > (1 if "flip" in fields else 8)


@ONE_BY_ONE
def test_everything_happens_on_the_pictures_device_and_nothing_is_read_back(fields: dict[str, Any]) -> None:
    """A tensor of the meta device has no numbers, and refuses to meet one of the CPU."""
    X, y = pictures().to("meta"), classes_of().to("meta")
    changed, targets = augment(**fields)(X, y)
    assert (changed.device.type, targets.device.type) == ("meta", "meta")


def test_channels_last_pictures_get_the_same_changes() -> None:
    X, y = pictures(), classes_of()
    plain, targets = augment(**MOST)(X, y)
    other, other_targets = augment(**MOST)(X.contiguous(memory_format=torch.channels_last), y)
    assert torch.allclose(plain, other, atol=1e-5)
    assert torch.equal(targets, other_targets)


@given(
    n=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    pixels=st.integers(1, 512),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_pictures_of_any_size_can_be_changed(
    n: int, channels: int, height: int, width: int, pixels: int, seed: int
) -> None:
    changes = augment(seed, **MOST | {"shift": pixels, "cutout": pixels})
    changed, targets = changes(pictures(n, channels, height, width), classes_of(n))
    assert changed.shape == (n, channels, height, width)
    assert torch.isfinite(changed).all()
    assert torch.allclose(targets.sum(1), torch.ones(n))


@pytest.mark.parametrize("dim", [2, 3])
@COLOUR_AND_GREY
def test_a_flip_mirrors_the_chosen_pictures_and_is_its_own_inverse(channels: int, dim: int) -> None:
    X, chosen = pictures(channels=channels), classes_of() > 4
    flipped = flip(X, chosen, dim)
    for i, is_chosen in enumerate(chosen.tolist()):
        assert torch.equal(flipped[i], X[i].flip(dim - 1) if is_chosen else X[i])
    assert torch.equal(flip(flipped, chosen, dim), X)


@pytest.mark.parametrize(
    ("which", "dims"), [("horizontal", [(), (3,)]), ("vertical", [(), (2,)]), ("both", [(), (3,), (2,), (2, 3)])]
)
def test_about_every_second_picture_is_flipped(which: str, dims: list[tuple[int, ...]]) -> None:
    X = pictures(2000, 1, 3, 4)
    changed, _ = augment(flip=which)(X, classes_of(2000))
    shares = [float((changed == X.flip(dim)).all(3).all(2).float().mean()) for dim in dims]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([1 / len(dims)] * len(dims), abs=0.05)


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    most=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_a_shift_is_a_cut_from_the_padded_picture(channels: int, height: int, width: int, most: int, seed: int) -> None:
    X = pictures(5, channels, height, width)
    down, right = torch.randint(-most, most + 1, (2, 5), generator=torch.Generator().manual_seed(seed))
    shifted = shift(X, down, right, most=most)
    for i in range(5):
        top, left = most - int(down[i]), most - int(right[i])
        padded = pad(X[i], (most, most, most, most))
        assert torch.equal(shifted[i], padded[:, top : top + height, left : left + width])


def test_every_shift_up_to_the_most_is_as_likely() -> None:
    X = ramps(1).expand(2500, -1, -1, -1)
    changed, _ = augment(shift=2)(X, classes_of(2500))
    counts = Counter(changed[:, 0, 4, 6].tolist())
    expected = [float(X[0, 0, 4 + down, 6 + right]) for down in range(-2, 3) for right in range(-2, 3)]
    assert sorted(counts) == expected
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


@COLOUR_AND_GREY
def test_pictures_turned_by_nothing_stay(channels: int) -> None:
    X = pictures(channels=channels)
    assert torch.allclose(rotate(X, torch.zeros(16)), X, atol=1e-6, rtol=0)


def test_quarter_turns_are_exact_in_squares_and_half_turns_in_every_picture() -> None:
    square, oblong = pictures(4, height=8, width=8), pictures(4)
    turned = rotate(square, torch.tensor([90.0, -90.0, 180.0, 0.0]))
    for i, quarters in enumerate((-1, 1, 2, 0)):  # rot90 turns against the clock
        assert torch.allclose(turned[i], torch.rot90(square[i], quarters, (1, 2)), atol=1e-5)
    assert torch.allclose(rotate(oblong, torch.full((4,), 180.0)), oblong.flip(2, 3), atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12), (12, 5)])
@COLOUR_AND_GREY
def test_a_rotation_is_that_of_torchvision(channels: int, height: int, width: int) -> None:
    X, degrees = pictures(6, channels, height, width), torch.tensor([-180.0, -71.5, -10.0, 3.25, 45.0, 120.0])
    turned = rotate(X, degrees)
    for i, angle in enumerate(degrees.tolist()):
        reference = transforms.rotate(X[i], -angle, interpolation=InterpolationMode.BILINEAR)
        assert torch.allclose(turned[i], reference, atol=1e-4)


def test_rotations_go_either_way_up_to_the_most() -> None:
    """A dot far right of the centre says by how much its picture was turned."""
    X = torch.zeros(400, 1, 101, 101)
    X[:, :, 49:52, 94:97] = 1
    changed, _ = augment(rotate=30.0)(X, classes_of(400))
    places = torch.arange(-50, 51).float()
    down = (changed.sum((1, 3)) * places).sum(1) / changed.sum((1, 2, 3))
    right = (changed.sum((1, 2)) * places).sum(1) / changed.sum((1, 2, 3))
    degrees = torch.atan2(down, right).rad2deg()
    assert degrees.abs().max() < 30.5
    assert degrees.max() > 28
    assert degrees.min() < -28
    assert abs(degrees.mean()) < 3


@COLOUR_AND_GREY
def test_brightness_multiplies(channels: int) -> None:
    X, factors = pictures(3, channels), torch.tensor([0.0, 0.5, 1.7])
    bright = brightness(X, factors)
    for i, factor in enumerate(factors.tolist()):
        assert torch.allclose(bright[i], (factor * X[i]).clamp(max=1))
    assert bright[2].max() == 1


@COLOUR_AND_GREY
def test_contrast_keeps_the_mean_and_moves_pixels_from_it(channels: int) -> None:
    X, factors = 0.3 + 0.4 * pictures(3, channels), torch.tensor([0.0, 0.5, 1.3])  # nothing is cut off
    changed = contrast(X, factors)
    for i, factor in enumerate(factors.tolist()):
        assert float(changed[i].mean()) == pytest.approx(float(X[i].mean()), abs=1e-6)
        assert torch.allclose(changed[i], X[i].mean() + factor * (X[i] - X[i].mean()), atol=1e-6)


def test_contrast_is_cut_off_at_black_and_white() -> None:
    X = torch.tensor([0.0, 0.1, 0.9, 1.0]).view(1, 1, 2, 2)
    assert contrast(X, torch.tensor([2.0])).flatten().tolist() == [0, 0, 1, 1]


def test_saturation_moves_colours_from_their_grey() -> None:
    X, factors = 0.3 + 0.4 * pictures(3), torch.tensor([0.0, 0.5, 1.3])
    changed = saturation(X, factors)
    for i, factor in enumerate(factors.tolist()):
        grey = transforms.rgb_to_grayscale(X[i])
        assert torch.allclose(changed[i], grey + factor * (X[i] - grey), atol=1e-3)  # torchvision rounds one weight
        assert torch.allclose(transforms.rgb_to_grayscale(changed[i]), grey, atol=1e-3)


def test_saturation_leaves_grey_pictures() -> None:
    grey, factors = pictures(channels=1), torch.linspace(0, 2, 16)
    assert torch.equal(saturation(grey, factors), grey)
    as_colour = grey.expand(-1, 3, -1, -1)
    assert torch.allclose(saturation(as_colour, factors), as_colour, atol=1e-6)


def test_jitter_is_by_up_to_so_much_either_way() -> None:
    X = torch.full((500, 1, 1, 1), 0.5)
    factors = augment(brightness=0.4)(X, classes_of(500))[0].flatten() / 0.5
    assert 0.6 <= factors.min() < 0.63
    assert 1.37 < factors.max() <= 1.4
    assert float(factors.mean()) == pytest.approx(1, abs=0.05)


@given(
    channels=st.sampled_from([1, 3]),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    size=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=60)
def test_cutout_blackens_one_square_that_the_edges_may_cut(
    channels: int, height: int, width: int, size: int, seed: int
) -> None:
    X = pictures(5, channels, height, width)
    changed, _ = augment(seed, cutout=size)(X, classes_of(5))
    for i in range(5):
        black = changed[i] == 0
        assert torch.equal(changed[i], torch.where(black, 0, X[i]))
        assert (black == black[0]).all()  # in all channels
        for start, stop, length in zip(*box_of(black[0]), (height, width), strict=True):
            assert stop - start <= size
            if stop - start < size:  # an edge cut it, but not its centre
                assert start == 0 or stop == length
                assert stop - start >= min(size - size // 2, length)


def box_of(chosen: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """The first row and column of the chosen pixels (bool H x W), and those behind the last; they must be a box."""
    rows, columns = chosen.any(1).nonzero().flatten(), chosen.any(0).nonzero().flatten()
    (top, left), (bottom, right) = (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)
    assert chosen[top:bottom, left:right].all()
    assert int(chosen.sum()) == (bottom - top) * (right - left)
    return (top, left), (bottom, right)


def test_the_centre_of_a_cutout_is_anywhere() -> None:
    X = torch.ones(2000, 1, 4, 5)
    changed, _ = augment(cutout=1)(X, classes_of(2000))
    assert (changed == 0).sum((1, 2, 3)).tolist() == [1] * 2000
    counts = (changed == 0).sum((0, 1))
    assert counts.min() > 60
    assert counts.max() < 140


def test_a_mix_blends_pictures_and_targets_with_their_partners() -> None:
    X, targets = pictures(4), numbers(4)
    partners, weights = torch.tensor([2, 1, 3, 0]), torch.tensor([0.0, 0.3, 0.8, 1.0])
    mixed, mixed_targets = mix(X, targets, partners, weights.view(-1, 1, 1, 1))
    for i, (partner, weight) in enumerate(zip(partners.tolist(), weights.tolist(), strict=True)):
        assert torch.allclose(mixed[i], (1 - weight) * X[i] + weight * X[partner], atol=1e-6)
        assert torch.allclose(mixed_targets[i], (1 - weight) * targets[i] + weight * targets[partner], atol=1e-6)


@COLOUR_AND_GREY
def test_mixup_blends_targets_as_it_blends_pixels(channels: int) -> None:
    """Each picture is one number, its own class, so that its share of each class can be seen in the others."""
    X = torch.eye(CLASSES).view(CLASSES, CLASSES, 1, 1).repeat_interleave(channels, dim=2)
    changed, targets = augment(mixup=1.0)(X, torch.arange(CLASSES))
    assert torch.allclose(targets.sum(1), torch.ones(CLASSES))
    assert torch.allclose(changed[:, :, 0, 0], targets, atol=1e-6)
    assert ((targets > 0).sum(1) == 2).sum() > 5  # most have another one as their partner
    assert torch.allclose(targets.sum(0), torch.ones(CLASSES), atol=1)


def test_mixup_blends_numbers() -> None:
    X, y = pictures(), numbers()
    X[:, 0, 0, 0], X[:, 0, 0, 1] = y[:, 0], y[:, 1]  # a picture shows its targets
    changed, targets = augment(classes=None, mixup=1.0)(X, y)
    assert not torch.equal(targets, y)
    assert torch.allclose(changed[:, 0, 0, :2], targets, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_of_mixup_are_of_the_beta_distribution(alpha: float) -> None:
    X = torch.arange(4000).view(-1, 1, 1, 1) % 2 * torch.ones(1, 1, 1, 1)
    y = torch.arange(4000) % 2
    _, targets = augment(classes=2, mixup=alpha)(X, y)
    own = targets[torch.arange(4000), y]
    share = own[own < 1]  # about half have a partner of the other class
    assert len(share) > 1000
    assert float(share.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(share.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("which", ["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [5e-324, 1e-5, 10.0])
def test_even_the_smallest_alpha_gives_finite_shares(alpha: float, which: str) -> None:
    fields: dict[str, Any] = {which: alpha}
    changed, targets = augment(**fields)(pictures(), classes_of())
    assert torch.isfinite(changed).all()
    assert torch.allclose(targets.sum(1), torch.ones(16))


@given(
    channels=st.sampled_from([1, 3]), height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 2**31)
)
@settings(deadline=None, max_examples=60)
def test_cutmix_pastes_one_box_and_shares_targets_by_its_area(
    channels: int, height: int, width: int, seed: int
) -> None:
    X, n = ramps(CLASSES, channels, height, width), CLASSES
    changed, targets = augment(seed, cutmix=1.0)(X, torch.arange(n))
    source = changed.floor().long() - 1  # from which picture a pixel is
    for i in range(n):
        assert torch.equal(changed[i], X[source[i], torch.arange(channels).view(-1, 1, 1), *places(height, width)])
        assert (source[i] == source[i, 0]).all()
        for other in range(n):
            share = (source[i, 0] == other).float().mean()
            assert float(targets[i, other]) == pytest.approx(float(share), abs=1e-6)
        pasted = source[i, 0] != i
        if pasted.any():
            assert len(set(source[i, 0][pasted].tolist())) == 1
            box_of(pasted)


def places(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.arange(height).view(-1, 1), torch.arange(width)


def test_boxes_of_cutmix_are_of_every_size() -> None:
    """With alpha 1 the share is uniform before the edges cut it."""
    X = ramps(1000, 1, 20, 20)
    changed, _ = augment(cutmix=1.0)(X, classes_of(1000))
    pasted = (changed.floor() != X.floor()).float().mean((1, 2, 3))
    assert pasted.max() > 0.9
    assert 0.25 < pasted.mean() < 0.5
    assert 0.02 < (pasted < 0.03).float().mean() < 0.15


def test_with_both_each_batch_gets_mixup_or_cutmix() -> None:
    X, changes = ramps(8), augment(mixup=1.0, cutmix=1.0)
    kinds = []
    for _ in range(200):
        changed, _ = changes(X, classes_of(8))
        are_pasted = torch.isin(changed, X).all()
        kinds.append(bool(are_pasted))
    assert 70 < sum(kinds) < 130


def test_with_both_each_has_its_own_alpha() -> None:
    """So small an alpha takes pictures as a whole, so large a one makes boxes of half a picture."""
    X, changes = ramps(8), augment(mixup=1e-5, cutmix=10.0)
    are_shared = []
    for _ in range(20):
        changed, targets = changes(X, torch.arange(8))
        assert torch.isin(changed, X).all()  # nothing is blended
        are_shared.append(bool(((targets > 0.01) & (targets < 0.99)).any()))
    assert set(are_shared) == {False, True}


def test_the_changes_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["flip", "rotate", "shift", "brightness", "contrast", "saturation", "mix"]
    calls: list[str] = []

    def recorded(name: str) -> Callable[..., Any]:
        function = getattr(augmentation, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return function(*args, **kwargs)

        return call

    for name in names:
        monkeypatch.setattr(augmentation, name, recorded(name))
    augment(**MOST)(pictures(), classes_of())
    assert calls == ["flip", *names]  # across, then down


def test_a_cutout_comes_after_contrast_and_before_mixing() -> None:
    white = torch.ones(16, 1, 9, 9)
    cut, _ = augment(contrast=1.0, cutout=3)(white, classes_of())
    assert ((cut == 0).sum((1, 2, 3)) >= 4).all()  # contrast would have made black grey in every second one
    mixed, _ = augment(cutout=3, mixup=1.0)(white, classes_of())
    assert ((mixed > 0.01) & (mixed < 0.99)).any()


def test_the_draws_are_pinned_because_resumed_jobs_depend_on_them() -> None:
    X, y = ramps(4, 1, 4, 4), torch.tensor([0, 0, 1, 1])
    moved, _ = augment(flip="horizontal", shift=1)(X, y)
    assert (moved[:, 0, 1, 1] % 1 * 32).tolist() == [9, 11, 2, 7]  # from which place a pixel is
    _, targets = augment(classes=2, mixup=0.2)(X, y)
    assert targets[:, 0].tolist() == pytest.approx([0.997995, 1, 0, 0.004618], abs=1e-6)
    _, targets = augment(classes=2, cutmix=1.0)(X, y)
    assert targets[:, 0].tolist() == [15 / 16, 1, 0, 6 / 16]
