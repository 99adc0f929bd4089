"""SIGKILL while a dataset is prepared: it ends whole, and nothing half-made is left.

`DATASET_KILLS` instants, 2 unless told otherwise.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.end_to_end.pictures import zip_of_prepared
from tests.end_to_end.serving import Epochd, epochd

KILLS = int(os.environ.get("DATASET_KILLS", "2"))
PATIENT = {"EPOCHD_LEASE_SECONDS": "120", "EPOCHD_MAX_ATTEMPTS": "100"}
PICTURES = {"train": 12_000, "test": 2_000}


@pytest.fixture(scope="module")
def archive(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zip_of_prepared(prepared, tmp_path_factory.mktemp("zip") / "pictures.zip", PICTURES)


def preparing_pids(server: Epochd) -> list[int]:
    """The preparing process, then those that decode for it."""
    with suppress(ProcessLookupError):
        leaders = server.attempt_pids()
        return [*leaders, *(pid for pid in server.processes() if os.getsid(pid) in leaders and pid not in leaders)]
    return []


def kill_preparing(server: Epochd) -> None:
    for pid in preparing_pids(server)[:1]:
        os.kill(pid, signal.SIGKILL)


def kill_a_decoder(server: Epochd) -> None:
    for pid in preparing_pids(server)[-1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_worker(server: Epochd) -> None:
    with suppress(ValueError):  # between two of them
        os.kill(server.pid_of("worker"), signal.SIGKILL)


def kill_everything(server: Epochd) -> None:
    for pid in [server.process.pid, *server.processes()]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait(10)


TARGETS = [kill_preparing, kill_a_decoder, kill_worker, kill_everything]


def assert_whole(server: Epochd, dataset: dict[str, Any], sha256: str) -> None:
    assert dataset["status"] == "ready", dataset["error"]
    assert dataset["sha256"] == sha256
    deadline = time.monotonic() + 10  # the last thing an attempt does is to let its archive go
    while (left := left_over(server.data_dir)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []


def left_over(data_dir: Path) -> list[Path]:
    return [*(data_dir / "uploads").iterdir(), *(data_dir / "datasets").glob(".preparing-*")]


def test_a_dataset_ends_whole_whatever_is_killed_and_when(fresh_data_dir: Callable[[], Path], archive: Path) -> None:
    rng = random.Random(1)
    data_dir = fresh_data_dir()
    with epochd(data_dir, PATIENT) as server:
        started = time.monotonic()
        server.upload(archive, name="undisturbed")
        sha256 = server.wait_dataset("undisturbed")["sha256"]
        seconds = time.monotonic() - started
    for number in range(KILLS):
        name = f"killed-{number}"
        with epochd(data_dir, PATIENT) as server:
            server.upload(archive, name=name)
            time.sleep(rng.uniform(0, seconds))
            TARGETS[number % len(TARGETS)](server)
            if TARGETS[number % len(TARGETS)] is not kill_everything:
                assert_whole(server, server.wait_dataset(name), sha256)
                continue
        with epochd(data_dir, PATIENT) as server:
            assert_whole(server, server.wait_dataset(name), sha256)


def test_a_service_that_is_killed_while_it_receives_leaves_no_dataset(
    fresh_data_dir: Callable[[], Path], archive: Path
) -> None:
    def body() -> Any:
        yield b'--frontier\r\nContent-Disposition: form-data; name="archive"; filename="x.zip"\r\n\r\n'
        yield archive.read_bytes()
        os.kill(server.pid_of("service"), signal.SIGKILL)
        for _ in range(1000):  # until the connection is seen to be gone
            yield bytes(2**16)

    with epochd(fresh_data_dir(), PATIENT) as server:
        headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
        with pytest.raises(httpx2.TransportError):
            server.http.post("/datasets", content=body(), headers=headers)
        listed = server.http.get("/datasets").json()["data"]
        assert all(each["built_in"] for each in listed)
        assert list((server.data_dir / "uploads").glob("*.archive")) == []
