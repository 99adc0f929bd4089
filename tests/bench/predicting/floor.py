"""What this machine would allow without a server: decode, prepare and forward in one loop in one process.

`python -m tests.bench.predicting.floor <network> <checkpoint> <seconds> <picture> ...` prints a JSON line for each way.
"""

import argparse
import hashlib
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog
import torch

from tests.worker.inference.making import answers
from worker.inference.answers import look
from worker.inference.models import Models
from worker.jobs.processes import cores

from .classifier import Classifier

_BATCHES: Final = (1, 8)
_MAX_PIXELS: Final = 25_000_000
_TOP_K: Final = 5

Files = Sequence[bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("pictures", type=Path, nargs="+")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))  # they go to our output
    files = [path.read_bytes() for path in arguments.pictures]
    ways = {
        "as the yardsticks do": _plain(arguments.network, arguments.checkpoint),
        "as epochd does": _ours(arguments.checkpoint),
    }
    for threads, (name, answer), batch in itertools.product(sorted({1, cores()}), ways.items(), _BATCHES):
        torch.set_num_threads(threads)
        per_second = _rate(answer, _batches(files, batch), arguments.seconds) * batch
        line = {"way": name, "threads": threads, "batch": batch, "per_second": per_second}
        sys.stdout.write(json.dumps(line) + "\n")


def _plain(network: str, checkpoint: Path) -> Callable[[Files], object]:
    """As the yardsticks do it."""
    classifier = Classifier(network, checkpoint)
    return lambda files: classifier.answers(torch.stack([classifier.prepare(file) for file in files]))


def _ours(checkpoint: Path) -> Callable[[Files], object]:
    sha256 = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    ready = Models(checkpoint.parent, 2**30).get(checkpoint.name, sha256)
    return lambda files: answers(ready, [look(ready, file, _MAX_PIXELS, auto_fix=False) for file in files], _TOP_K)


def _batches(files: Files, size: int) -> Iterator[Files]:
    endless = itertools.cycle(files)
    while True:
        yield list(itertools.islice(endless, size))


def _rate(answer: Callable[[Files], object], batches: Iterator[Files], seconds: float) -> float:
    """Batches a second. The first are to get warm."""
    for batch in itertools.islice(batches, 3):
        answer(batch)
    count, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds:
        answer(next(batches))
        count += 1
    return count / took


if __name__ == "__main__":
    main()
