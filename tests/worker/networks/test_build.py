import torch
from torch import nn

from worker.jobs.spec import MLP
from worker.networks.build import build


def test_the_default_network_is_the_tutorials() -> None:
    torch.manual_seed(0)
    ours = build(MLP(), channels=1, height=28, width=28, outputs=10)
    torch.manual_seed(0)
    stack = [nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    theirs = nn.Sequential(nn.Flatten(), *stack)
    X = torch.rand(4, 1, 28, 28)
    assert torch.equal(ours(X), theirs(X))
    assert sum(parameter.numel() for parameter in ours.parameters()) == 669_706


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
