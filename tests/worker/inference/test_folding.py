"""Folding batch norm changes no answer, and what cannot be folded stays."""

import copy

import pytest
import torch
from torch import Tensor, nn

from worker.datasets.pictures import plain
from worker.inference.folding import folded
from worker.jobs.spec import Spec
from worker.networks import whole

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


def trained(network: nn.Module) -> nn.Module:
    """With averages, weights and biases as a training leaves them: none is 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, NORMS):
            for tensor in (module.running_mean, module.bias):
                assert tensor is not None
                tensor.data = torch.randn(tensor.shape, generator=generator)
            for tensor in (module.running_var, module.weight):
                assert tensor is not None
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator)
    return network.eval()


@pytest.mark.parametrize(
    "model",
    [
        {"name": "cnn", "channels": [8, 16]},
        {"name": "mlp", "hidden": [16, 16], "batch_norm": True},
        {"name": "resnet18"},
        {"name": "mobilenet_v3_small"},
        {"name": "densenet121"},
        {"name": "shufflenet_v2_x0_5"},
    ],
    ids=lambda model: str(model["name"]),
)
def test_the_outputs_stay_the_same_up_to_rounding(model: dict[str, object]) -> None:
    torch.manual_seed(0)
    spec = Spec.model_validate({"model": model})
    network = trained(whole.network(spec, plain(3, 32, 32), 7))
    X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        before = network(X)
        made = folded(copy.deepcopy(network))
        after = made(X)
    assert norms(made) < norms(network)
    largest = before.abs().max()
    assert (after - before).abs().max() < 1e-4 * largest


def test_every_batch_norm_behind_a_convolution_goes() -> None:
    spec = Spec.model_validate({"model": {"name": "resnet18"}})
    assert norms(folded(trained(whole.network(spec, plain(3, 32, 32), 7)))) == 0


def test_a_network_without_batch_norm_is_left_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    assert folded(network) is network


class Branching(nn.Module):
    """Its way depends on its input, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))

    def forward(self, X: Tensor) -> Tensor:
        made: Tensor = self.layers(X)
        return made if X.sum() > 0 else -made


def test_a_network_that_cannot_be_traced_is_left_alone() -> None:
    network = trained(Branching())
    assert folded(network) is network


class Shared(nn.Module):
    """Uses one convolution twice, once without the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, X: Tensor) -> Tensor:
        made: Tensor = self.convolution(self.norm(self.convolution(X)))
        return made


def test_a_layer_that_is_used_twice_is_not_changed() -> None:
    network = trained(Shared())
    X = torch.rand(2, 2, 3, 3)
    with torch.inference_mode():
        before = network(X)
        made = folded(copy.deepcopy(network))
        assert torch.equal(made(X), before)
    assert norms(made) == 1
