"""The loops that the engine is measured against: tensors in memory, and nothing but training."""

from contextlib import nullcontext
from time import perf_counter
from typing import Final

import torch
from torch import Tensor, nn

from worker.datasets.pictures import Preprocessing
from worker.datasets.source import Split
from worker.jobs.spec import SGD, Spec
from worker.training import arithmetic
from worker.training.arithmetic import Arithmetic
from worker.training.optim import is_plain_sgd
from worker.training.order import shuffled_order

CPU: Final = torch.device("cpu")


class Bare:
    """The engine's arithmetic, order and tensors; no metrics, no reports, nobody who could stop it."""

    def __init__(
        self, spec: Spec, split: Split, preprocessing: Preprocessing, network: nn.Module, exact: Arithmetic
    ) -> None:
        assert isinstance(spec.optimizer, SGD)
        self._spec, self._split, self._preprocessing, self._exact = spec, split, preprocessing, exact
        self._format = arithmetic.memory_format(network)
        self.network = network.to(memory_format=self._format)
        self._loss_fn, self._lr = nn.CrossEntropyLoss(), spec.optimizer.lr
        parameters = list(network.parameters())
        self._optimizer = torch.optim.SGD(parameters, spec.optimizer.lr, spec.optimizer.momentum, fused=True)
        self._steps_in_backward = is_plain_sgd(spec.optimizer)
        for parameter in parameters if self._steps_in_backward else []:
            parameter.register_post_accumulate_grad_hook(self._descend)  # type: ignore[no-untyped-call]

    def epoch(self, number: int) -> float:
        """Trains it. Returns seconds."""
        arithmetic.use(self._exact, self._spec.precision, CPU)
        is_bf16 = self._spec.precision == "bf16"
        images, labels, batch_size = self._split.images, self._split.labels, self._spec.batch_size
        self.network.train()
        started = perf_counter()
        order = shuffled_order(len(labels), self._spec.seed, number)
        for start in range(0, len(labels), batch_size):
            indices = order[start : start + batch_size]
            X, y = self._preprocessing.normalise(images.index_select(0, indices)), labels.index_select(0, indices)
            X = X.contiguous(memory_format=self._format)
            with torch.autocast("cpu", torch.bfloat16) if is_bf16 else nullcontext():
                pred = self.network(X)
            loss = self._loss_fn(pred.float(), y)
            loss.backward()
            if not self._steps_in_backward:
                self._optimizer.step()
                self._optimizer.zero_grad()
        return perf_counter() - started

    def _descend(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad, alpha=-self._lr)
        parameter.grad = None


class Stock:
    """As torch comes: fp32, channels first, its default SGD; the pictures are tensors already."""

    def __init__(self, spec: Spec, split: Split, preprocessing: Preprocessing, network: nn.Module) -> None:
        assert isinstance(spec.optimizer, SGD)
        self._batch_size, self._labels = spec.batch_size, split.labels
        self._images = preprocessing.normalise(split.images)
        self._network, self._loss_fn = network, nn.CrossEntropyLoss()
        self._optimizer = torch.optim.SGD(network.parameters(), spec.optimizer.lr, spec.optimizer.momentum)

    def epoch(self, _number: int) -> float:
        """Trains it. Returns seconds."""
        torch.set_float32_matmul_precision("highest")
        self._network.train()
        started = perf_counter()
        for start in range(0, len(self._labels), self._batch_size):
            X, y = self._images[start : start + self._batch_size], self._labels[start : start + self._batch_size]
            loss = self._loss_fn(self._network(X), y)
            loss.backward()
            self._optimizer.step()
            self._optimizer.zero_grad()
        return perf_counter() - started
