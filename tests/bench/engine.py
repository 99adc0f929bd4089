"""The engine beside a loop in the same process, in turns: `python -m tests.bench.engine epoch cnn ...`.

`epoch`: beside `Bare`; `step`: beside `Stock`. The engine reports to a real database. Prints a JSON line for each pair,
and one at the end.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from tests.worker.jobs import making
from worker.datasets.opening import CARD, Prepared, open_prepared
from worker.jobs.card import Card
from worker.jobs.db import Database
from worker.jobs.processes import cores
from worker.jobs.spec import Spec
from worker.networks import whole
from worker.training import arithmetic, memory
from worker.training.engine import Engine
from worker.training.progress import Reporter

from .bare import CPU, Bare, Stock
from .limits import gflop, peak_gflops
from .specs import MODELS

_TEST_PICTURES = 64  # the engine tests after each epoch, which is not measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("epoch", "step"))
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("pictures", type=int)
    parser.add_argument("pairs", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    if arguments.what == "step":
        stock = _elsewhere(arguments.model, arguments.prepared, arguments.pictures)
    memory.keep_freed()
    exact = arithmetic.probe()[0]
    spec = Spec.model_validate(MODELS[arguments.model] | {"epochs": arguments.pairs + 1})
    data = first_pictures(arguments.prepared, arguments.pictures)
    preprocessing = whole.preprocessing(spec, data.card)
    torch.manual_seed(spec.seed)
    network = whole.network(spec, preprocessing, data.card.outputs)
    loop: Bare | Elsewhere = (
        Bare(spec, data.train, preprocessing, deepcopy(network), exact) if arguments.what == "epoch" else stock
    )
    engine = Engine(spec, data, preprocessing, network, CPU, lambda *_: None)
    with reporting(spec.epochs) as reporter:
        for epoch in range(1, spec.epochs + 1):
            theirs = loop.epoch(epoch)
            arithmetic.use(exact, spec.precision, CPU)
            ours = engine.run_epoch(epoch, reporter).result.train_seconds
            if epoch > 1:  # the first is to get warm
                say({"pair": [theirs, ours]})
    say(
        {
            "same_weights": isinstance(loop, Bare) and are_equal(loop.network, engine.network),
            "gflop": gflop(arguments.model)[0] * arguments.pictures,
            "peak_gflops": peak_gflops(spec.precision),
        }
    )


class Elsewhere:
    """The stock loop in a process of its own, whose malloc is as it comes; it takes its turns when asked."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def epoch(self, number: int) -> float:
        self._connection.send(number)
        seconds: float = self._connection.recv()
        return seconds


def _elsewhere(model: str, prepared: Path, pictures: int) -> Elsewhere:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=_stock, args=(theirs, model, prepared, pictures), daemon=True).start()
    return Elsewhere(ours)


def _stock(connection: Connection, model: str, prepared: Path, pictures: int) -> None:
    torch.set_num_threads(cores())
    spec, data = Spec.model_validate(MODELS[model]), first_pictures(prepared, pictures)
    preprocessing = whole.preprocessing(spec, data.card)
    torch.manual_seed(spec.seed)
    loop = Stock(spec, data.train, preprocessing, whole.network(spec, preprocessing, data.card.outputs))
    with suppress(EOFError):  # nobody asks any more
        while True:
            connection.send(loop.epoch(connection.recv()))


def first_pictures(folder: Path, train: int) -> Prepared:
    card = Card.model_validate_json((folder / CARD).read_text())
    data = open_prepared(folder, card.sha256)
    splits = [
        replace(split, images=split.images[:count], labels=split.labels[:count])
        for split, count in ((data.train, train), (data.test, _TEST_PICTURES))
    ]
    return Prepared(card.model_copy(update={"train_count": train, "test_count": _TEST_PICTURES}), *splits)


@contextmanager
def reporting(epochs: int) -> Iterator[Reporter]:
    """As an attempt reports, to a database of its own."""
    with TemporaryDirectory(prefix="epochd-bench-") as folder:
        db = Database(f"sqlite:///{folder}/epochd.db")
        db.migrate()
        job = making.running(db)
        yield Reporter(db, job.id, job.attempt, epochs)
        db.close()


def are_equal(network: nn.Module, other: nn.Module) -> bool:
    """To the bit."""
    ours, theirs = network.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
