"""A spec goes in over HTTP, FashionMNIST is trained, a picture gets its class."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load

from tests.bench import tutorial
from tests.end_to_end.serving import Epochd, epochd
from worker.datasets import fashion_mnist
from worker.jobs.settings import Settings


def test_picture(prepared: Path, index: int) -> bytes:
    images = np.load(prepared / "test_images.npy", mmap_mode="r")
    buffer = io.BytesIO()
    Image.fromarray(np.array(images[index, 0])).save(buffer, "PNG")
    return buffer.getvalue()


test_picture.__test__ = False  # type: ignore[attr-defined]


def predict(server: Epochd, image: bytes, **query: str | int) -> dict[str, Any]:
    answer = server.http.post("/predict", params=query, files={"image": ("x.png", image, "image/png")})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_jobs_accuracies_are_the_tutorial_scripts_own(server: Epochd, trained: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    fashion_mnist.gather(settings, tmp_path / "FashionMNIST" / "raw", tmp_path / "download")
    command = [sys.executable, "-m", tutorial.__name__, str(tmp_path), "2"]
    script = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    theirs = [f"{json.loads(line)['test_accuracy']:.4f}" for line in script.splitlines()]
    assert [f"{row['test_accuracy']:.4f}" for row in server.metrics(trained)] == theirs


def test_a_finished_job_tells_its_whole_story(server: Epochd, trained: str) -> None:
    job = server.job(trained)
    assert [step["status"] for step in job["transitions"]] == ["queued", "running", "succeeded"]
    (attempt,) = job["attempts"]
    assert attempt["outcome"] == "succeeded"
    assert job["error"] is None
    times = [job["created_at"], job["started_at"], attempt["first_batch_at"], job["finished_at"]]
    assert times == sorted(times)
    assert all(datetime.fromisoformat(each).utcoffset() is not None for each in times)
    assert job["provenance"]["versions"].keys() == {"python", "torch", "torchvision"}


def test_metrics_are_polled_from_a_cursor(server: Epochd, trained: str) -> None:
    first = server.http.get(f"/jobs/{trained}/metrics", params={"limit": 1}).json()
    assert ([row["epoch"] for row in first["data"]], first["terminal"]) == ([1], False)
    rest = server.http.get(f"/jobs/{trained}/metrics", params={"since": first["next_since"]}).json()
    assert ([row["epoch"] for row in rest["data"]], rest["terminal"]) == ([2], True)
    end = server.http.get(f"/jobs/{trained}/metrics", params={"since": rest["next_since"]}).json()
    assert (end["data"], end["next_since"]) == ([], rest["next_since"])


def test_a_checkpoint_downloads_as_listed(server: Epochd, trained: str) -> None:
    listed = server.http.get(f"/jobs/{trained}/checkpoints").json()["data"]
    assert [(each["epoch"], each["is_best"], each["is_last"]) for each in listed] == [
        (1, False, False),
        (2, True, True),
    ]
    contents = server.http.get(listed[1]["url"]).raise_for_status().content
    assert len(contents) == listed[1]["bytes"]
    assert load(contents)["1.weight"].shape == (512, 784)
    assert server.http.get(f"/jobs/{trained}/checkpoints/best").content == contents


def test_uploaded_test_pictures_are_answered_as_well_as_the_test_loop_did(
    server: Epochd, trained: str, prepared: Path
) -> None:
    labels = np.load(prepared / "test_labels.npy")[:64]
    files = [("image", (f"{i}.png", test_picture(prepared, i), "image/png")) for i in range(64)]
    answer = server.http.post("/predict", params={"job": trained}, files=files).json()
    said = np.array([each["class_index"] for each in answer["predictions"]])
    accuracy = server.metrics(trained)[1]["test_accuracy"]
    assert abs((said == labels).mean() - accuracy) < 0.2
    assert answer["job"] == trained
    assert answer["checkpoint"]["epoch"] == 2


def test_a_phones_photo_is_converted_as_the_checkpoint_says(server: Epochd, trained: str) -> None:
    photo = Image.effect_noise((4032, 3024), 60).convert("RGB")
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=85)
    headers = {"Content-Type": "image/jpeg"}
    answer = server.http.post("/predict", params={"job": trained}, content=buffer.getvalue(), headers=headers)
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    assert len(prediction["top"]) == 5
    assert prediction["top"][0]["probability"] >= prediction["top"][1]["probability"]


def test_any_epoch_answers_and_says_so(server: Epochd, trained: str, prepared: Path) -> None:
    picture = test_picture(prepared, 0)
    first, last = (predict(server, picture, job=trained, checkpoint=which) for which in ("1", "last"))
    assert (first["checkpoint"]["epoch"], last["checkpoint"]["epoch"]) == (1, 2)
    assert first["predictions"] != last["predictions"]
    assert predict(server, picture, job=trained, checkpoint=1, top_k=3) != first  # fewer classes named
    assert len(predict(server, picture, job=trained, top_k=3)["predictions"][0]["top"]) == 3


def test_without_a_job_the_newest_succeeded_one_answers(server: Epochd, trained: str, prepared: Path) -> None:
    newest = server.http.get("/jobs", params={"status": "succeeded", "limit": 1}).json()["data"][0]["id"]
    assert predict(server, test_picture(prepared, 0))["job"] == newest


def test_the_service_serves_predictions_without_torch(server: Epochd, trained: str, prepared: Path) -> None:
    predict(server, test_picture(prepared, 0), job=trained)
    service = Path(f"/proc/{server.pid_of('service')}/maps").read_text()
    assert "torch" not in service
    assert "torch" not in Path(f"/proc/{server.pid_of('worker')}/maps").read_text()
    assert "libtorch" in Path(f"/proc/{server.pid_of('worker.inference')}/maps").read_text()


def test_progress_moves_while_a_job_trains_and_a_prediction_can_be_had_meanwhile(
    server: Epochd, prepared: Path
) -> None:
    job_id = server.submit(epochs=50)
    running = server.wait(job_id, lambda job: job["progress"]["epoch"] >= 2 and job["progress"]["batch"] > 0)
    assert running["status"] == "running"
    assert running["phase"] in ("training", "testing", "saving")
    assert running["progress"]["batches"] == 938
    assert running["progress"]["samples_per_second"] > 0
    assert running["progress"]["eta_seconds"] > 0
    assert predict(server, test_picture(prepared, 0), job=job_id)["job"] == job_id

    asked = server.http.post(f"/jobs/{job_id}/cancel")
    assert (asked.status_code, asked.json()["status"]) == (202, "cancelling")
    job = server.wait_terminal(job_id)
    assert job["status"] == "cancelled"
    assert job["attempts"][0]["outcome"] == "cancelled"
    assert server.http.post(f"/jobs/{job_id}/cancel").status_code == 200
    assert predict(server, test_picture(prepared, 0), job=job_id)["job"] == job_id


def test_a_queued_job_is_cancelled_at_once_and_a_finished_one_not_at_all(server: Epochd, trained: str) -> None:
    blocking = server.submit(epochs=50)
    queued = server.submit()
    asked = server.http.post(f"/jobs/{queued}/cancel")
    assert (asked.status_code, asked.json()["status"]) == (200, "cancelled")
    assert server.job(queued)["attempts"] == []
    server.http.post(f"/jobs/{blocking}/cancel")
    server.wait_terminal(blocking)
    refused = server.http.post(f"/jobs/{trained}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")


def test_a_job_whose_dataset_is_absent_fails_with_the_ways_to_get_it(tmp_path: Path) -> None:
    nowhere = {"EPOCHD_SYSTEM_DATASETS_DIR": str(tmp_path / "none"), "EPOCHD_ALLOW_DOWNLOAD": "false"}
    with epochd(tmp_path / "data", nowhere) as server:
        job = server.wait_terminal(server.submit())
        assert (job["status"], job["error"]["code"]) == ("failed", "dataset_missing")
        assert "dataset-fashion-mnist" in job["error"]["message"]
        assert (job["error"]["phase"], job["attempts"]) == ("fetching", [])


def test_two_slots_train_two_jobs_at_once(fresh_data_dir: Callable[[], Path]) -> None:
    with epochd(fresh_data_dir(), {"EPOCHD_SLOTS": "2"}) as server:
        first, second = server.submit(epochs=30), server.submit(epochs=30)
        for job_id in (first, second):
            server.wait(job_id, lambda job: job["progress"]["batch"] > 0)
        assert {server.job(job_id)["status"] for job_id in (first, second)} == {"running"}
        assert len(server.attempt_pids()) == 2
