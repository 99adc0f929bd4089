"""The tutorial's network: a multi-layer perceptron."""

from collections.abc import Sequence

from torch import nn

from worker.jobs.spec import ActivationName

from .activations import ACTIVATIONS


def mlp(
    in_features: int,
    hidden: Sequence[int],
    outputs: int,
    dropout: float = 0.0,
    *,
    activation: ActivationName = "relu",
    batch_norm: bool = False,
) -> nn.Sequential:
    """Flatten, (linear[, batch norm], activation[, dropout]) for each hidden size, linear. Out come N x outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for out_features in hidden:
        layers.append(nn.Linear(in_features, out_features))
        if batch_norm:
            layers.append(nn.BatchNorm1d(out_features))
        layers.append(ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_features = out_features
    layers.append(nn.Linear(in_features, outputs))
    return nn.Sequential(*layers)
