"""Prediction over real HTTP: while a job trains, by aliases that move, of many pictures, from one instance to another.

PREDICTIONS says how many are asked for during a run, SWAPS how often an alias is moved.
"""

import csv
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx2
import numpy as np
import onnxruntime
import pytest
import torch

from tests.end_to_end.pictures import png
from tests.end_to_end.serving import Epochd, epochd

PREDICTIONS: Final = int(os.environ.get("PREDICTIONS", "50"))
SWAPS: Final = int(os.environ.get("SWAPS", "20"))
SHORT: Final = {"model": {"name": "mlp", "hidden": [32]}, "threads": 1, "epochs": 2}


@pytest.fixture(scope="module")
def images(prepared: Path) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    found: np.ndarray[Any, np.dtype[np.uint8]] = np.load(prepared / "test_images.npy")[:, 0]
    return found


@pytest.fixture(scope="module")
def picture(images: "np.ndarray[Any, np.dtype[np.uint8]]") -> bytes:
    return png(images[0])


def predicted(server: Epochd, picture: bytes, **query: Any) -> dict[str, Any]:
    answer = server.http.post("/predict", params=query, files={"image": picture})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def digests(server: Epochd, job_id: str) -> list[str]:
    rows = server.http.get(f"/jobs/{job_id}/checkpoints").raise_for_status().json()["data"]
    return [row["weights_sha256"] for row in rows]


def test_predictions_change_no_bit_of_the_training_that_they_are_of(server: Epochd, picture: bytes) -> None:
    alone = server.submit(**SHORT, seed=7)
    server.wait_terminal(alone)
    job_id = server.submit(**SHORT, seed=7)
    server.wait(job_id, lambda job: job["progress"]["epoch"] >= 2 or job["status"] == "succeeded")
    for number in range(PREDICTIONS):
        body = predicted(server, picture, job=job_id, checkpoint=("last", "1")[number % 2])
        assert (body["job"], len(body["predictions"])) == (job_id, 1)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    assert digests(server, job_id) == digests(server, alone)


def test_each_epoch_says_what_it_thought(server: Epochd, trained: str, picture: bytes) -> None:
    body = predicted(server, picture, job=trained, checkpoint="all", top_k=1)
    assert [each["checkpoint"]["epoch"] for each in body["epochs"]] == [1, 2]
    assert body["epochs"][0]["predictions"] != body["epochs"][1]["predictions"]
    for each in body["epochs"]:
        alone = predicted(server, picture, job=trained, checkpoint=each["checkpoint"]["epoch"], top_k=1)
        assert alone["predictions"][0]["probability"] == pytest.approx(each["predictions"][0]["probability"], rel=1e-4)


def test_an_alias_that_moves_under_load_never_fails_and_never_looks_back(
    server: Epochd, trained: str, picture: bytes
) -> None:
    targets = [1, 2]
    assert server.http.put("/models/moving", json={"job": trained, "checkpoint": 1}).status_code == 201
    stop, answers = threading.Event(), list[tuple[int, int]]()

    def ask() -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                answer = client.post("/predict?model=moving", files={"image": picture})
                answers.append((answer.status_code, answer.json().get("checkpoint", {}).get("epoch")))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for swap in range(1, SWAPS + 1):
                target = targets[swap % 2]
                server.http.put("/models/moving", json={"job": trained, "checkpoint": target}).raise_for_status()
                assert predicted(server, picture, model="moving")["checkpoint"]["epoch"] == target
        finally:
            stop.set()
        for each in asking:
            each.result()
    assert {status for status, _ in answers} == {200}
    assert {epoch for _, epoch in answers} == {1, 2}
    before = server.http.get("/models/moving").json()
    rolled = server.http.post("/models/moving/rollback").json()
    assert rolled["checkpoint"]["epoch"] == before["previous"]["epoch"] != before["checkpoint"]["epoch"]
    assert predicted(server, picture, model="moving")["checkpoint"]["epoch"] == rolled["checkpoint"]["epoch"]


