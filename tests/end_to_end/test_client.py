"""The Python client against a running epochd."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from service.client import Client
from tests.end_to_end.serving import Epochd
from worker.jobs.wire import ClassPrediction

SMALL: dict[str, Any] = {"model": {"hidden": [16]}, "threads": 1, "batch_size": 256}


@pytest.fixture
def client(server: Epochd) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


def test_the_walk_of_a_job(client: Client, server: Epochd, tmp_path: Path) -> None:
    job = client.submit(**SMALL, epochs=2, seed=3)
    rows = [(row.seq, row.epoch) for row in job.follow()]
    assert rows == [(1, 1), (2, 2)]
    assert job.wait(timeout=60).status == "succeeded"
    assert [row.model_dump(mode="json") for row in job.metrics()] == server.metrics(job.id)
    assert job.report().accuracy == job.metrics()[-1].test_accuracy
    assert any("epoch_done" in line for line in job.logs())
    best = next(each for each in job.checkpoints() if each.is_best)
    assert job.download("best", tmp_path).stat().st_size == best.bytes
    assert [row.epoch for row in job.extend(1).follow(since=2)] == [3]
    other = job.clone(epochs=1, optimizer={"lr": 0.5}).wait()
    assert {each.pointer for each in client.compare(job.id, other.id).spec} == {"/epochs", "/optimizer/lr"}
    other.delete()


def test_a_picture_is_the_same_as_path_bytes_image_and_array(
    client: Client, server: Epochd, trained: str, tmp_path: Path
) -> None:
    pictures = numpy.load(server.data_dir / "datasets" / "fashion-mnist-v1" / "test_images.npy", mmap_mode="r")
    array = numpy.asarray(pictures[0, 0])
    image, path = Image.fromarray(array), tmp_path / "boot.png"
    image.save(path)
    found = client.predict(path, path.read_bytes(), image, array, array[:, :, None], job=trained).predictions
    assert len(found) == 5
    classes = [each for each in found if isinstance(each, ClassPrediction)]
    assert len({each.label for each in classes}) == 1
    for each in classes:  # with as many threads as are free, so up to the last digits
        assert each.probability == pytest.approx(classes[0].probability, abs=1e-5)
    assert len(classes) == 5


def test_a_folder_becomes_a_dataset(client: Client, tmp_path: Path) -> None:
    for kind, shade in (("dark", 10), ("light", 240)):
        (tmp_path / kind).mkdir()
        for number in range(5):
            Image.new("L", (8, 8), shade + number).save(tmp_path / kind / f"{number}.png")
    added = client.add_dataset(tmp_path, name="shades")
    ready = client.wait_dataset("shades", added.version, timeout=60)
    assert (ready.status, ready.classes) == ("ready", ["dark", "light"])
    client.delete_dataset("shades")
