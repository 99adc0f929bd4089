"""What every row is measured with: the options, and FashionMNIST in the forms that it is wanted in."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.end_to_end.pictures import zip_of_prepared
from tests.end_to_end.serving import Epochd, environment, epochd
from tests.tiny import prepare_whole
from worker.datasets import fashion_mnist
from worker.jobs.settings import Settings

Pictures = tuple[int, int]  # for training and for testing
Rows = list[dict[str, Any]]
WHOLE: Pictures = (60_000, 10_000)
_AWAKE_SECONDS = 1.0  # until everything that came due in its sleep is done


@dataclass(frozen=True)
class Options:
    pairs: int = 5
    epochs: int = 5  # of the tutorial
    seeds: int = 3  # of the convolutional jobs: one pair each
    starts: int = 10  # jobs whose wait for the first step is measured
    cnn_epochs: int = 3
    cnn_pictures: Pictures = WHOLE
    resnet18_epochs: int = 3
    resnet18_pictures: Pictures = (6_400, 2_000)
    engine_steps: int | None = None  # of each measurement in `engine.py`; unset: as many as the network deserves


QUICK = Options(1, 1, 1, 1, 1, (640, 200), 1, (128, 64), 2)


class Workplace:
    """The folders are made when they are first asked for."""

    def __init__(self, root: Path, options: Options, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        self._root, self._data_dir = root, root / "data"

    @cached_property
    def torchvision_root(self) -> Path:
        raw = self._root / "FashionMNIST" / "raw"
        fashion_mnist.gather(Settings(data_dir=self._data_dir), raw, self._root / "download")
        own = self._data_dir / "sources"
        own.mkdir(parents=True)
        (own / "fashion-mnist").symlink_to(raw)
        return self._root

    @cached_property
    def prepared(self) -> Path:
        """FashionMNIST's arrays."""
        return prepare_whole(self._root / "prepared")

    def archive(self, pictures: Pictures) -> Path:
        """The first so many as PNG files."""
        splits = dict(zip(("train", "test"), pictures, strict=True))
        return zip_of_prepared(self.prepared, self._root / "subset.zip", splits)

    @contextmanager
    def server(self) -> Iterator[Epochd]:
        with epochd(self._data_dir) as server:
            yield server


def timed_script(server: Epochd, module: str, *arguments: object) -> tuple[float, Rows]:
    """Runs it as a process; seconds from its start to its end, and the JSON lines it printed."""
    with asleep(server):
        started = time.perf_counter()
        rows = list(lines_of(module, *arguments))
        return time.perf_counter() - started, rows


@contextmanager
def asleep(server: Epochd) -> Iterator[None]:
    """Even an idle service takes 5 % of a core, and a script alone on its machine would have that."""
    pids = [server.process.pid, *server.processes()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)
        time.sleep(_AWAKE_SECONDS)


def lines_of(module: str, *arguments: object) -> Iterator[dict[str, Any]]:
    """The JSON lines that it prints, as they come. Raises CalledProcessError."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    env = environment()
    env.pop("OMP_NUM_THREADS", None)  # an attempt does not heed it either
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
