"""The process that answers pictures is killed under load: who waited is told to come back, the next answers at once.

PREDICTOR_KILLS of it, 5 unless told otherwise.
"""

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2
import numpy as np
import pytest

from tests.end_to_end.pictures import png
from tests.end_to_end.serving import Epochd, epochd

KILLS: Final = int(os.environ.get("PREDICTOR_KILLS", "5"))
SEED: Final = int(os.environ.get("SEED", "1"))
CLIENTS: Final = 8
MOST_SECONDS: Final = 10.0  # generous: what is promised is 1.5, on a machine that has nothing else to do


class Asked(NamedTuple):
    at: float
    done: float
    status: int
    code: str
    retry_after: str
    answer: object


@pytest.fixture(scope="module")
def server(fresh_data_dir: Callable[[], Path]) -> Iterator[Epochd]:
    with epochd(fresh_data_dir()) as running:
        job_id = running.submit(epochs=1, model={"name": "mlp", "hidden": [16]}, threads=1)
        assert running.wait_terminal(job_id)["status"] == "succeeded"
        yield running


@pytest.fixture(scope="module")
def picture(prepared: Path) -> bytes:
    return png(np.load(prepared / "test_images.npy")[0, 0])


@contextmanager
def load(server: Epochd, picture: bytes) -> Iterator[list[Asked]]:
    """Asks without a pause until the block ends; what was answered is in the list."""
    stop, asked = threading.Event(), list[Asked]()

    def ask() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                at = time.monotonic()
                answer = client.post("/predict?top_k=1", files={"image": picture})
                body: dict[str, Any] = answer.json()
                told = body.get("predictions", [{}])[0].get("class_index")
                retry = answer.headers.get("Retry-After", "")
                asked.append(Asked(at, time.monotonic(), answer.status_code, body.get("code", ""), retry, told))
                if answer.status_code == 503:
                    time.sleep(0.005)  # sooner than asked, to see the first good one

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            yield asked
        finally:
            stop.set()
        for each in asking:
            each.result()


def test_who_waits_for_a_killed_predictor_is_told_to_come_back_and_the_next_one_answers_soon(
    server: Epochd, picture: bytes, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(SEED)
    kills = []
    with load(server, picture) as asked:
        for _ in range(KILLS):
            time.sleep(rng.uniform(0.2, 1.0))
            pid = server.predictor_pid()
            os.kill(pid, signal.SIGKILL)
            kills.append(time.monotonic())
        time.sleep(1.0)
    assert {each.status for each in asked} <= {200, 503}
    refused = [each for each in asked if each.status == 503]
    assert {(each.code, each.retry_after) for each in refused} <= {("predictor_unavailable", "1")}
    assert len({each.answer for each in asked if each.status == 200}) == 1
    waits = [min(each.done for each in asked if each.status == 200 and each.at >= kill) - kill for kill in kills]
    record_property("seconds", {"median": statistics.median(waits), "longest": max(waits), "refused": len(refused)})
    assert max(waits) < MOST_SECONDS


def test_the_process_that_forks_predictors_may_be_killed_without_anybody_noticing(
    server: Epochd, picture: bytes
) -> None:
    predictor, parent = server.predictor_pid(), server.pid_of("worker.inference")
    with load(server, picture) as asked:
        time.sleep(0.3)
        os.kill(parent, signal.SIGKILL)
        time.sleep(1.0)
    assert {each.status for each in asked} == {200}
    assert server.predictor_pid() == predictor


def test_when_both_are_killed_they_come_back(server: Epochd, picture: bytes) -> None:
    with load(server, picture) as asked:
        time.sleep(0.3)
        deadline = time.monotonic() + 30
        while True:  # the one that forks has been started anew
            try:
                parent = server.pid_of("worker.inference")
                break
            except ValueError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        os.kill(parent, signal.SIGKILL)
        os.kill(server.predictor_pid(), signal.SIGKILL)
        killed = time.monotonic()
        while not any(each.status == 200 and each.at > killed for each in asked):
            assert time.monotonic() < killed + 30
            time.sleep(0.05)
    assert {each.status for each in asked} <= {200, 503}
