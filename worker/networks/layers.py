"""A spec's list of layers as an `nn.Sequential`.

Shapes are inferred first, by sending two pictures without data through each layer on the meta device; so a list that
does not work is refused before any memory is taken, with a sentence about the layer at fault.
"""

import warnings
from collections.abc import Sequence
from typing import Final

import torch
from torch import nn

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import layers as parts
from worker.jobs.spec.layers import Layer

from .activations import ACTIVATIONS

Shape = tuple[int, ...]  # of one picture: channels x height x width, or features

_MAX_BYTES: Final = 2**36  # of parameters, in float32
_PICTURES_FOR: Final = {
    "conv2d": "A convolution",
    "max_pool": "Pooling",
    "avg_pool": "Pooling",
    "global_avg_pool": "Pooling",
    "dropout2d": "`dropout2d`",
}


def layers(chain: Sequence[Layer], *, channels: int, height: int, width: int, outputs: int) -> nn.Sequential:
    """N x channels x height x width become N x outputs; weights are named by the layer's place in the list.

    Raises SpecRefused.
    """
    incoming = _incoming(chain, (channels, height, width), outputs)
    return nn.Sequential(*(_module(layer, shape, outputs) for layer, shape in zip(chain, incoming, strict=True)))


def _incoming(chain: Sequence[Layer], shape: Shape, outputs: int) -> list[Shape]:
    """What comes into each layer."""
    incoming, parameters = [], 0
    for place, layer in enumerate(chain):
        parameters += _parameters(layer, shape, outputs)
        detail = _misfit(layer, shape)
        if detail is None and 4 * parameters > _MAX_BYTES:
            detail = f"Up to here the layers have {parameters} parameters: more than {_MAX_BYTES // 2**30} GiB."
        if detail is not None:
            raise SpecRefused(detail, pointer=f"#/model/layers/{place}")
        incoming.append(shape)
        shape = _outgoing(layer, shape, outputs)
    if shape != (outputs,):
        detail = (
            f"Out come {_named(shape)}, but one number for each class or target is needed, which is {outputs}: "
            "end with a linear layer without `features`."
        )
        raise SpecRefused(detail, pointer="#/model/layers")
    return incoming


def _outgoing(layer: Layer, shape: Shape, outputs: int) -> Shape:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of padding that costs a copy
        X: torch.Tensor = _module(layer, shape, outputs)(torch.empty(2, *shape))
    return tuple(X.shape[1:])


def _module(layer: Layer, shape: Shape, outputs: int) -> nn.Module:
    match layer:
        case parts.Linear():
            return nn.Linear(shape[0], layer.features or outputs, bias=layer.bias)
        case parts.Conv2d():
            sizes = (layer.kernel, layer.stride, layer.padding, layer.dilation, layer.groups)
            return nn.Conv2d(shape[0], layer.channels, *sizes, bias=layer.bias)
        case parts.BatchNorm():
            return nn.BatchNorm2d(shape[0]) if _are_pictures(shape) else nn.BatchNorm1d(shape[0])
        case parts.Activation():
            return ACTIVATIONS[layer.name]()
        case parts.Pool():
            pool = nn.MaxPool2d if layer.name == "max_pool" else nn.AvgPool2d
            return pool(layer.kernel, layer.stride, layer.padding)
        case parts.GlobalAvgPool():
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        case parts.Dropout():
            return nn.Dropout(layer.p) if layer.name == "dropout" else nn.Dropout2d(layer.p)
        case parts.Flatten():
            return nn.Flatten()


def _parameters(layer: Layer, shape: Shape, outputs: int) -> int:
    """How many it would have. Counted, not built: a meta tensor's size has its limits too."""
    match layer:
        case parts.Linear():
            return (shape[0] + layer.bias) * (layer.features or outputs)
        case parts.Conv2d():
            return (shape[0] // layer.groups * layer.kernel**2 + layer.bias) * layer.channels
        case parts.BatchNorm():
            return 2 * shape[0]
    return 0


def _misfit(layer: Layer, shape: Shape) -> str | None:
    """Why what comes in does not suit the layer."""
    if isinstance(layer, parts.Linear) and _are_pictures(shape):
        return f"A linear layer needs features, but {_named(shape)} come in: put a flatten before it."
    if layer.name in _PICTURES_FOR and not _are_pictures(shape):
        needs = f"{_PICTURES_FOR[layer.name]} needs pictures (channels x height x width)"
        return f"{needs}, but {_named(shape)} come in: put it before the flatten."
    match layer:
        case parts.Conv2d():
            return _misfit_of_convolution(layer, shape)
        case parts.Pool() if layer.padding > layer.kernel // 2:
            return f"The padding may be at most half the kernel, which is {layer.kernel // 2}."
        case parts.Pool():
            return _does_not_fit(layer.kernel, layer.padding, shape)
    return None


def _misfit_of_convolution(layer: parts.Conv2d, shape: Shape) -> str | None:
    if shape[0] % layer.groups or layer.channels % layer.groups:
        return f"The groups must divide the {shape[0]} channels that come in and the {layer.channels} that go out."
    if layer.padding == "same":
        return "With the padding `same` the stride must be 1." if layer.stride > 1 else None
    return _does_not_fit(layer.dilation * (layer.kernel - 1) + 1, layer.padding, shape)


def _does_not_fit(span: int, padding: int, shape: Shape) -> str | None:
    if span <= min(shape[1:]) + 2 * padding:
        return None
    padded = f" with a padding of {padding}" if padding else ""
    return f"The kernel spans {span} x {span} pixels, but {_named(shape)} come in{padded}."


def _are_pictures(shape: Shape) -> bool:
    return len(shape) == 3


def _named(shape: Shape) -> str:
    if _are_pictures(shape):
        return f"pictures of {' x '.join(map(str, shape))} (channels x height x width)"
    return f"{shape[0]} features"
