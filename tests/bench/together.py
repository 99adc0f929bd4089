"""Does it pay to train equal small models together in one process? `python -m tests.bench.together`

The tutorial's network, K of them with other first weights and learning rates: one after another, all in one process
(torch.func's `stack_module_state` and `vmap`), and one process each. What comes out is model-steps a second, the median
of some rounds in turn; on a GPU too, where there is one.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from worker.jobs.processes import cores

BATCH, ROUNDS = 64, 3


def network() -> nn.Module:
    layers = (nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    return nn.Sequential(*layers)


def batches(device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(BATCH * 50, 1, 28, 28, generator=generator).to(device)
    y = torch.randint(10, (BATCH * 50,), generator=generator).to(device)
    return X, y


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def alone(device: torch.device, steps: int, lr: float) -> None:
    torch.manual_seed(0)
    model, loss_fn = network().to(device), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, foreach=device.type == "cuda")
    X, y = batches(device)
    for step in range(steps):
        here = slice(step % 50 * BATCH, step % 50 * BATCH + BATCH)
        loss_fn(model(X[here]), y[here]).backward()
        optimizer.step()
        optimizer.zero_grad()
    wait(device)


def one_after_another(device: torch.device, models: int, steps: int) -> None:
    for index in range(models):
        alone(device, steps, 1e-3 * (index + 1))


def together(device: torch.device, models: int, steps: int) -> None:
    torch.manual_seed(0)
    stacked = [network().to(device) for _ in range(models)]
    weights, buffers = stack_module_state(stacked)
    skeleton, loss_fn = network().to(device), nn.CrossEntropyLoss()
    rates = torch.linspace(1e-3, 1e-2, models, device=device)

    def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], X: Tensor, y: Tensor) -> Tensor:
        made: Tensor = loss_fn(functional_call(skeleton, (weights, buffers), (X,)), y)
        return made

    gradients = vmap(grad(loss), in_dims=(0, 0, None, None))
    X, y = batches(device)
    for step in range(steps):
        here = slice(step % 50 * BATCH, step % 50 * BATCH + BATCH)
        found = gradients(weights, buffers, X[here], y[here])
        with torch.no_grad():
            for name, weight in weights.items():
                weight.sub_(found[name] * rates.view(-1, *[1] * (weight.dim() - 1)))
    wait(device)


def _process(device: torch.device, steps: int, threads: int, begin: Connection) -> None:
    torch.set_num_threads(threads)
    alone(device, 20, 1e-3)
    begin.send("ready")
    begin.recv()
    alone(device, steps, 1e-3)
    begin.send("done")


def a_process_each(device: torch.device, models: int, steps: int) -> float:
    """Seconds, from when all of them are warm; as many at once as there are cores, on a GPU all."""
    at_once = models if device.type == "cuda" else min(models, cores())
    context, seconds = multiprocessing.get_context("spawn"), 0.0
    for _ in range(-(-models // at_once)):
        pipes = [context.Pipe() for _ in range(at_once)]
        made = [context.Process(target=_process, args=(device, steps, 1, theirs)) for _, theirs in pipes]
        for process in made:
            process.start()
        for ours, _ in pipes:
            ours.recv()
        started = time.perf_counter()
        for ours, _ in pipes:
            ours.send("begin")
        for ours, _ in pipes:
            ours.recv()
        seconds += time.perf_counter() - started
        for process in made:
            process.join()
    return seconds


def timed(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--steps", type=int, default=500)
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"] if has_gpu else ["cpu"], metavar="DEVICE")
    arguments = parser.parse_args()
    console, steps = Console(highlight=False), arguments.steps
    for device in map(torch.device, arguments.devices):
        for models in arguments.models:
            ways: dict[str, Callable[[], float]] = {
                "one after another": lambda: timed(partial(one_after_another, device, models, steps)),  # noqa: B023
                "together (vmap)": lambda: timed(partial(together, device, models, steps)),  # noqa: B023
                "a process each": lambda: a_process_each(device, models, steps),  # noqa: B023
            }
            alone(device, 20, 1e-3)
            together(device, models, 20)
            rounds = [{name: act() for name, act in ways.items()} for _ in range(ROUNDS)]
            for name in ways:
                seconds = statistics.median(each[name] for each in rounds)
                ratio = statistics.median(each["one after another"] / each[name] for each in rounds)
                console.print(f"{device.type} K={models:<3} {name:18} {models * steps / seconds:8.0f}/s  {ratio:.2f}")


if __name__ == "__main__":
    main()
