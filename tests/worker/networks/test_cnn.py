import pytest
import torch

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import CNN
from worker.networks.build import build


def test_each_entry_is_a_block_that_halves_the_picture() -> None:
    network = build(CNN(name="cnn", channels=[4, 6], dropout=0.25), channels=3, height=13, width=9, outputs=5)
    block = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    assert [type(layer).__name__ for layer in network.children()] == [
        *(block + block),
        *("Flatten", "Linear", "ReLU", "Dropout", "Linear"),
    ]
    assert network(torch.rand(2, 3, 13, 9)).shape == (2, 5)
    assert network.get_parameter("9.weight").shape == (128, 6 * 3 * 2)


def test_the_convolutions_have_no_bias_that_batch_norm_would_take_away() -> None:
    network = build(CNN(name="cnn"), channels=1, height=28, width=28, outputs=10)
    assert [name for name, _ in network.named_parameters()][:3] == ["0.weight", "1.weight", "1.bias"]


def test_a_picture_is_halved_until_one_pixel_is_left_and_not_further() -> None:
    whole = build(CNN(name="cnn", channels=[2] * 4), channels=1, height=16, width=31, outputs=2)
    assert whole(torch.rand(2, 1, 16, 31)).shape == (2, 2)
    with pytest.raises(SpecRefused, match=r"15 x 31 can be halved 3 times") as refused:
        build(CNN(name="cnn", channels=[2] * 4), channels=1, height=15, width=31, outputs=2)
    assert refused.value.pointer == "#/model/channels"
