"""Prediction over real HTTP where it is harder: checkpoints that come and go, many pictures, many clients.

CONNECTIONS says how many clients ask at the same instant.
"""

import json
import os
import selectors
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import pytest

from tests.chaos.workplace import small_data_dir
from tests.end_to_end.pictures import png
from tests.end_to_end.serving import Epochd, epochd

CONNECTIONS: Final = int(os.environ.get("CONNECTIONS", "400"))
MOST_BYTES: Final = 64 * 2**20  # that the service may grow by; as many pictures as may wait have 8 MiB
SHORT: Final = {"model": {"name": "mlp", "hidden": [16]}, "threads": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochd]:
    """With few training pictures: its epochs take a tenth of a second."""
    with epochd(small_data_dir(tmp_path_factory.mktemp("data"))) as running:
        yield running


@pytest.fixture(scope="module")
def trained(server: Epochd) -> str:
    job_id = server.submit(**SHORT, epochs=3)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    return job_id


@pytest.fixture(scope="module")
def shapes() -> list[bytes]:
    """Pictures that differ."""
    rng = np.random.default_rng(0)
    return [png(rng.integers(0, 255, (28, 28), dtype=np.uint8)) for _ in range(6)]


def raw(server: Epochd, picture: bytes, **query: Any) -> dict[str, Any]:
    answer = server.http.post("/predict", params=query, content=picture, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Up to the rounding of a pass that is shared."""
    for one, other in zip(found, expected, strict=True):
        assert [guess["class_index"] for guess in one["top"]] == [guess["class_index"] for guess in other["top"]]
        wanted = pytest.approx([guess["probability"] for guess in other["top"]], rel=1e-4)
        assert [guess["probability"] for guess in one["top"]] == wanted


def test_pictures_in_one_form_get_the_answers_that_each_gets_alone(
    server: Epochd, trained: str, shapes: list[bytes]
) -> None:
    files = [("image", ("x.png", each, "image/png")) for each in shapes]
    alone = [raw(server, each, job=trained)["predictions"][0] for each in shapes]
    together = server.http.post("/predict", params={"job": trained}, files=files).raise_for_status().json()
    assert_same(together["predictions"], alone)
    assert len({each["top"][0]["probability"] for each in alone}) == len(shapes)
    every = server.http.post(f"/predict?job={trained}&checkpoint=all", files=files).raise_for_status().json()
    assert [each["checkpoint"]["epoch"] for each in every["epochs"]] == [1, 2, 3]
    for each in every["epochs"]:
        checkpoint = each["checkpoint"]["epoch"]
        expected = [raw(server, shape, job=trained, checkpoint=checkpoint)["predictions"][0] for shape in shapes]
        assert_same(each["predictions"], expected)


def test_one_bad_picture_of_many_is_named(server: Epochd, trained: str, shapes: list[bytes]) -> None:
    files = [("image", ("x.png", each, "image/png")) for each in (*shapes[:2], b"no picture", *shapes[2:])]
    answer = server.http.post("/predict", params={"job": trained}, files=files)
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_image")
    assert answer.json()["detail"].startswith("Picture 3 of 7: ")


def test_an_address_of_many_parameters_is_refused(server: Epochd, trained: str, shapes: list[bytes]) -> None:
    answer = server.http.post("/predict?" + "job=x&" * 30, content=shapes[0], headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("keep", ["all", "best", "last"])
def test_a_training_that_replaces_its_checkpoints_is_never_caught_without_one(
    server: Epochd, shapes: list[bytes], keep: str
) -> None:
    job_id = server.submit(**SHORT, epochs=40, checkpoints={"keep": keep})
    server.wait(job_id, lambda job: job["progress"]["epoch"] >= 2 or job["status"] == "succeeded")
    over, answers, epochs = threading.Event(), Counter[tuple[str, int, str]](), list[int]()

    def ask(which: str) -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not over.is_set():
                query = {"job": job_id, "checkpoint": which, "top_k": "1"}
                answer = client.post("/predict", params=query, files={"image": shapes[0]})
                body = answer.json()
                answers[which, answer.status_code, body.get("code", "")] += 1
                if which == "last" and answer.status_code == 200:
                    epochs.append(body["checkpoint"]["epoch"])

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, which) for which in ("last", "best", "all", "all")]
        try:
            job = server.wait_terminal(job_id)
        finally:
            over.set()
        for each in asking:
            each.result()
    assert job["status"] == "succeeded"
    # One that is replaced again and again while it is asked may be too fast for an answer, but never is damaged.
    assert {(status, code) for _, status, code in answers} <= {(200, ""), (503, "predictor_unavailable")}
    assert {which for which, status, _ in answers if status == 200} == {"last", "best", "all"}
    assert epochs == sorted(epochs)
    # Under load what a name means is up to a second old, and few answers come while the job trains.
    assert len(set(epochs)) > 1 or len(epochs) < 10


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


def all_at_once(server: Epochd, body: bytes, count: int) -> list[tuple[int, dict[str, Any], bool]]:
    """Opens as many connections and sends so many requests in one instant. Status, body, and whether it says when to
    come back.
    """
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /predict?top_k=1 HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: image/png\r\n"
    request = f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body
    connections = [socket.create_connection((host, int(port)), timeout=60) for _ in range(count)]
    received: dict[socket.socket, bytes] = dict.fromkeys(connections, b"")
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.sendall(request[:-1])
            selector.register(connection, selectors.EVENT_READ)
        for connection in connections:
            connection.sendall(request[-1:])
        while selector.get_map():
            ready = selector.select(timeout=60)
            assert ready, "nobody was answered for a minute"
            for key, _ in ready:
                connection = key.fileobj  # type: ignore[assignment]
                data = connection.recv(65_536)
                received[connection] += data
                if not data:
                    selector.unregister(connection)
                    connection.close()
    told = []
    for answer in received.values():
        top, _, contents = answer.partition(b"\r\n\r\n")
        told.append((int(top.split()[1]), json.loads(contents), b"retry-after: 1" in top.lower()))
    return told


def test_more_at_once_than_may_wait_are_told_to_come_back_and_nothing_grows(
    server: Epochd, trained: str, shapes: list[bytes]
) -> None:
    large = png(np.tile(np.arange(250, dtype=np.uint8), (1_500, 6)))  # takes long enough for a queue
    service, predictor = server.pid_of("service"), server.predictor_pid()
    all_at_once(server, shapes[0], CONNECTIONS)  # what a service needs for so many connections, it keeps
    before = resident_bytes(service)
    for picture in (shapes[0], large, shapes[1]):
        answers = all_at_once(server, picture, CONNECTIONS)
        refused = [(body["code"], comes_back) for status, body, comes_back in answers if status != 200]
        assert {status for status, _, _ in answers} <= {200, 503}
        assert set(refused) <= {("predictor_unavailable", True)}
        good = [body["predictions"] for status, body, _ in answers if status == 200]
        assert len({each[0]["class_index"] for each in good}) == 1
        if picture is large:
            assert refused, "so many were to be too many"
    assert resident_bytes(service) - before < MOST_BYTES
    assert server.predictor_pid() == predictor
    assert raw(server, shapes[0], job=trained)["job"] == trained
