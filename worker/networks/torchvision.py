"""torchvision's classification networks, adapted to the dataset's pictures and outputs."""

from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import Torchvision

# The least height and width, in pixels, by what a name begins with; the others take 1. Found by trying: with less,
# a convolution or a pooling gets nothing.
_LEAST: Final = {
    "alexnet": 63,
    "convnext": 32,
    "densenet": 29,
    "googlenet": 15,
    "inception_v3": 75,
    "squeezenet1_0": 21,
    "squeezenet1_1": 17,
    "swin": 4,
    "vgg": 32,
}
_MAXVIT_STEP: Final = 224  # halved five times it must still divide into partitions of 7 x 7


def torchvision(model: Torchvision, *, channels: int, height: int, width: int, outputs: int) -> nn.Module:
    """N x channels x height x width become N x outputs, in sizes that `side` allows.

    Initial weights are torchvision's; those of a first convolution that had to be replaced, for its channels or for
    the small stem, are torch's.
    """
    network: nn.Module = _built(model, channels, height, width, outputs)
    name = first_convolution(network)
    stem = network.get_submodule(name)
    assert isinstance(stem, nn.Conv2d)
    if model.small_stem:
        network.set_submodule(name, nn.Conv2d(channels, stem.out_channels, 3, padding=1, bias=False))
        network.set_submodule("maxpool", nn.Identity())
    elif channels != 3:
        network.set_submodule(name, _with_channels(stem, channels))
    return network


def side(model: Torchvision, height: int, width: int) -> int | None:
    """Pixels a side to which pictures of height x width are scaled; None when they are taken as they are.

    Raises SpecRefused when the spec asks for a size that the network does not take.
    """
    wanted = model.image_size
    if wanted is None:
        wanted = _wanted(model.name, height, width)
    elif wanted % step(model.name):
        detail = f"{model.name} takes a multiple of {step(model.name)} pixels a side; the least is {step(model.name)}."
        raise SpecRefused(detail, pointer="#/model/image_size")
    elif wanted < _least(model.name):
        detail = f"{model.name} takes {_least(model.name)} pixels a side or more."
        raise SpecRefused(detail, pointer="#/model/image_size")
    return None if height == width == wanted else wanted


def step(name: str) -> int:
    """What height and width must be multiples of, in pixels. Where that is not 1, pictures must be square."""
    if name.startswith("vit"):
        return int(name.rpartition("_")[2])  # the patch
    return _MAXVIT_STEP if name.startswith("maxvit") else 1


def first_convolution(network: nn.Module) -> str:
    """The name of the layer that sees the picture."""
    return _layers(network, nn.Conv2d)[0]


def last_layer(network: nn.Module) -> str:
    """The name of the layer that gives the outputs."""
    return _layers(network, nn.Conv2d, nn.Linear)[-1]


def _layers(network: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def _wanted(name: str, height: int, width: int) -> int | None:
    if step(name) > 1:
        return -(-max(height, width) // step(name)) * step(name)
    return None if min(height, width) >= _least(name) else _least(name)


def _least(name: str) -> int:
    return next((least for begin, least in _LEAST.items() if name.startswith(begin)), 1)


def _built(model: Torchvision, channels: int, height: int, width: int, outputs: int) -> Any:
    name, options = model.name, dict[str, Any](num_classes=outputs)
    if name in ("googlenet", "inception_v3"):
        # Their ImageNet weights expect colours scaled to -1..1, which they do themselves.
        options |= {"aux_logits": False, "init_weights": True}
        options["transform_input"] = model.weights == "imagenet" and channels == 3
    elif name.startswith("vit"):
        options["image_size"] = height
    elif name.startswith("maxvit"):
        options["input_size"] = (height, width)
    elif name.startswith("mnasnet"):
        return _MNASNet(float(name.removeprefix("mnasnet").replace("_", ".")), **options)
    with _WidthsComputed() if name.startswith("regnet") else nullcontext():
        return models.get_model(name, weights=None, **options)


def _with_channels(old: nn.Conv2d, channels: int) -> nn.Conv2d:
    others: Any = (old.kernel_size, old.stride, old.padding, old.dilation, old.groups, old.bias is not None)
    return nn.Conv2d(channels, old.out_channels, *others)


class _MNASNet(models.MNASNet):  # type: ignore[misc]
    """torchvision's refuses weights that do not say of which version they are, and safetensors cannot say so."""

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *others: Any) -> None:
        super()._load_from_state_dict(state, prefix, {"version": 2} | metadata, *others)


class _WidthsComputed(TorchFunctionMode):
    """regnet's builders compute widths with tensors, whose values the meta device would not have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.arange, torch.tensor) and "device" not in kwargs:  # layers name theirs
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
