"""Uploaded pictures: prepared by the worker, trained on, predicted."""

import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.pictures import png, zip_files, zip_of_prepared
from tests.end_to_end.serving import Epochd, epochd


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 70,000 pictures of FashionMNIST as PNG files."""
    return zip_of_prepared(prepared, tmp_path_factory.mktemp("zip") / "whole.zip", {"train": 60_000, "test": 10_000})


def curve(server: Epochd, job_id: str) -> list[tuple[float, ...]]:
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    return [(row["train_loss"], row["test_loss"], row["test_accuracy"]) for row in server.metrics(job_id)]


def test_uploaded_pictures_train_to_the_same_digits_as_the_built_in_ones(server: Epochd, whole: Path) -> None:
    uploaded = server.upload(whole, name="fashion-files")
    waiting = server.submit(dataset={"name": "fashion-files"}, epochs=1, seed=5)
    assert uploaded["status"] in ("uploaded", "preparing")
    built_in = server.submit(epochs=1, seed=5)
    assert curve(server, waiting) == curve(server, built_in)
    card = server.dataset("fashion-files")["card"]
    assert card["sha256"] == server.dataset("fashion-mnist")["card"]["sha256"]
    assert (card["train_count"], card["test_count"], card["findings"]) == (60_000, 10_000, [])
    provenance = server.job(waiting)["provenance"]
    assert provenance["dataset"] == {"name": "fashion-files", "version": 1, "sha256": card["sha256"]}


def test_pictures_of_all_kinds_and_sizes_become_a_dataset_that_answers(server: Epochd, tmp_path: Path) -> None:
    """RGBA, nested folders, a tar.gz with a folder around it: as somebody's own pictures are."""
    rng = np.random.default_rng(0)
    archive = tmp_path / "shapes.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for number in range(120):
            size = tuple(int(side) for side in rng.integers(40, 120, 2))
            kind = ("disc", "bar")[number % 2]
            pixels = np.zeros((*size, 4), dtype=np.uint8)
            y, x = np.mgrid[0 : 1 : complex(size[0]), 0 : 1 : complex(size[1])] - 0.5
            inside = x**2 + y**2 < 0.1 if kind == "disc" else abs(x) < 0.1
            pixels[inside] = (*rng.integers(0, 200, 3), 255)
            contents = png(pixels)
            info = tarfile.TarInfo(f"./shapes/{kind}/some/{number}.png")
            info.size = len(contents)
            tar.addfile(info, io.BytesIO(contents))
            if number < 2:
                (tmp_path / f"{kind}.png").write_bytes(contents)
    server.upload(archive, name="shapes", image_size=32)
    dataset = server.wait_dataset("shapes")
    assert (dataset["status"], dataset["channels"], dataset["height"]) == ("ready", 3, 32), dataset["error"]
    assert dataset["card"]["classes"] == ["bar", "disc"]
    assert (dataset["train_count"], dataset["test_count"]) == (96, 24)
    job_id = server.submit(
        dataset={"name": "shapes"}, epochs=60, batch_size=8, model={"hidden": [32]}, optimizer={"lr": 0.02}
    )
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    for kind in ("disc", "bar"):
        files = {"image": ("x.png", (tmp_path / f"{kind}.png").read_bytes(), "image/png")}
        (prediction,) = server.http.post("/predict", params={"job": job_id}, files=files).json()["predictions"]
        assert prediction["label"] == kind


def test_a_regression_predicts_the_number(server: Epochd, prepared: Path, tmp_path: Path) -> None:
    """How bright a picture is, in percent."""
    images = np.load(prepared / "train_images.npy", mmap_mode="r")[:600, 0]
    brightness = images.mean(axis=(1, 2)) / 2.55
    table = "file,brightness\n" + "".join(f"{number}.png,{value:.4f}\n" for number, value in enumerate(brightness))
    files = [(f"images/{number}.png", png(np.array(image))) for number, image in enumerate(images)]
    archive = zip_files(tmp_path / "ink.zip", [("labels.csv", table.encode()), *files])
    server.upload(archive, name="ink", task="regression")
    dataset = server.wait_dataset("ink")
    assert dataset["status"] == "ready", dataset["error"]
    assert dataset["card"]["targets"] == ["brightness"]

    refused = server.http.post("/jobs", json={"dataset": {"name": "ink"}})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/loss")
    job_id = server.submit(dataset={"name": "ink"}, loss={"name": "mse"}, epochs=30, batch_size=16)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    last = server.metrics(job_id)[-1]
    assert last["test_accuracy"] is None
    assert last["test_r2"] > 0.8
    assert 0 < last["test_mae"] < 10

    picture = {"image": ("x.png", png(np.array(images[0])), "image/png")}
    answer = server.http.post("/predict", params={"job": job_id}, files=picture).json()
    (prediction,) = answer["predictions"]
    assert prediction["values"] == {"brightness": prediction["value"]}
    assert prediction["value"] == pytest.approx(brightness[0], abs=15)


