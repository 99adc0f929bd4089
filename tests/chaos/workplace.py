"""What kills need: a small dataset, twenty different jobs of a few seconds, and their bits."""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tests.end_to_end.serving import Epochd, environment
from tests.tiny import prepare_tiny
from worker.jobs import leftovers, records
from worker.jobs.db import Database

TRAIN, TEST = 2_000, 400
TERMINAL = ("succeeded", "failed", "cancelled")
PATIENCE_SECONDS = 900.0

_BASE: dict[str, Any] = {"threads": 1, "batch_size": 32, "model": {"hidden": [64], "dropout": 0.2}, "epochs": 12}
_CNN: dict[str, Any] = {"model": {"name": "cnn", "channels": [4, 8], "hidden": 16, "dropout": 0.2}, "epochs": 3}
_SGD: dict[str, Any] = {"optimizer": {"lr": 0.02, "momentum": 0.9}}
_ADAMW: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": 0.001}}
_AUGMENTED: dict[str, Any] = {"augmentation": {"flip": "horizontal", "shift": 2, "cutout": 6}}
_KINDS: list[dict[str, Any]] = [
    _SGD,
    _ADAMW,
    _SGD | {"schedule": {"name": "one_cycle"}},
    _ADAMW | {"schedule": {"name": "cosine", "warmup_epochs": 2}},
    _SGD | {"schedule": {"name": "step", "every": 5}, "ema": {"decay": 0.99}},
    _SGD | _AUGMENTED,
    _SGD | _CNN,
    _ADAMW | _CNN | _AUGMENTED | {"schedule": {"name": "one_cycle"}},
    _SGD | {"accumulation": 3, "clip_gradient": 1.0, "checkpoints": {"keep": "last"}},
    _ADAMW | {"early_stopping": {"metric": "test_loss", "patience": 3}, "checkpoints": {"keep": "best"}},
]
SPECS: list[dict[str, Any]] = [_BASE | kind | {"seed": seed} for seed in (0, 1) for kind in _KINDS]

T = TypeVar("T")
Bits = tuple[list[tuple[Any, ...]], str]


def small_data_dir(folder: Path) -> Path:
    """A data folder whose fashion-mnist has few pictures."""
    prepare_tiny(folder, TRAIN, TEST)
    return folder


def submit(server: Epochd, spec: Mapping[str, Any]) -> str:
    """Again and again while the service is being restarted; a job that was accepted unheard is left over, and fine."""
    return patiently(lambda: server.submit(**spec))


def bits(server: Epochd, job_id: str) -> Bits:
    """The curve and the last weights: all that an interruption could change."""
    rows = server.metrics(job_id)
    curve = [(row["epoch"], row["train_loss"], row["test_loss"], row["test_accuracy"]) for row in rows]
    checkpoints = server.http.get(f"/jobs/{job_id}/checkpoints").json()["data"]
    return curve, checkpoints[-1]["weights_sha256"]


def statuses(server: Epochd, job_ids: list[str]) -> dict[str, str]:
    return {job_id: server.job(job_id)["status"] for job_id in job_ids}


def finished(server: Epochd, job_ids: list[str]) -> bool:
    return all(status in TERMINAL for status in patiently(lambda: statuses(server, job_ids)).values())


def patiently(ask: Callable[[], T]) -> T:
    """Asks until it is answered: a service that was killed is away for a moment."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except (httpx2.TransportError, httpx2.HTTPStatusError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def wait_finished(server: Epochd, job_ids: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not finished(server, job_ids):
        assert time.monotonic() < deadline, statuses(server, job_ids)
        time.sleep(0.2)


def assert_undisturbed(server: Epochd, job_id: str, expected: Bits) -> None:
    """It succeeded, with nothing lost, nothing doubled, and the bits of the run that nobody disturbed."""
    job = server.job(job_id)
    assert job["status"] == "succeeded", job["error"]
    rows = server.metrics(job_id)
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(one["seq"] < other["seq"] for one, other in itertools.pairwise(rows))
    assert bits(server, job_id) == expected, (job_id, job["spec"])
    assert job["resume"] in (None, "exact")


def assert_nothing_is_wrong(data_dir: Path, job_ids: list[str]) -> None:
    """Rows agree with each other and with the files; of these jobs no file lies about that has no row."""
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)}
    command = [sys.executable, "-m", "service.cli", "admin", "check", "--digests"]
    checked = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with database(data_dir) as db:
        for job_id in job_ids:
            assert checkpoint_files(data_dir, job_id) == set(records.files(db, job_id))


@contextmanager
def database(data_dir: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    try:
        yield db
    finally:
        db.close()


def checkpoint_files(data_dir: Path, job_id: str) -> set[str]:
    """All that lies there, half-written ones too; relative to the data folder."""
    return {str(path.relative_to(data_dir)) for path in (data_dir / leftovers.checkpoints_folder(job_id)).glob("*")}
