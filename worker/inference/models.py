"""Checkpoints held ready for answering: loaded once, the least recently used leave first."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import structlog
import torch
from torch import Tensor, nn

from worker.datasets.pictures import Preprocessing, unit
from worker.networks.whole import network
from worker.training import arithmetic, checkpoints
from worker.training.checkpoints import Metadata
from worker.training.scores import probabilities

from .doctor import Doctor
from .folding import aligned, folded

_BATCH_BYTES: Final = 4 * 2**20  # of float pixels that go through a network at once: they stay in the processor's cache
_LARGE_FLOPS: Final = 50_000_000  # for a picture: threads that wait for each other cost more than they save on less
_SPARE_GPU_BYTES: Final = 2**30  # that a training finds free beside the predictor
_log = structlog.get_logger()


@dataclass(frozen=True)
class Ready:
    """A network that answers, on its device."""

    sha256: str
    metadata: Metadata
    network: nn.Module  # in eval mode; takes what `preprocessing.finish` gives, laid out as `memory_format`
    device: torch.device
    memory_format: torch.memory_format
    bytes: int
    is_large: bool  # whether one picture is work enough for more than one thread

    @property
    def preprocessing(self) -> Preprocessing:
        return self.metadata.preprocessing

    @cached_property
    def doctor(self) -> Doctor:
        return Doctor(self.metadata.looks, self.preprocessing)

    @cached_property
    def at_once(self) -> int:
        """How many pictures go through the network together. More are no faster on a processor."""
        picture_bytes = 4 * self.preprocessing.channels * math.prod(self.preprocessing.input_size)
        return max(1, _BATCH_BYTES // picture_bytes)

    def logits(self, images: Tensor) -> Tensor:
        """uint8 N x C x H x W of the prepared size to float32 N x outputs, on the CPU: logits, or numbers."""
        return self._in_chunks(images, unit)

    def outputs(self, X: Tensor) -> Tensor:
        """The same for pictures as the tutorial's ToTensor gives them: float32 in 0..1."""
        return self._in_chunks(X, lambda chunk: chunk)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class, N x classes."""
        return probabilities(logits, self.metadata.spec.loss)

    @torch.inference_mode()
    def _in_chunks(self, pictures: Tensor, prepare: Callable[[Tensor], Tensor]) -> Tensor:
        if len(pictures) == 1 and not self.is_large:
            return self._alone(prepare(pictures.to(self.device)))
        chunks = torch.split(pictures, self.at_once)
        found = [self._forward(prepare(chunk.to(self.device))) for chunk in chunks]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _alone(self, X: Tensor) -> Tensor:
        """oneDNN lays weights out anew for each product: for one picture that takes longer than the product."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            return self._forward(X)
        finally:
            torch.set_float32_matmul_precision(before)

    def _forward(self, X: Tensor) -> Tensor:
        X = self.preprocessing.finish(X).contiguous(memory_format=self.memory_format)
        pred: Tensor = self.network(X)
        return pred.float().cpu()


class Models:
    def __init__(self, data_dir: Path, max_bytes: int, *, device: str = "cpu") -> None:
        """`device`: `auto` takes a GPU where there is one with room beside a training."""
        self._data_dir, self._max_bytes, self._device = data_dir, max_bytes, device
        self._ready: OrderedDict[str, Ready] = OrderedDict()

    def get(self, path: str, sha256: str) -> Ready:
        """The network of a checkpoint, by its digest. Raises CheckpointCorrupt."""
        if (known := self._ready.get(sha256)) is not None:
            self._ready.move_to_end(sha256)
            return known
        ready = self._load(path, sha256)
        self._ready[sha256] = ready
        while len(self._ready) > 1 and sum(each.bytes for each in self._ready.values()) > self._max_bytes:
            self._ready.popitem(last=False)
        return ready

    def leave_gpu(self) -> bool:
        """After a GPU had no room: no checkpoint uses one from now on. Returns whether one did."""
        had = any(each.device.type != "cpu" for each in self._ready.values())
        self._device = "cpu"
        self._ready.clear()
        return had

    def _load(self, path: str, sha256: str) -> Ready:
        plain, metadata = load_plain(self._data_dir, path, sha256)
        size = sum(tensor.nbytes for tensor in plain.state_dict().values())
        layout = arithmetic.memory_format(plain)
        device = self._place(size)
        if device.type == "cuda":
            arithmetic.use_on_gpu("ieee")
        precision = metadata.spec.precision if device.type == "cuda" or metadata.spec.precision == "bf16" else "fp32"
        # Weights of 16 bits round what is folded into them: one picture in 600 would change its class.
        made = (folded(plain) if precision in ("fp32", "tf32") else plain).to(device).to(memory_format=layout)
        made.requires_grad_(requires_grad=False)
        made = arithmetic.in_precision(made, precision, device).eval()
        _log.info("checkpoint_loaded", job=metadata.job, epoch=metadata.epoch, bytes=size, device=str(device))
        is_large = _flops(made, metadata.preprocessing, device) > _LARGE_FLOPS
        return Ready(sha256, metadata, made, device, layout, size, is_large)

    def _place(self, size: int) -> torch.device:
        if self._device == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        free, _ = torch.cuda.mem_get_info()
        return torch.device("cuda" if free > 3 * size + _SPARE_GPU_BYTES else "cpu")


@torch.inference_mode()
def _flops(network: nn.Module, preprocessing: Preprocessing, device: torch.device) -> int:
    """Floating-point operations of linear layers and convolutions for one picture.

    torch's own counter would import a compiler. The first pass is the slowest, so it is good to have it done.
    """
    counted = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal counted
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted += 2 * layer.weight.numel() * (output.numel() // layer.weight.shape[0])

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(torch.zeros(1, preprocessing.channels, *preprocessing.input_size, device=device))
    for hook in hooks:
        hook.remove()
    return counted


def load_plain(data_dir: Path, path: str, sha256: str) -> tuple[nn.Module, Metadata]:
    """The network of a checkpoint as the test loop has it, in eval mode on the CPU. Raises CheckpointCorrupt."""
    loaded = checkpoints.load(data_dir / path, sha256)
    metadata, weights = loaded.metadata, aligned(loaded.weights)
    with torch.device("meta"):  # nothing is allocated for weights that would be thrown away
        model = network(metadata.spec, metadata.preprocessing, metadata.outputs)
        model.load_state_dict(weights, assign=True)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):  # some is not in the file
        model = network(metadata.spec, metadata.preprocessing, metadata.outputs)
        model.load_state_dict(weights)
    return model.eval(), metadata
