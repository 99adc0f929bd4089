"""The specs that come with epochd, each trained as it is: only fewer epochs, and on some tens of pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.end_to_end.pictures import png, zip_files, zip_of_prepared
from tests.end_to_end.serving import Epochd
from worker.jobs.spec import Spec

SPECS = sorted((Path(__file__).parents[2] / "service" / "specs").glob("*.yaml"))
REST = {"epochs": 1, "threads": 1, "precision": "fp32"}


def read(path: Path) -> dict[str, Any]:
    spec: dict[str, Any] = YAML(typ="safe").load(path)
    return spec


@pytest.fixture(scope="module")
def datasets(server: Epochd, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Under the names that the specs have."""
    folder = tmp_path_factory.mktemp("archives")
    server.upload(zip_of_prepared(prepared, folder / "pictures.zip", {"train": 60, "test": 40}), name="my-pictures")
    images = np.load(prepared / "train_images.npy", mmap_mode="r")[:60, 0]
    table = "\n".join(["file,ink", *(f"{number}.png,{image.mean():.3f}" for number, image in enumerate(images))])
    files = [("labels.csv", table.encode()), *((f"{number}.png", png(image)) for number, image in enumerate(images))]
    server.upload(zip_files(folder / "numbers.zip", files), name="my-numbers", task="regression")
    server.http.post("/datasets", json={"name": "fashion-mnist"}).raise_for_status()
    for name in ("my-pictures", "my-numbers", "fashion-mnist"):
        assert server.wait_dataset(name)["status"] == "ready"


def test_the_tutorials_spec_says_the_defaults() -> None:
    said = Spec.model_validate(read(SPECS[0].with_name("tutorial.yaml")))
    assert said.model_copy(update={"name": None, "shuffle": True}) == Spec()


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_spec_trains(server: Epochd, datasets: None, path: Path) -> None:
    spec = read(path)
    answer = server.http.post("/jobs", params={"dry_run": True}, json=spec)
    assert answer.status_code == 200, answer.text  # whole
    if spec["dataset"]["name"] == "fashion-mnist":
        spec["dataset"] = {"name": "my-pictures"}
    if spec.get("schedule", {}).get("warmup_epochs"):
        del spec["schedule"]["warmup_epochs"]
    job = server.wait_terminal(server.submit(**spec | REST))
    assert job["status"] == "succeeded", job["error"]
    (row,) = server.metrics(job["id"])
    assert row["test_loss"] is not None
