"""From a spec's model to an `nn.Module`."""

from torch import nn

from worker.jobs.spec import MLP

from .mlp import mlp


def build(model: MLP, *, channels: int, height: int, width: int, outputs: int) -> nn.Module:
    """A network for pictures of N x channels x height x width that gives N x outputs: logits, or numbers.

    Its weights come from torch's global generator: seed it first.
    """
    return mlp(channels * height * width, model.hidden, outputs, model.dropout)
