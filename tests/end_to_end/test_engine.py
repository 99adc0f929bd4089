"""The training engine over HTTP: plans, everything that a spec may ask for, memory that does not suffice, digits."""

import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.pictures import png, zip_of_prepared
from tests.end_to_end.serving import Epochd
from worker.jobs.settings import Settings

TRAIN, TEST = 900, 200  # no multiple of 64 or 512: the last batch is short
FEW = {"name": "few"}
WIDE_LAYERS = {  # layers whose activations weigh a thousand times what their weights do; no batch norm
    "name": "layers",
    "layers": [
        {"name": "conv2d", "channels": 64, "padding": "same"},
        {"name": "relu"},
        {"name": "conv2d", "channels": 64, "padding": "same"},
        {"name": "relu"},
        {"name": "global_avg_pool"},
        {"name": "linear"},
    ],
}


@pytest.fixture(scope="module", autouse=True)
def few(server: Epochd, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The first pictures of FashionMNIST, uploaded: an epoch takes milliseconds."""
    archive = tmp_path_factory.mktemp("zip") / "few.zip"
    server.upload(zip_of_prepared(prepared, archive, {"train": TRAIN, "test": TEST}), name=FEW["name"])
    assert server.wait_dataset(FEW["name"])["status"] == "ready"


def post(server: Epochd, *, dry_run: bool, **spec: Any) -> tuple[int, dict[str, Any]]:
    answer = server.http.post("/jobs", params={"dry_run": dry_run}, json=spec)
    return answer.status_code, answer.json()


def plan(server: Epochd, **spec: Any) -> dict[str, Any]:
    status, body = post(server, dry_run=True, **spec)
    assert status == 200, body
    return body


def newest_job(server: Epochd) -> list[str]:
    return [job["id"] for job in server.http.get("/jobs", params={"limit": 1}).json()["data"]]


def succeeded(server: Epochd, job_id: str) -> dict[str, Any]:
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    return job


def checkpoints(server: Epochd, job_id: str) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = server.http.get(f"/jobs/{job_id}/checkpoints").raise_for_status().json()["data"]
    return listed


def test_a_dry_run_says_what_the_tutorials_job_would_be_and_leaves_no_job(server: Epochd) -> None:
    server.http.post("/datasets", json={"name": "fashion-mnist"}).raise_for_status()
    server.wait_dataset("fashion-mnist")
    before = newest_job(server)
    planned = plan(server)
    assert planned["parameters"] == 669_706
    assert (planned["steps_per_epoch"], planned["steps"], planned["micro_batch"]) == (938, 4690, 64)
    assert planned["spec"]["optimizer"]["lr"] == 1e-3
    memory = planned["memory"]
    peak = memory.pop("peak_bytes")
    assert peak == sum(memory.values())
    assert (memory["weights_bytes"], memory["optimizer_bytes"]) == (4 * 669_706, 0)
    assert memory["activations_bytes"] > 64 * 4 * (512 + 512)
    assert newest_job(server) == before


@pytest.mark.parametrize("dry_run", [True, False])
def test_layers_that_do_not_fit_together_are_refused_with_the_one_at_fault(server: Epochd, dry_run: bool) -> None:
    before = newest_job(server)
    conv, flatten = {"name": "conv2d", "channels": 8}, {"name": "flatten"}
    for at_fault, layers in (
        (1, [conv, {"name": "linear"}]),
        (2, [conv, flatten, {"name": "max_pool"}, {"name": "linear"}]),
        (3, [conv, {"name": "max_pool"}, {"name": "relu"}, {"name": "conv2d", "channels": 8, "kernel": 29}]),
    ):
        status, body = post(server, dry_run=dry_run, dataset=FEW, model={"name": "layers", "layers": layers})
        assert status == 422
        assert [error["pointer"] for error in body["errors"]] == [f"#/model/layers/{at_fault}"]
    assert newest_job(server) == before


@pytest.mark.parametrize("dry_run", [True, False])
def test_what_cannot_fit_into_its_memory_is_refused(server: Epochd, dry_run: bool) -> None:
    before = newest_job(server)
    spec = {"dataset": FEW, "model": {"name": "resnet18"}, "memory_limit_mb": 16}
    status, body = post(server, dry_run=dry_run, **spec)
    assert (status, [error["pointer"] for error in body["errors"]]) == (422, ["#/memory_limit_mb"])
    assert "16 MiB" in body["errors"][0]["detail"]
    assert newest_job(server) == before


EVERYTHING: dict[str, Any] = {
    "dataset": FEW,
    "model": {
        "name": "layers",
        "layers": [
            {"name": "conv2d", "channels": 16},
            {"name": "relu"},
            {"name": "max_pool"},
            {"name": "flatten"},
            {"name": "linear"},
        ],
    },
    "loss": {"label_smoothing": 0.1},
    "optimizer": {"name": "adamw", "lr": 0.03},
    "schedule": {"name": "cosine", "warmup_epochs": 2},
    "augmentation": {"flip": "horizontal", "shift": 2},
    "ema": {"decay": 0.5},
    "clip_gradient": 1.0,
    "precision": "bf16",
    "checkpoints": {"keep": "best", "best_by": "test_loss"},
    "early_stopping": {"metric": "test_loss", "patience": 3},
    "epochs": 60,
}


@pytest.fixture(scope="module")
def everything(server: Epochd, few: None) -> str:
    """A job that asks for all that there is, stopped early."""
    job_id = server.submit(**EVERYTHING)
    succeeded(server, job_id)
    return job_id


def test_a_job_that_asks_for_everything_gets_it(server: Epochd, everything: str) -> None:
    rows = server.metrics(everything)
    (event,) = server.job(everything)["events"]
    assert (event["kind"], event["epoch"]) == ("stopped_early", len(rows))
    losses = [row["test_loss"] for row in rows]
    assert len(rows) == losses.index(min(losses)) + 1 + EVERYTHING["early_stopping"]["patience"] < EVERYTHING["epochs"]
    assert max(row["test_accuracy"] for row in rows) > 0.7
    for row in rows:
        assert row["test_accuracy"] < row["test_top5_accuracy"] <= 1
        assert 0 < row["test_f1"] < 1
        assert row["gradient_norm"] > 0
        assert row["peak_memory_bytes"] > 2**20
    lr, warm_up = EVERYTHING["optimizer"]["lr"], 2 * math.ceil(TRAIN / 64)
    rates = [lr * (1 + math.cos(math.pi * epoch / EVERYTHING["epochs"])) / 2 for epoch in range(len(rows))]
    rates[0] *= 1 / warm_up
    rates[1] *= (warm_up / 2 + 1) / warm_up
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)


def test_only_the_best_and_the_last_checkpoint_are_listed_and_on_the_disk(server: Epochd, everything: str) -> None:
    rows, listed = server.metrics(everything), checkpoints(server, everything)
    losses = [row["test_loss"] for row in rows]
    best, last = losses.index(min(losses)) + 1, len(rows)
    assert [(each["epoch"], each["is_best"], each["is_last"]) for each in listed] == [
        (best, True, False),
        (last, False, True),
    ]
    files = sorted((server.data_dir / "jobs" / everything / "checkpoints").iterdir())
    assert [file.name for file in files] == [
        f"epoch-{epoch:06d}-attempt-1.{kind}" for epoch in (best, last) for kind in ("safetensors", "state.pt")
    ]
    planned = plan(server, **EVERYTHING)["checkpoint_bytes"]
    assert planned < sum(file.stat().st_size for file in files[:2]) < 1.2 * planned


def test_the_report_adds_up(server: Epochd, everything: str, prepared: Path) -> None:
    report = server.http.get(f"/jobs/{everything}/report").raise_for_status().json()
    row = server.metrics(everything)[-1]
    assert report["epoch"] == row["epoch"]
    assert report["accuracy"] == pytest.approx(row["test_accuracy"])
    assert report["macro_f1"] == pytest.approx(row["test_f1"])
    matrix = np.array(report["confusion_matrix"])
    pictures = np.bincount(np.load(prepared / "test_labels.npy")[:TEST], minlength=10)
    assert matrix.sum(1).tolist() == pictures.tolist() == [each["support"] for each in report["classes"]]
    assert matrix.trace() / TEST == pytest.approx(report["accuracy"])
    recalls = [each["recall"] for each in report["classes"]]
    assert recalls == pytest.approx((matrix.diagonal() / pictures).tolist())


def test_its_predictions_are_those_of_its_report(server: Epochd, everything: str, prepared: Path) -> None:
    """But for a picture or two: it is tested in bf16."""
    report = server.http.get(f"/jobs/{everything}/report").raise_for_status().json()
    images, labels = (np.load(prepared / f"test_{part}.npy")[:TEST] for part in ("images", "labels"))
    matrix = np.zeros((10, 10), dtype=int)
    for start in range(0, TEST, 50):
        files = [("image", ("x.png", png(image[0]), "image/png")) for image in images[start : start + 50]]
        answer = server.http.post("/predict", params={"job": everything, "checkpoint": "last"}, files=files).json()
        assert answer["checkpoint"]["epoch"] == report["epoch"]
        said = [prediction["class_index"] for prediction in answer["predictions"]]
        np.add.at(matrix, (labels[start : start + 50], said), 1)
    assert abs(matrix - report["confusion_matrix"]).sum() <= 0.04 * TEST


@pytest.mark.skipif(sys.platform != "linux", reason="memory of the CPU is limited on Linux only")
def test_a_batch_that_does_not_fit_goes_through_in_parts_and_the_training_is_the_same(server: Epochd) -> None:
    spec = {
        "dataset": FEW,
        "model": WIDE_LAYERS,
        "loss": {"class_weights": "balanced"},
        "optimizer": {"lr": 0.1, "momentum": 0.9},
        "batch_size": 512,  # and a last one of 388, which is divided too
        "epochs": 2,
        "threads": 1,
        "device": "cpu",
    }
    limited = spec | {"memory_limit_mb": 240}
    planned = plan(server, **limited)
    assert planned["micro_batch"] == 512
    assert planned["fitting_micro_batch"] < 512

    in_parts, whole = server.submit(**limited), server.submit(**spec)
    events = succeeded(server, in_parts)["events"]
    assert {event["kind"] for event in events} == {"micro_batch"}
    sizes = [tuple(map(int, re.findall(r"\d+", event["detail"]))) for event in events]
    assert sizes[0] == (512, 256)
    assert all(now == math.ceil(tried / 2) for tried, now in sizes)
    assert succeeded(server, whole)["events"] == []
    for theirs, ours in zip(server.metrics(whole), server.metrics(in_parts), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
        assert ours["test_loss"] == pytest.approx(theirs["test_loss"], abs=1e-5)
        assert ours["peak_memory_bytes"] < theirs["peak_memory_bytes"]


def test_a_training_that_diverges_fails_and_says_where_and_what_to_try(server: Epochd) -> None:
    job = server.wait_terminal(server.submit(dataset=FEW, loss={"name": "mse"}, optimizer={"lr": 1e5}))
    assert (job["status"], job["error"]["code"], job["error"]["phase"]) == ("failed", "diverged", "training")
    assert re.fullmatch(r"The loss became (inf|nan) in batch \d+ of epoch 1\.", job["error"]["message"])
    assert job["error"]["hint"] == "Lower the learning rate (now 100000), or clip the gradient."
    assert job["error"]["suggestion"] == {"optimizer": {"lr": 10000.0}}
    (event,) = job["events"]
    assert (event["kind"], event["epoch"], event["detail"]) == ("diverged", 1, job["error"]["message"])
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["failed"]


def test_one_that_diverges_late_keeps_the_checkpoints_of_before(server: Epochd, prepared: Path) -> None:
    """The learning rate rises until it is too high."""
    spec = {"loss": {"name": "mse"}, "optimizer": {"lr": 100.0}, "schedule": {"warmup_epochs": 100}, "epochs": 100}
    job_id = server.submit(dataset=FEW, **spec)
    job = server.wait_terminal(job_id)
    assert (job["status"], job["error"]["code"]) == ("failed", "diverged")
    (event,) = job["events"]
    kept = [each["epoch"] for each in checkpoints(server, job_id)]
    assert kept == [row["epoch"] for row in server.metrics(job_id)] == list(range(1, event["epoch"]))
    assert kept
    files = {"image": ("x.png", png(np.load(prepared / "test_images.npy")[0, 0]), "image/png")}
    answer = server.http.post("/predict", params={"job": job_id, "checkpoint": "last"}, files=files).json()
    assert answer["checkpoint"]["epoch"] == kept[-1]
    assert all(0 < each["probability"] <= 1 for each in answer["predictions"][0]["top"])


@pytest.mark.skipif(Settings(slots=None).resolved_slots < 2, reason="one core, or a GPU that a job has for itself")
def test_two_jobs_of_one_thread_each_train_at_the_same_time(server: Epochd) -> None:
    jobs = [server.submit(dataset=FEW, epochs=100_000, threads=1, checkpoints={"keep": "last"}) for _ in range(2)]
    for job_id in jobs:
        server.wait(job_id, lambda job: job["progress"]["epoch"] > 1)
    seen = [server.job(job_id) for job_id in jobs]
    assert [(job["status"], job["threads"], job["provenance"]["threads"]) for job in seen] == [("running", 1, 1)] * 2
    assert len(server.attempt_pids()) == 2
    reached = max(job["progress"]["epoch"] for job in seen)
    for job_id in jobs:
        server.wait(job_id, lambda job: job["progress"]["epoch"] > reached)
    assert [server.job(job_id)["status"] for job_id in jobs] == ["running"] * 2
    for job_id in jobs:
        server.http.post(f"/jobs/{job_id}/cancel")
    assert [server.wait_terminal(job_id)["status"] for job_id in jobs] == ["cancelled"] * 2


def test_the_same_spec_gives_the_same_weights_and_another_seed_others(server: Epochd) -> None:
    spec = {
        "dataset": FEW,
        "model": {"name": "cnn", "channels": [8, 16], "dropout": 0.2},
        "optimizer": {"name": "adam"},
        "augmentation": {"flip": "horizontal", "rotate": 10.0, "mixup": 0.2},
        "epochs": 2,
        "threads": 1,
    }
    jobs = [server.submit(**spec, seed=seed) for seed in (0, 0, 1)]
    digests = []
    for job_id in jobs:
        succeeded(server, job_id)
        digests.append([each["weights_sha256"] for each in checkpoints(server, job_id)])
    once, again, another = digests
    assert once == again
    assert len({*once, *another}) == 4
