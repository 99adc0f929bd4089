"""Trainings and predictions on an NVIDIA GPU; without one these tests skip themselves."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.pictures import png
from tests.end_to_end.serving import Epochd, epochd

HAS_GPU = any(Path("/dev").glob("nvidia[0-9]*"))
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="no NVIDIA GPU here")

CNN: dict[str, Any] = {"model": {"name": "cnn", "dropout": 0.3}, "batch_size": 256, "device": "cuda"}


@pytest.fixture(scope="module")
def house(fresh_data_dir: Callable[[], Path]) -> Iterator[Epochd]:
    with epochd(fresh_data_dir()) as running:
        yield running


def trained(house: Epochd, **spec: Any) -> dict[str, Any]:
    job = house.wait_terminal(house.submit(**spec))
    assert job["status"] == "succeeded", job["error"]
    assert job["provenance"]["device"].startswith("cuda"), job["provenance"]
    return job


def weights(house: Epochd, job: dict[str, Any]) -> str:
    listed = house.http.get(f"/jobs/{job['id']}/checkpoints").raise_for_status().json()["data"]
    digest: str = listed[-1]["weights_sha256"]
    return digest


def test_the_tutorial_trains_on_the_gpu_as_on_the_processor(house: Epochd) -> None:
    on_gpu = trained(house, shuffle=False, epochs=2)
    on_cpu = house.wait_terminal(house.submit(shuffle=False, epochs=2, device="cpu", threads=4))
    for row, other in zip(house.metrics(on_gpu["id"]), house.metrics(on_cpu["id"]), strict=True):
        assert row["test_loss"] == pytest.approx(other["test_loss"], abs=2e-3)
        assert row["test_accuracy"] == pytest.approx(other["test_accuracy"], abs=5e-3)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_each_precision_trains(house: Epochd, precision: str) -> None:
    job = trained(house, **CNN, precision=precision, epochs=2, optimizer={"lr": 0.05, "momentum": 0.9})
    assert house.metrics(job["id"])[-1]["test_accuracy"] > 0.8


def test_a_training_that_is_interrupted_goes_on_to_the_same_bits_or_says_that_it_does_not(house: Epochd) -> None:
    spec = CNN | {"epochs": 6, "optimizer": {"name": "adamw", "lr": 1e-3}, "augmentation": {"flip": "horizontal"}}
    whole = trained(house, **spec)
    job_id = house.submit(**spec)
    house.wait(job_id, lambda job: job["progress"]["epoch"] >= 3)
    house.http.post(f"/jobs/{job_id}/pause").raise_for_status()
    house.wait(job_id, lambda job: job["status"] == "paused")
    house.http.post(f"/jobs/{job_id}/resume").raise_for_status()
    job = house.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    is_same = weights(house, job) == weights(house, whole)
    assert is_same == (job["resume"] == "exact"), (job["resume"], job["resume_reason"])


def test_a_batch_that_does_not_fit_goes_through_in_parts(house: Epochd) -> None:
    spec = {"model": {"name": "mlp", "hidden": [512]}, "batch_size": 16384, "epochs": 1, "device": "cuda"}
    whole = trained(house, **spec)
    tight = trained(house, **spec, memory_limit_mb=160)
    assert "micro_batch" in {event["kind"] for event in tight["events"]}
    losses = [house.metrics(job["id"])[-1]["test_loss"] for job in (whole, tight)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_resnet_trains(house: Epochd) -> None:
    model = {"name": "resnet18", "small_stem": True}
    job = trained(
        house, model=model, precision="bf16", batch_size=512, epochs=1, optimizer={"lr": 0.1, "momentum": 0.9}
    )
    (row,) = house.metrics(job["id"])
    assert row["test_accuracy"] > 0.7
    assert row["peak_memory_bytes"] > 2**20


def test_predictions_are_those_of_the_test_loop(house: Epochd, prepared: Path) -> None:
    job = trained(house, **CNN, epochs=2, optimizer={"lr": 0.05, "momentum": 0.9})
    image = png(np.array(np.load(prepared / "test_images.npy", mmap_mode="r")[0, 0]))
    answer = house.http.post("/predict", params={"job": job["id"]}, files={"image": image}).raise_for_status()
    assert answer.json()["predictions"][0]["label"] == "Ankle boot"
    house.wait(job["id"], lambda _: house.http.get(f"/jobs/{job['id']}/parity").status_code != 409)
    certificate = house.http.get(f"/jobs/{job['id']}/parity").raise_for_status().json()
    assert (certificate["passed"], certificate["device"]) == (True, "cuda"), certificate


def test_a_dead_training_goes_on(house: Epochd) -> None:
    job_id = house.submit(**CNN, epochs=30)
    house.wait(job_id, lambda job: job["progress"]["epoch"] >= 2)
    for pid in house.trainings_of(job_id):
        os.kill(pid, signal.SIGKILL)
    job = house.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["killed", "succeeded"]
