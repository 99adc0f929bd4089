"""Activations by their names in a spec, with torch's own defaults."""

from typing import Final

from torch import nn

from worker.jobs.spec import ActivationName

ACTIVATIONS: Final[dict[ActivationName, type[nn.Module]]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
