"""From a spec's loss and optimizer to torch's."""

from collections.abc import Iterable

from torch import nn, optim

from worker.jobs.spec import SGD, Loss

from .loops import LossFn


def loss_function(loss: Loss) -> LossFn:
    losses: dict[str, LossFn] = {"cross_entropy": nn.CrossEntropyLoss(), "mse": nn.MSELoss()}
    return losses[loss.name]


def optimizer(spec: SGD, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=spec.lr)
