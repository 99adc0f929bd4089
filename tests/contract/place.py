"""A service to fuzz: what it holds was trained by a real worker, which has left, so that no fuzzed job is trained."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import numpy as np

from tests.end_to_end.pictures import png, zip_files
from tests.end_to_end.serving import START_SECONDS, Epochd, environment, epochd
from tests.tiny import prepare_tiny
from worker.jobs import workers
from worker.jobs.db import Database

FILES = "files"
KEY = "epochd_for_the_contract_only"
_JOBS = 6  # fuzzing deletes some
_UNLIMITED = {
    "EPOCHD_LEASE_SECONDS": "1000000",  # a worker that was heard once counts as alive, so that /readyz says 200
    "EPOCHD_MAX_QUEUED_JOBS": "10000000",
    "EPOCHD_MAX_QUEUED_JOBS_PER_KEY": "10000000",
}


@dataclass(frozen=True)
class Place:
    url: str
    jobs: list[str]
    datasets: list[str]
    models: list[str]
    files: Path  # pictures and archives that a request may hold
    key: str | None
    log: Path


@contextmanager
def place(data_dir: Path, *, database_url: str | None = None, key: str | None = None) -> Iterator[Place]:
    """A service alone, with its predictor, on jobs, checkpoints, aliases and datasets that are there already."""
    settings = {"EPOCHD_DATABASE_URL": database_url} if database_url else {}
    settings |= {"EPOCHD_API_KEY": key} if key else {}
    prepare_tiny(data_dir)
    with epochd(data_dir, settings) as running:
        if key:
            running.http.headers["Authorization"] = f"Bearer {key}"
        jobs, datasets, models = _furnish(running)
    _pretend_a_worker(database_url or f"sqlite:///{data_dir / 'epochd.db'}")
    with _service(data_dir, settings | _UNLIMITED) as (url, log):
        yield Place(url, jobs, datasets, models, data_dir / FILES, key, log)


def _furnish(running: Epochd) -> tuple[list[str], list[str], list[str]]:
    spec = {"epochs": 2, "device": "cpu", "model": {"name": "mlp", "hidden": [16]}}
    jobs = [running.submit(name=f"tiny-{number}", **spec) for number in range(_JOBS)]
    files = running.data_dir / FILES
    files.mkdir()
    running.upload(_pictures(files), name="squares")
    assert {running.wait_terminal(job)["status"] for job in jobs} == {"succeeded"}
    assert running.wait_dataset("squares")["status"] == "ready"
    models = ["default", "kept"]
    for model, job in zip(models, jobs, strict=False):
        running.http.put(f"/models/{model}", json={"job": job}).raise_for_status()
    deadline = time.monotonic() + START_SECONDS
    while any(running.http.get(f"/jobs/{job}/parity").status_code != 200 for job in jobs):
        assert time.monotonic() < deadline, "no certificate"
        time.sleep(0.1)
    bundle = running.http.get(f"/jobs/{jobs[0]}/checkpoints/best/export?format=bundle").raise_for_status()
    (files / "bundle.zip").write_bytes(bundle.content)
    return jobs, ["fashion-mnist", "squares"], models


def _pretend_a_worker(database_url: str) -> None:
    """The one that trained has left; /readyz asks for one."""
    db = Database(database_url)
    workers.register(db, "left", "nowhere")
    db.close()


def _pictures(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    pictures = [png(rng.integers(0, 255, (12, 12), dtype=np.uint8)) for _ in range(40)]
    (folder / "picture.png").write_bytes(pictures[0])
    named = [(f"{('a', 'b')[number % 2]}/{number}.png", each) for number, each in enumerate(pictures)]
    zip_files(folder / "small.zip", named[:2])
    return zip_files(folder / "pictures.zip", named)


@contextmanager
def _service(data_dir: Path, settings: dict[str, str]) -> Iterator[tuple[str, Path]]:
    log = data_dir / "service.log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)} | settings
        command = [sys.executable, "-m", "service", "--fd", str(listener.fileno())]
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, pass_fds=(listener.fileno(),))
        try:
            _wait_ready(url, process, log)
            yield url, log
            assert process.poll() is None, log.read_text()[-2000:]
        finally:
            process.terminate()
            process.wait(30)


def _wait_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while httpx2.get(f"{url}/readyz", timeout=START_SECONDS).status_code != 200:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.1)


def server_errors(log: Path) -> list[str]:
    """What the service's log holds of failures of its own."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return [json.dumps(each)[:2000] for each in lines if each.get("event") in ("request_failed", "database_away")]
