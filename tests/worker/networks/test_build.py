from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional

from worker.jobs.spec import CNN, MLP, ActivationName, Layers, Model, Torchvision
from worker.networks.activations import ACTIVATIONS
from worker.networks.build import build, image_size


def test_the_default_network_is_the_tutorials() -> None:
    torch.manual_seed(0)
    ours = build(MLP(), channels=1, height=28, width=28, outputs=10)
    torch.manual_seed(0)
    stack = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    theirs = nn.Sequential(nn.Flatten(), *stack)
    X = torch.rand(4, 1, 28, 28)
    assert torch.equal(ours(X), theirs(X))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 669_706
    assert [name for name, _ in ours.named_parameters() if "weight" in name] == ["1.weight", "3.weight", "5.weight"]


def test_dropout_follows_every_hidden_layer_and_sleeps_in_eval() -> None:
    network = build(MLP(hidden=[8, 8], dropout=0.5), channels=3, height=2, width=2, outputs=2)
    assert [type(layer).__name__ for layer in network.children()] == [
        *("Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear")
    ]
    X = torch.rand(5, 3, 2, 2)
    network.eval()
    assert torch.equal(network(X), network(X))


def test_no_hidden_layer_is_a_linear_classifier() -> None:
    network = build(MLP(hidden=[]), channels=1, height=2, width=2, outputs=3)
    assert [type(layer).__name__ for layer in network.children()] == ["Flatten", "Linear"]


def test_a_hidden_layer_is_normalised_before_its_activation_and_dropped_after_it() -> None:
    model = MLP(hidden=[8], activation="gelu", batch_norm=True, dropout=0.5)
    network = build(model, channels=1, height=2, width=2, outputs=2)
    assert [type(layer).__name__ for layer in network.children()] == [
        *("Flatten", "Linear", "BatchNorm1d", "GELU", "Dropout", "Linear")
    ]
    assert network(torch.rand(5, 1, 2, 2)).shape == (5, 2)


def test_every_activation_of_the_spec_is_the_function_of_that_name() -> None:
    X = torch.linspace(-3, 3, 7)
    for name in get_args(ActivationName):
        assert torch.equal(ACTIVATIONS[name]()(X), (getattr(functional, name, None) or getattr(torch, name))(X))


@pytest.mark.parametrize(
    "model",
    [
        MLP(batch_norm=True),
        CNN(name="cnn"),
        Layers.model_validate({"name": "layers", "layers": [{"name": "flatten"}, {"name": "linear"}]}),
        Torchvision(name="squeezenet1_1"),
    ],
)
def test_on_the_meta_device_there_are_the_same_parameters_and_no_values(model: Model) -> None:
    torch.manual_seed(0)
    real = build(model, channels=1, height=28, width=28, outputs=10)
    drawn = torch.get_rng_state()
    with torch.device("meta"):
        planned = build(model, channels=1, height=28, width=28, outputs=10)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(tensor.is_meta for tensor in planned.state_dict().values())
    assert [each.shape for each in planned.parameters()] == [each.shape for each in real.parameters()]


def test_only_torchvisions_networks_have_their_pictures_scaled() -> None:
    assert image_size(MLP(), 2, 3) is None
    assert image_size(CNN(name="cnn"), 2, 3) is None
    assert image_size(Torchvision(name="alexnet"), 2, 3) == 63
