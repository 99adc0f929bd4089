"""What a job will be, before it runs: its size, its steps, and the memory that it will need.

Everything is found on the meta device, which has shapes but no numbers: a plan costs one pass of two pictures without
arithmetic. Activations are what autograd keeps between forward and backward.
"""

import math
from typing import Final

import torch
from torch import Tensor, UntypedStorage, nn

from worker.jobs.card import Card
from worker.jobs.errors import SpecRefused
from worker.jobs.plan import Memory, Plan
from worker.jobs.spec import SGD, Optimizer, RMSprop, Spec
from worker.networks import whole

from . import memory as machine
from .accumulation import micro_batch

_FLOAT: Final = 4  # bytes
_HALVES: Final = ("bf16", "fp16")


def plan(spec: Spec, card: Card) -> Plan:
    """Raises SpecRefused for a network that cannot be built for these pictures, and for a training that cannot fit."""
    network = shape_only(spec, card)
    check_single_pictures(spec, card)
    at_once = micro_batch(spec, card.train_count)
    per_picture = _activations(spec, card, network)
    steps = math.ceil(card.train_count / spec.batch_size)
    memory = _memory(spec, card, network, per_picture * at_once, at_once)
    available = _available_bytes(spec)
    return Plan(
        spec=spec,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        steps_per_epoch=steps,
        steps=steps * spec.epochs,
        micro_batch=at_once,
        checkpoint_bytes=memory.weights_bytes + memory.optimizer_bytes,
        memory=memory,
        available_bytes=available,
        fitting_micro_batch=None if available is None else _fitting(spec, memory, at_once, available),
    )


def shape_only(spec: Spec, card: Card) -> nn.Module:
    """The network on the meta device, in train mode. Raises SpecRefused."""
    preprocessing = whole.preprocessing(spec, card)
    with torch.device("meta"):
        return whole.network(spec, preprocessing, card.outputs).train()


def check_single_pictures(spec: Spec, card: Card) -> None:
    """Batch norm over a single number has no variance. Raises SpecRefused where the spec leads to one.

    Parts of a batch are never made so small, but a batch itself may be.
    """
    if card.train_count % spec.batch_size != 1 and spec.batch_size != 1:
        return
    try:
        _forward(spec, card, shape_only(spec, card), 1)
    except ValueError as error:
        raise SpecRefused(
            f"The last batch would be a single picture ({card.train_count} pictures in batches of {spec.batch_size}), "
            "which the batch norm of this network cannot take in training.",
            pointer="#/batch_size",
        ) from error


def _fitting(spec: Spec, memory: Memory, at_once: int, available: int) -> int:
    """Halved as the training would halve it. Raises SpecRefused when not even one picture fits."""
    fixed = memory.peak_bytes - memory.activations_bytes
    per_picture = memory.activations_bytes // at_once
    while fixed + per_picture * at_once > available:
        if at_once == 1:
            limited = "#/memory_limit_mb" if spec.memory_limit_mb else "#/model"
            raise SpecRefused(
                f"This training needs about {(fixed + per_picture) // 2**20} MiB with one picture at a time; "
                f"{available // 2**20} MiB are available.",
                pointer="#/batch_size" if memory.batch_bytes > available else limited,
            )
        at_once = math.ceil(at_once / 2)
    return at_once


def _memory(spec: Spec, card: Card, network: nn.Module, activations: int, at_once: int) -> Memory:
    weights = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    copies = 1 + (spec.ema is not None)
    stored = card.channels * card.height * card.width
    seen = card.channels * math.prod(whole.preprocessing(spec, card).input_size)
    parts = {
        "weights_bytes": copies * (weights + buffers),
        "gradients_bytes": weights,
        "optimizer_bytes": _remembered(spec.optimizer) * weights,
        "activations_bytes": activations + at_once * seen * _FLOAT,
        "batch_bytes": min(spec.batch_size, card.train_count) * stored * (1 + _FLOAT),
    }
    return Memory(**parts, peak_bytes=sum(parts.values()))


def _remembered(optimizer: Optimizer) -> int:
    """How many numbers an optimizer keeps of each weight."""
    if isinstance(optimizer, SGD):
        return int(optimizer.momentum > 0)
    if isinstance(optimizer, RMSprop):
        return 1 + int(optimizer.momentum > 0)
    return 2


def _activations(spec: Spec, card: Card, network: nn.Module) -> int:
    """Bytes kept for backward, and twice the largest of them: its gradient, and what that is computed from.

    For one picture; found with two, because batch norm may not take one.
    """
    known = {id(storage): storage for storage in map(_storage, (*network.parameters(), *network.buffers()))}
    kept: dict[int, UntypedStorage] = {}  # holds on to them, so that no two have the same id

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if id(storage) not in known:
            kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(spec, card, network, 2)
    sizes = [storage.nbytes() for storage in kept.values()]
    total = (sum(sizes) + 2 * max(sizes, default=0)) // 2
    return total // 2 if spec.precision in _HALVES else total


def _forward(spec: Spec, card: Card, network: nn.Module, pictures: int) -> Tensor:
    height, width = whole.preprocessing(spec, card).input_size
    try:
        pred: Tensor = network(torch.empty(pictures, card.channels, height, width, device="meta"))
    except RuntimeError as error:  # sizes that no tensor can have
        raise SpecRefused(
            "What this network keeps of a picture is too large to be counted.", pointer="#/model"
        ) from error
    return pred


def _storage(tensor: Tensor) -> UntypedStorage:
    """Views share it; the same object for each of them, as long as somebody holds it."""
    return tensor.untyped_storage()


def _available_bytes(spec: Spec) -> int | None:
    if spec.memory_limit_mb is not None:
        return spec.memory_limit_mb * 2**20
    if spec.device.startswith("cuda") or (spec.device == "auto" and torch.cuda.is_available()):
        return None
    return machine.total_bytes()
