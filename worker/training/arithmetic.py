"""Which arithmetic computes: the fastest exact one, or the one that a spec's precision asks for."""

import time
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from worker.datasets.pictures import Preprocessing

Arithmetic = Literal["highest", "medium"]
EXACT_ERROR: Final = 1e-6  # of fp32 products against fp64, relative to their size
_FASTER: Final = 1.2  # by less it is not worth other last digits
_ROUNDS: Final = 20
_AUTOCAST: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}


def probe() -> list[Arithmetic]:
    """Which settings of torch's fp32 products are exact on this CPU; the one that is best for new jobs first.

    "medium" lets oneDNN take over from MKL, which on CPUs that are not Intel's runs at half speed; but on CPUs with
    AMX it means bf16 (pytorch/pytorch#125386), so the error is measured. On one thread: two that wait for each other
    beside a busy neighbour take ten times as long now and then, and equal jobs would get other last digits after a
    restart of their worker.
    """
    before, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 784, generator=generator), torch.randn(784, 512, generator=generator)
    try:
        error, seconds = _measure("medium", left, right)
        exact_seconds = _measure("highest", left, right)[1]
    finally:
        torch.set_float32_matmul_precision(before)
        torch.set_num_threads(threads)
    if error >= EXACT_ERROR:
        return ["highest"]
    return ["medium", "highest"] if seconds * _FASTER < exact_seconds else ["highest", "medium"]


def use(arithmetic: Arithmetic, precision: str, device: torch.device) -> None:
    """For the whole process."""
    if device.type == "cpu":
        torch.set_float32_matmul_precision(arithmetic)
        return
    use_on_gpu("tf32" if precision == "tf32" else "ieee")
    torch.backends.cudnn.deterministic = True
    torch.cuda.set_device(device)


def use_on_gpu(kind: Literal["ieee", "tf32"]) -> None:
    """For fp32 products and convolutions of the whole process. torch's own choice for convolutions is tf32."""
    torch.backends.cuda.matmul.fp32_precision = kind
    torch.backends.cudnn.conv.fp32_precision = kind  # type: ignore[attr-defined]


def scaler(precision: str, device: torch.device) -> GradScaler | None:
    """fp16 has so few exponents that small gradients would vanish: they are computed from a scaled loss."""
    return GradScaler(device.type) if precision == "fp16" else None


class Mixed(nn.Module):
    """A network that computes in bf16 or fp16 where torch's autocast finds that safe. Weights and output are fp32."""

    def __init__(self, network: nn.Module, precision: str, device: torch.device) -> None:
        super().__init__()
        self.network = network
        self._dtype, self._device_type = _AUTOCAST[precision], device.type

    def forward(self, X: Tensor) -> Tensor:
        with torch.autocast(self._device_type, self._dtype):
            pred: Tensor = self.network(X)
        return pred.float()


class FromUnit(nn.Module):
    """A network that takes pixels in 0..1 as they come: it normalises, scales and lays them out itself."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network = network
        self._preprocessing, self._memory_format = preprocessing, memory_format

    def forward(self, X: Tensor) -> Tensor:
        pred: Tensor = self.network(self._preprocessing.finish(X).contiguous(memory_format=self._memory_format))
        return pred


def in_precision(network: nn.Module, precision: str, device: torch.device) -> nn.Module:
    return Mixed(network, precision, device) if precision in _AUTOCAST else network


def memory_format(network: nn.Module) -> torch.memory_format:
    """Convolutions are fastest where a pixel's channels lie together."""
    is_convolutional = any(isinstance(module, nn.Conv2d) for module in network.modules())
    return torch.channels_last if is_convolutional else torch.contiguous_format


def _measure(arithmetic: Arithmetic, left: Tensor, right: Tensor) -> tuple[float, float]:
    """Relative error against fp64 (in the Frobenius norm), and the shortest time."""
    torch.set_float32_matmul_precision(arithmetic)
    exact = left.double() @ right.double()
    error = float(((left @ right).double() - exact).norm() / exact.norm())
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return error, min(seconds)
