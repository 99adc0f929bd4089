"""What a job will be, before it runs: its size, its steps, and the memory that it will need.

Everything is found on the meta device, which has shapes but no numbers: a plan costs milliseconds, whatever the
network weighs. Activations are what autograd keeps between forward and backward.
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

_FLOAT: Final = 4  # bytes
_HALVES: Final = ("bf16", "fp16")


def plan(spec: Spec, card: Card) -> Plan:
    """Raises SpecRefused for a network that cannot be built for these pictures, and for a training that cannot fit."""
    network = shape_only(spec, card)
    check_single_pictures(spec, card, network)
    micro_batch = math.ceil(min(spec.batch_size, card.train_count) / spec.accumulation)
    steps = math.ceil(card.train_count / spec.batch_size)
    memory = _memory(spec, card, network, micro_batch)
    available = _available_bytes(spec)
    return Plan(
        spec=spec,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        steps_per_epoch=steps,
        steps=steps * spec.epochs,
        micro_batch=micro_batch,
        checkpoint_bytes=memory.weights_bytes + memory.optimizer_bytes,
        memory=memory,
        available_bytes=available,
        fitting_micro_batch=None if available is None else _fitting(spec, card, network, micro_batch, available),
    )


def shape_only(spec: Spec, card: Card) -> nn.Module:
    """The network on the meta device, in train mode. Raises SpecRefused."""
    preprocessing = whole.preprocessing(spec, card)
    with torch.device("meta"):
        return whole.network(spec, preprocessing, card.outputs).train()


def check_single_pictures(spec: Spec, card: Card, network: nn.Module) -> None:
    """Batch norm over a single number has no variance. Raises SpecRefused where the spec leads to one."""
    if card.train_count % spec.batch_size != 1 and math.ceil(spec.batch_size / spec.accumulation) > 1:
        return
    try:
        _forward(spec, card, network, 1)
    except ValueError as error:
        raise SpecRefused(
            f"Some batch, or part of one, has a single picture ({card.train_count} pictures in batches of "
            f"{spec.batch_size}), which batch norm cannot take in training.",
            pointer="#/accumulation" if spec.accumulation > 1 else "#/batch_size",
        ) from error


def _fitting(spec: Spec, card: Card, network: nn.Module, micro_batch: int, available: int) -> int:
    """Halved as the training would halve it. Raises SpecRefused when not even one picture fits."""
    while (needed := _memory(spec, card, network, micro_batch).peak_bytes) > available:
        if micro_batch == 1:
            raise SpecRefused(
                f"This training needs about {needed // 2**20} MiB with one picture at a time; "
                f"{available // 2**20} MiB are available.",
                pointer="#/memory_limit_mb" if spec.memory_limit_mb else "#/model",
            )
        micro_batch = math.ceil(micro_batch / 2)
    return micro_batch


def _memory(spec: Spec, card: Card, network: nn.Module, micro_batch: int) -> Memory:
    weights = sum(parameter.nbytes for parameter in network.parameters())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    copies = 1 + (spec.ema is not None)
    seen = card.channels * math.prod(whole.preprocessing(spec, card).input_size)
    stored = card.channels * card.height * card.width
    pictures = max(micro_batch, 2)  # batch norm may not take one
    parts = {
        "weights_bytes": copies * (weights + buffers),
        "gradients_bytes": weights,
        "optimizer_bytes": _remembered(spec.optimizer) * weights,
        "activations_bytes": micro_batch * _activations(spec, card, network, pictures) // pictures,
        "batch_bytes": min(spec.batch_size, card.train_count) * (seen * _FLOAT + stored),
    }
    return Memory(**parts, peak_bytes=sum(parts.values()))


def _remembered(optimizer: Optimizer) -> int:
    """How many numbers an optimizer keeps of each weight."""
    if isinstance(optimizer, SGD):
        return int(optimizer.momentum > 0)
    if isinstance(optimizer, RMSprop):
        return 1 + int(optimizer.momentum > 0)
    return 2


def _activations(spec: Spec, card: Card, network: nn.Module, micro_batch: int) -> int:
    """Bytes kept for backward, and twice the largest of them: its gradient, and what that is computed from."""
    known = {id(storage): storage for storage in map(_storage, (*network.parameters(), *network.buffers()))}
    kept: dict[int, UntypedStorage] = {}  # holds on to them, so that no two have the same id

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if id(storage) not in known:
            kept[id(storage)] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _forward(spec, card, network, micro_batch)
    sizes = [storage.nbytes() for storage in kept.values()]
    total = sum(sizes) + 2 * max(sizes, default=0)
    return total // 2 if spec.precision in _HALVES else total


def _forward(spec: Spec, card: Card, network: nn.Module, pictures: int) -> Tensor:
    height, width = whole.preprocessing(spec, card).input_size
    pred: Tensor = network(torch.empty(pictures, card.channels, height, width, device="meta"))
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