def test_a_dataset_is_not_deleted_under_a_job_and_a_new_version_changes_nothing_for_it(
    server: Epochd, prepared: Path, tmp_path: Path
) -> None:
    first = zip_of_prepared(prepared, tmp_path / "first.zip", {"train": 400, "test": 100})
    second = zip_of_prepared(prepared, tmp_path / "second.zip", {"train": 300, "test": 100})
    server.upload(first, name="versions")
    job_id = server.submit(dataset={"name": "versions"}, epochs=2000)
    server.wait(job_id, lambda job: job["progress"]["epoch"] >= 1)
    refused = server.http.delete("/datasets/versions")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    server.upload(second, name="versions")
    assert server.wait_dataset("versions")["version"] == 2
    assert server.job(job_id)["provenance"]["dataset"]["version"] == 1
    server.http.post(f"/jobs/{job_id}/cancel")
    server.wait_terminal(job_id)
    assert server.http.delete("/datasets/versions").status_code == 204


def test_an_upload_in_a_trickle_takes_no_memory_and_no_time_from_others(fresh_data_dir: Any, tmp_path: Path) -> None:
    """A quarter of a GiB; `make bench-datasets` sends 2 GiB."""
    with epochd(fresh_data_dir()) as server:
        resident = server.resident_bytes("service")
        slowest = 0.0
        stop = threading.Event()

        def ask() -> None:
            nonlocal slowest
            while not stop.is_set():
                started = time.monotonic()
                assert server.http.get("/healthz").status_code == 200
                slowest = max(slowest, time.monotonic() - started)
                time.sleep(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        answer = server.http.post("/datasets", content=_body(256), headers=_HEADERS, timeout=120)
        stop.set()
        asking.join()
        assert answer.status_code == 202, answer.text
        assert server.resident_bytes("service") - resident < 64 * 2**20
        assert slowest < 5
        assert server.wait_dataset("large")["error"]["code"] == "bad_archive"


_HEADERS = {"Content-Type": "multipart/form-data; boundary=frontier"}


def _body(mebibytes: int) -> Iterator[bytes]:
    yield b'--frontier\r\nContent-Disposition: form-data; name="dataset"\r\n\r\n'
    yield json.dumps({"name": "large"}).encode()
    yield b'\r\n--frontier\r\nContent-Disposition: form-data; name="archive"; filename="x.zip"\r\n\r\nPK\x03\x04'
    for _ in range(mebibytes):
        yield bytes(2**20)
    yield b"\r\n--frontier--\r\n"


def test_an_upload_that_breaks_off_leaves_nothing(server: Epochd) -> None:
    def broken() -> Iterator[bytes]:
        yield from _body(3)
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        server.http.post("/datasets", content=broken(), headers={**_HEADERS, "Content-Length": str(2**30)})
    deadline = time.monotonic() + 10
    while (left := list((server.data_dir / "uploads").glob("*.receiving"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left == []
    assert server.http.get("/datasets/large").status_code == 404


def test_a_photograph_of_a_phone_lies_as_it_was_seen(server: Epochd, tmp_path: Path) -> None:
    """EXIF orientation is applied when the set is prepared, as it is when a picture is predicted."""
    exif = Image.Exif()
    exif[0x0112] = 6
    halves = Image.new("L", (64, 64))
    halves.paste(255, (0, 0, 32, 64))  # the left half is white; shown upright it is the upper one
    files = []
    for number in range(20):
        for kind, options in (("sideways", {"exif": exif}), ("upright", {})):
            buffer = io.BytesIO()
            halves.point(lambda value, n=number: max(0, value - n)).save(buffer, "JPEG", **options)
            files.append((f"{kind}/{number}.jpg", buffer.getvalue()))
    server.upload(zip_files(tmp_path / "phone.zip", files), name="phone")
    dataset = server.wait_dataset("phone")
    assert dataset["status"] == "ready", dataset["error"]
    folder = next(path.parent for path in server.data_dir.glob("datasets/*/card.json") if '"phone"' in path.read_text())
    images, labels = np.load(folder / "train_images.npy"), np.load(folder / "train_labels.npy")
    sideways, upright = images[labels == 0, 0], images[labels == 1, 0]
    assert dataset["card"]["classes"] == ["sideways", "upright"]
    assert sideways[:, :30].min() > 200
    assert sideways[:, 34:].max() < 60
    assert upright[:, :, :30].min() > 200
