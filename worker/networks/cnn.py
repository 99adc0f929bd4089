"""A small convolutional network."""

from torch import nn

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import CNN


def cnn(model: CNN, *, channels: int, height: int, width: int, outputs: int) -> nn.Sequential:
    """(3x3 convolution, batch norm, ReLU, 2x2 max pooling) for each entry of `channels`, then flatten, linear, ReLU
    [, dropout], linear. N x channels x height x width become N x outputs.

    Raises SpecRefused when the pictures cannot be halved so often.
    """
    halvings = min(height, width).bit_length() - 1
    if len(model.channels) > halvings:
        detail = (
            f"Each entry halves height and width, and pictures of {height} x {width} can be halved {halvings} times."
        )
        raise SpecRefused(detail, pointer="#/model/channels")
    layers: list[nn.Module] = []
    for out_channels in model.channels:
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels, height, width = out_channels, height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(channels * height * width, model.hidden), nn.ReLU()]
    if model.dropout:
        layers.append(nn.Dropout(model.dropout))
    layers.append(nn.Linear(model.hidden, outputs))
    return nn.Sequential(*layers)
