"""From a spec's model to an `nn.Module`."""

from torch import nn

from worker.jobs.spec import CNN, MLP, Layers, Model, Torchvision

from .cnn import cnn
from .layers import layers
from .mlp import mlp
from .torchvision import side, torchvision


def build(model: Model, *, channels: int, height: int, width: int, outputs: int) -> nn.Module:
    """A network for input of N x channels x height x width that gives N x outputs: logits, or numbers.

    Its weights come from torch's global generator: seed it first. Under `torch.device("meta")` nothing is allocated.
    Raises SpecRefused.
    """
    match model:
        case MLP():
            return mlp(
                channels * height * width,
                model.hidden,
                outputs,
                model.dropout,
                activation=model.activation,
                batch_norm=model.batch_norm,
            )
        case CNN():
            return cnn(model, channels=channels, height=height, width=width, outputs=outputs)
        case Layers():
            return layers(model.layers, channels=channels, height=height, width=width, outputs=outputs)
        case Torchvision():
            return torchvision(model, channels=channels, height=height, width=width, outputs=outputs)


def image_size(model: Model, height: int, width: int) -> int | None:
    """Pixels a side to which pictures of height x width are scaled before `build`'s network; None when they are taken
    as they are. Raises SpecRefused.
    """
    return side(model, height, width) if isinstance(model, Torchvision) else None