def test_a_job_that_succeeded_gets_its_certificate(server: Epochd, trained: str) -> None:
    deadline = time.monotonic() + 120
    while (answer := server.http.get(f"/jobs/{trained}/parity")).status_code == 409:
        assert answer.json()["code"] == "not_ready"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    found = answer.raise_for_status().json()
    metrics = server.metrics(trained)
    best = max(metrics, key=lambda row: row["test_accuracy"])
    assert found["passed"]
    assert (found["pictures"], found["epoch"], found["agree"]) == (10_000, best["epoch"], 1.0)
    assert found["accuracy"] == found["recorded_accuracy"] == best["test_accuracy"]
    assert found["largest_difference"] < 1e-4 * found["largest_output"]


def test_an_archive_is_answered_in_its_order_and_a_dataset_with_its_accuracy(
    server: Epochd, trained: str, images: "np.ndarray[Any, np.dtype[np.uint8]]", tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(300):
            archive.writestr(f"{number:03}.png", b"broken" if number % 100 == 50 else png(images[number]))
    contents = (tmp_path / "many.zip").read_bytes()
    url = f"/predict/batch?job={trained}&top_k=1"
    head, *lines, tail = map(json.loads, server.http.post(url, files={"archive": contents}).text.splitlines())
    assert (head["job"], head["total"], tail["done"], tail["failed"]) == (trained, 300, 300, 3)
    assert [line["file"] for line in lines] == [f"{number:03}.png" for number in range(300)]
    text = server.http.post(url, content=contents, headers={"Accept": "text/csv"}).text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["label"] for row in rows] == [line.get("label", "") for line in lines]
    told = server.http.post(f"{url}&checkpoint=2&dataset=fashion-mnist").text.splitlines()
    assert json.loads(told[-1])["accuracy"] == server.metrics(trained)[1]["test_accuracy"]


def test_who_leaves_a_stream_leaves_no_process(server: Epochd, trained: str) -> None:
    url = f"/predict/batch?job={trained}&dataset=fashion-mnist&split=train&top_k=10"
    with server.http.stream("POST", url) as answer:
        next(answer.iter_bytes())
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/comm").read_text().strip() == "batch" for pid in server.processes()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_exported_programs_give_what_the_service_gives(
    server: Epochd, trained: str, images: "np.ndarray[Any, np.dtype[np.uint8]]", tmp_path: Path
) -> None:
    pictures = images[:5, None]
    expected = [predicted(server, png(image), job=trained, top_k=10)["predictions"][0]["top"] for image in images[:5]]
    wanted = [
        [guess["probability"] for guess in sorted(top, key=lambda guess: guess["class_index"])] for top in expected
    ]
    for kind in ("pt2", "onnx"):
        file = tmp_path / f"model.{kind}"
        answer = server.http.get(f"/jobs/{trained}/checkpoints/best/export?format={kind}").raise_for_status()
        file.write_bytes(answer.content)
        if kind == "onnx":
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            logits = torch.from_numpy(session.run(["logits"], {"pictures": pictures})[0])
        else:
            logits = torch.export.load(file).module()(torch.from_numpy(pictures))
        assert torch.allclose(logits.softmax(1), torch.tensor(wanted), atol=1e-5)


def test_a_bundle_moves_to_another_instance_and_a_tampered_one_does_not(
    server: Epochd, trained: str, picture: bytes, fresh_data_dir: Callable[[], Path], tmp_path: Path
) -> None:
    url = f"/jobs/{trained}/checkpoints/best/export?format=bundle"
    bundle = server.http.get(url).raise_for_status().content
    tampered = bytearray(bundle)
    tampered[len(bundle) // 2] ^= 1
    with epochd(tmp_path / "elsewhere") as other:
        refused = other.http.post("/models/import", files={"bundle": bytes(tampered)})
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_bundle")
        answer = other.http.post("/models/import?alias=moved", files={"bundle": bundle})
        assert answer.status_code == 201, answer.text
        here, there = predicted(server, picture, job=trained), predicted(other, picture, model="moved")
        assert there["job"] == answer.json()["id"]
        assert there["checkpoint"] == here["checkpoint"]
        assert there["predictions"] == here["predictions"]
        assert other.http.get("/jobs").json()["data"][0]["status"] == "succeeded"
