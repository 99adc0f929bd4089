"""From a spec's loss and optimizer to torch's."""

from collections.abc import Iterable

from torch import nn, optim

from worker.jobs.spec import SGD, CrossEntropy

from .loops import LossFn


def loss_function(loss: CrossEntropy) -> LossFn:
    losses = {"cross_entropy": nn.CrossEntropyLoss()}
    return losses[loss.name]


def optimizer(spec: SGD, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    return optim.SGD(parameters, lr=spec.lr)
