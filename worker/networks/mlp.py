"""The tutorial's network: a multi-layer perceptron."""

from collections.abc import Sequence

from torch import nn


def mlp(in_features: int, hidden: Sequence[int], outputs: int, dropout: float) -> nn.Sequential:
    """Flatten, (linear, ReLU[, dropout]) for each hidden size, linear. Out come N x outputs."""
    layers: list[nn.Module] = [nn.Flatten()]
    for out_features in hidden:
        layers += [nn.Linear(in_features, out_features), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        in_features = out_features
    layers.append(nn.Linear(in_features, outputs))
    return nn.Sequential(*layers)
