"""What this machine would allow: `python -m tests.bench.limits mlp ...` prints one JSON line.

For the MLP the floor is the matrix products of its steps in their own shapes, timed alone. For convolutions it is the
arithmetic of the whole training at the rate of a large matrix product.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.worker.jobs.making import card
from worker.datasets.pictures import plain
from worker.jobs.processes import cores
from worker.jobs.spec import Spec
from worker.networks import whole
from worker.training import arithmetic
from worker.training.batches import test_batch_size
from worker.training.plan import shape_only

from .reference import BATCH_SIZE
from .specs import MODELS

_MLP = ((784, 512), (512, 512), (512, 10))
_PEAK_SIDE, _PEAK_ROUNDS = 2048, 20
_BLOCKS, _BLOCK_STEPS = 20, 30


def gflop(model: str) -> tuple[float, float]:
    """10^9 floating-point operations for a picture: to train on it, and to test it."""
    spec, pictures = Spec.model_validate(MODELS[model]), card(classes=[*"0123456789"])
    network = shape_only(spec, pictures)
    X = torch.empty(BATCH_SIZE, 1, *whole.preprocessing(spec, pictures).input_size, device="meta")
    with FlopCounterMode(display=False) as both:
        network(X).sum().backward()
    with torch.no_grad(), FlopCounterMode(display=False) as forward:
        network(X)
    return both.get_total_flops() / 1e9 / BATCH_SIZE, forward.get_total_flops() / 1e9 / BATCH_SIZE


def peak_gflops(precision: str) -> float:
    """10^9 operations per second in a large matrix product, at the best of some rounds."""
    left, right = (torch.randn(_PEAK_SIDE, _PEAK_SIDE, dtype=_dtype(precision)) for _ in range(2))
    seconds = min(_seconds(lambda: left @ right) for _ in range(_PEAK_ROUNDS))
    return 2 * _PEAK_SIDE**3 / 1e9 / seconds


def mlp_floor(precision: str, train: int, test: int) -> float:
    """Seconds for the products of one epoch: forward, the weights' gradients, the inputs' but the first."""
    test_batch = test_batch_size(plain(1, 28, 28), BATCH_SIZE)
    step, testing = _products(precision, BATCH_SIZE, backward=True), _products(precision, test_batch, backward=False)
    return step * train / BATCH_SIZE + testing * test / test_batch


def _products(precision: str, batch: int, *, backward: bool) -> float:
    """Seconds for one batch: the 10th percentile of blocks."""
    dtype = _dtype(precision)
    weights = [torch.randn(outputs, inputs, dtype=dtype) for inputs, outputs in _MLP]
    inputs = [torch.randn(batch, inputs, dtype=dtype) for inputs, _ in _MLP]
    gradients = [torch.randn(batch, outputs, dtype=dtype) for _, outputs in _MLP]

    def block() -> None:
        for _ in range(_BLOCK_STEPS):
            for layer, (W, X, G) in enumerate(zip(weights, inputs, gradients, strict=True)):
                functional.linear(X, W)
                if backward:
                    G.t() @ X
                if backward and layer:
                    G @ W

    return statistics.quantiles([_seconds(block) for _ in range(_BLOCKS)], n=10)[0] / _BLOCK_STEPS


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("train", type=int, help="pictures")
    parser.add_argument("test", type=int)
    parser.add_argument("epochs", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    torch.set_float32_matmul_precision(arithmetic.probe()[0])
    training, testing = gflop(arguments.model)
    total = training * arguments.train + testing * arguments.test
    peak = peak_gflops(arguments.precision)
    is_mlp = arguments.model == "mlp"
    floor = mlp_floor(arguments.precision, arguments.train, arguments.test) if is_mlp else total / peak
    found = {"floor_seconds": arguments.epochs * floor, "gflop": arguments.epochs * total, "peak_gflops": peak}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
