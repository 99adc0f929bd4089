import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import Layers
from worker.networks.build import build

FLATTEN, LINEAR = {"name": "flatten"}, {"name": "linear"}


def built(
    *layers: dict[str, Any], channels: int = 1, height: int = 28, width: int = 28, outputs: int = 10
) -> nn.Module:
    model = Layers.model_validate({"name": "layers", "layers": list(layers)})
    return build(model, channels=channels, height=height, width=width, outputs=outputs)


def refusal(*layers: dict[str, Any]) -> tuple[str, str]:
    with pytest.raises(SpecRefused) as refused:
        built(*layers)
    return refused.value.pointer, refused.value.detail


def conv(**fields: Any) -> dict[str, Any]:
    return {"name": "conv2d", "channels": 8, **fields}


def test_a_list_becomes_the_same_chain_as_by_hand_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours = built(
        conv(channels=4, kernel=5, stride=2, padding=1, bias=False),
        {"name": "batch_norm"},
        {"name": "silu"},
        {"name": "dropout2d", "p": 0.25},
        {"name": "max_pool"},
        conv(channels=6, padding="same", groups=2, dilation=2),
        {"name": "avg_pool", "kernel": 3, "stride": 1, "padding": 1},
        FLATTEN,
        {"name": "linear", "features": 12},
        {"name": "batch_norm"},
        {"name": "leaky_relu"},
        {"name": "dropout", "p": 0.25},
        LINEAR,
    )
    torch.manual_seed(0)
    theirs = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Dropout2d(0.25),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding="same", groups=2, dilation=2),
        nn.AvgPool2d(3, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 6 * 6, 12),
        nn.BatchNorm1d(12),
        nn.LeakyReLU(),
        nn.Dropout(0.25),
        nn.Linear(12, 10),
    )
    assert str(ours) == str(theirs)
    X = torch.rand(3, 1, 28, 28)
    torch.manual_seed(1)
    expected = theirs(X)
    torch.manual_seed(1)
    assert torch.equal(ours(X), expected)


def test_the_global_average_comes_out_as_features() -> None:
    network = built(conv(channels=5), {"name": "global_avg_pool"}, LINEAR, height=9, width=7)
    X = torch.rand(2, 1, 9, 7)
    assert torch.allclose(network(X), network[2](network[0](X).mean((2, 3))))  # type: ignore[index]


@pytest.mark.parametrize(
    ("layers", "place", "said"),
    [
        ([LINEAR], 0, "A linear layer needs features, but pictures of 1 x 28 x 28 .* come in: put a flatten before it"),
        (
            [FLATTEN, conv()],
            1,
            r"A convolution needs pictures \(.*\), but 784 features come in: put it before the flat",
        ),
        ([FLATTEN, {"name": "max_pool"}], 1, "Pooling needs pictures"),
        ([FLATTEN, {"name": "avg_pool"}], 1, "Pooling needs pictures"),
        ([FLATTEN, {"name": "global_avg_pool"}], 1, "Pooling needs pictures"),
        ([FLATTEN, {"name": "dropout2d"}], 1, "`dropout2d` needs pictures"),
        ([conv(kernel=29)], 0, "spans 29 x 29 pixels, but pictures of 1 x 28 x 28 .* come in"),
        ([conv(kernel=15, dilation=3, padding=7)], 0, "spans 43 x 43 pixels, .* with a padding of 7"),
        ([conv(groups=2)], 0, "must divide the 1 channels that come in and the 8 that go out"),
        ([conv(), conv(channels=12, groups=8)], 1, "must divide the 8 channels that come in and the 12"),
        ([conv(padding="same", stride=2)], 0, "With the padding `same` the stride must be 1"),
        ([{"name": "max_pool", "kernel": 3, "padding": 2}], 0, "at most half the kernel, which is 1"),
        ([conv(), {"name": "avg_pool", "kernel": 27}], 1, "spans 27 x 27 pixels, but pictures of 8 x 26 x 26"),
        ([FLATTEN, *[{"name": "linear", "features": 65536}] * 6], 5, "more than 64 GiB"),
        ([conv(channels=65536, padding=1024)] * 9, 1, "more than 64 GiB"),
    ],
)
def test_a_layer_that_what_comes_in_does_not_suit_is_named(layers: list[dict[str, Any]], place: int, said: str) -> None:
    pointer, detail = refusal(*layers)
    assert pointer == f"#/model/layers/{place}"
    assert detail.endswith(".")
    assert re.search(said, detail)


def test_what_comes_out_must_be_one_number_for_each_class() -> None:
    pointer, detail = refusal(FLATTEN, {"name": "linear", "features": 12})
    assert pointer == "#/model/layers"
    assert detail.startswith("Out come 12 features, but one number for each class or target is needed, which is 10:")
    assert refusal({"name": "relu"})[1].startswith("Out come pictures of 1 x 28 x 28 (channels x height x width), but")


def test_an_even_kernel_that_keeps_the_size_warns_nobody() -> None:
    assert built(conv(kernel=2, padding="same"), FLATTEN, LINEAR)(torch.rand(2, 1, 28, 28)).shape == (2, 10)


small = st.integers(1, 9)
any_layer = st.one_of(
    st.fixed_dictionaries({"name": st.just("linear")}, optional={"features": small}),
    st.fixed_dictionaries(
        {"name": st.just("conv2d"), "channels": small},
        optional={
            "kernel": small,
            "stride": small,
            "padding": st.one_of(st.integers(0, 4), st.just("same")),
            "dilation": st.integers(1, 3),
            "groups": st.integers(1, 3),
        },
    ),
    st.fixed_dictionaries(
        {"name": st.sampled_from(["max_pool", "avg_pool"])},
        optional={"kernel": small, "stride": small, "padding": st.integers(0, 4)},
    ),
    st.sampled_from(
        [{"name": name} for name in ("batch_norm", "relu", "global_avg_pool", "dropout", "dropout2d", "flatten")]
    ),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(any_layer, max_size=6), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20))
def test_whatever_the_list_it_is_refused_or_works(
    layers: list[dict[str, Any]], channels: int, height: int, width: int
) -> None:
    try:
        network = built(*layers, FLATTEN, LINEAR, channels=channels, height=height, width=width, outputs=3)
    except SpecRefused:
        return
    assert network(torch.rand(2, channels, height, width)).shape == (2, 3)
