import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import TORCHVISION, Torchvision
from worker.networks.build import build, image_size

ONE_OF_EACH_FAMILY = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3"),
    *("mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"),
    *("squeezenet1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn"),
]
BUILT_FOR_A_SIZE = ["maxvit_t", "vit_b_16", "vit_b_32", "vit_h_14"]


def spec(name: str, **fields: Any) -> Torchvision:
    return Torchvision.model_validate({"name": name, **fields})


def planned(name: str, channels: int, side: int) -> nn.Module:
    with torch.device("meta"):
        return build(spec(name), channels=channels, height=side, width=side, outputs=10)


def takes(network: nn.Module, side: int) -> bool:
    try:
        shape: torch.Size = network(torch.empty(2, 3, side, side, device="meta")).shape
    except RuntimeError:
        return False
    return shape == (2, 10)


def test_the_names_are_torchvisions_own() -> None:
    assert list(TORCHVISION) == sorted(models.list_models(module=models))


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_network_takes_grey_pictures_of_28_pixels(name: str) -> None:
    side = image_size(spec(name), 28, 28) or 28
    network = planned(name, 1, side)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    assert network(torch.empty(2, 1, side, side, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_every_family_takes_colour_pictures_from_its_least_size_on(name: str) -> None:
    least = image_size(spec(name), 1, 1) or 1
    network = planned(name, 3, least)
    assert takes(network, least)
    assert takes(network, max(least, 32))
    assert least == 1 or not takes(network, least - 1)


@pytest.mark.parametrize("name", BUILT_FOR_A_SIZE)
def test_a_network_that_is_built_for_a_size_takes_colour_pictures_of_32_pixels(name: str) -> None:
    side = image_size(spec(name), 32, 32) or 32
    assert takes(planned(name, 3, side), side)


@pytest.mark.parametrize("name", TORCHVISION)
def test_no_least_size_is_above_what_torchvision_names_one(name: str) -> None:
    of_weights: int = models.get_model_weights(name).DEFAULT.meta["min_size"][0]
    least = image_size(spec(name), 1, 1) or 1
    assert least == of_weights or (least < of_weights and name.startswith(("vit", "swin", "efficientnet_v2")))


@pytest.mark.parametrize(
    ("name", "size", "height", "width", "expected"),
    [
        ("resnet18", None, 28, 40, None),
        ("vgg11", None, 32, 500, None),
        ("vgg11", None, 31, 500, 32),
        ("resnet18", 64, 28, 28, 64),
        ("resnet18", 64, 64, 64, None),
        ("resnet18", 64, 64, 65, 64),
        ("vit_b_16", None, 32, 32, None),
        ("vit_b_16", None, 32, 16, 32),
        ("vit_b_16", None, 28, 33, 48),
        ("vit_h_14", None, 28, 28, None),
        ("vit_l_32", 224, 32, 32, 224),
        ("maxvit_t", None, 224, 224, None),
        ("maxvit_t", None, 28, 225, 448),
        ("maxvit_t", 448, 28, 28, 448),
    ],
)
def test_pictures_are_scaled_to_a_square_where_the_network_or_the_spec_wants_it(
    name: str, size: int | None, height: int, width: int, expected: int | None
) -> None:
    assert image_size(spec(name, image_size=size), height, width) == expected


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("inception_v3", 74, "inception_v3 takes 75 pixels a side or more."),
        ("vit_b_16", 8, "vit_b_16 takes a multiple of 16 pixels a side; the least is 16."),
        ("vit_h_14", 224 + 1, "vit_h_14 takes a multiple of 14 pixels a side; the least is 14."),
        ("maxvit_t", 112, "maxvit_t takes a multiple of 224 pixels a side; the least is 224."),
    ],
)
def test_a_size_that_the_network_does_not_take_is_refused(name: str, size: int, said: str) -> None:
    with pytest.raises(SpecRefused) as refused:
        image_size(spec(name, image_size=size), 28, 28)
    assert (refused.value.pointer, refused.value.detail) == ("#/model/image_size", said)


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf", "mnasnet0_5", "squeezenet1_1"])
def test_for_colour_pictures_the_initial_weights_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    ours = build(spec(name), channels=3, height=32, width=32, outputs=10).state_dict()
    torch.manual_seed(0)
    theirs = models.get_model(name, num_classes=10).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_only_the_first_convolution_is_another_for_grey_pictures() -> None:
    grey, colour = planned("mobilenet_v2", 1, 32), planned("mobilenet_v2", 3, 32)
    differing = [name for name, tensor in colour.state_dict().items() if tensor.shape != grey.state_dict()[name].shape]
    assert differing == ["features.0.0.weight"]
    assert str(grey).replace("Conv2d(1, 32", "Conv2d(3, 32") == str(colour)


def test_the_small_stem_keeps_height_and_width() -> None:
    network = build(spec("resnet18", small_stem=True), channels=1, height=8, width=8, outputs=10)
    X = torch.rand(2, 1, 8, 8)
    stem = nn.Sequential(*list(network.children())[:4])
    assert stem(X).shape == (2, 64, 8, 8)
    assert [name for name, _ in stem.named_parameters()] == ["0.weight", "1.weight", "1.bias"]
    assert network(X).shape == (2, 10)


@pytest.mark.parametrize("name", ["mnasnet0_5", "regnet_x_400mf"])
def test_a_copy_takes_weights_that_do_not_say_their_version(name: str) -> None:
    network = build(spec(name), channels=1, height=28, width=28, outputs=10)
    another = copy.deepcopy(build(spec(name), channels=1, height=28, width=28, outputs=10))
    another.load_state_dict(dict(network.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), another.parameters(), strict=True))
