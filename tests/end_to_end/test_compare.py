"""Jobs beside each other, and single test pictures: what was answered for them, and how they look."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.serving import Epochd
from worker.jobs.comparing import mcnemar

SPEC = {"epochs": 1, "threads": 1, "device": "cpu", "model": {"name": "mlp", "hidden": [32]}, "optimizer": {"lr": 0.1}}
WORSE = {**SPEC, "model": {"name": "mlp", "hidden": []}, "optimizer": {"lr": 0.0001}}


@pytest.fixture(scope="module")
def jobs(server: Epochd) -> list[str]:
    """Two seeds of one spec, and a network that has learned little."""
    submitted = [server.submit(**SPEC, seed=0), server.submit(**SPEC, seed=1), server.submit(**WORSE, seed=0)]
    assert {server.wait_terminal(job)["status"] for job in submitted} == {"succeeded"}
    return submitted


@pytest.fixture(scope="module")
def arrays(prepared: Path) -> tuple[Any, Any]:
    """Test pictures and their labels."""
    images, labels = (np.load(prepared / f"test_{part}.npy", mmap_mode="r") for part in ("images", "labels"))
    return images, labels


def get(server: Epochd, path: str, **asked: Any) -> dict[str, Any]:
    body: dict[str, Any] = server.http.get(path, params=asked).raise_for_status().json()
    return body


def pixels(content: bytes) -> "np.ndarray[Any, Any]":
    return np.asarray(Image.open(io.BytesIO(content)))


def test_of_each_pair_every_test_picture_counts_once(server: Epochd, jobs: list[str], arrays: tuple[Any, Any]) -> None:
    _, labels = arrays
    body = get(server, "/compare", jobs=",".join(jobs))
    accuracies = {each["id"]: each["accuracy"] for each in body["jobs"]}
    assert accuracies == {job: server.metrics(job)[-1]["test_accuracy"] for job in jobs}
    assert [(each["first"], each["second"]) for each in body["pairs"]] == [
        (jobs[0], jobs[1]),
        (jobs[0], jobs[2]),
        (jobs[1], jobs[2]),
    ]
    for pair in body["pairs"]:
        counts = pair["counts"]
        assert sum(counts.values()) == len(labels) == 10_000
        for job, only in ((pair["first"], "only_first"), (pair["second"], "only_second")):
            assert (counts["both_right"] + counts[only]) / 10_000 == accuracies[job]
        assert pair["p"] == mcnemar(counts["only_first"], counts["only_second"])
        assert (pair["better"] is None) == (pair["p"] >= 0.05)
    for pair in body["pairs"][1:]:
        assert pair["better"] == pair["first"]
        assert pair["p"] < 0.001
        assert len(pair["flipped"]) == 20
        for each in pair["flipped"]:
            truth = get(server, "/datasets/fashion-mnist")["classes"][labels[each["index"]]]
            assert each["label"] == truth
            assert (each["first"]["predicted"] == truth) != (each["second"]["predicted"] == truth)
    differing = {each["pointer"]: each["values"] for each in body["spec"]}
    assert differing["/seed"] == {jobs[0]: 0, jobs[1]: 1, jobs[2]: 0}
    assert differing["/optimizer/lr"][jobs[2]] == 0.0001


def test_wrong_answers_are_those_of_the_matrix_and_of_the_labels(
    server: Epochd, jobs: list[str], arrays: tuple[Any, Any]
) -> None:
    _, labels = arrays
    report = get(server, f"/jobs/{jobs[0]}/report")
    classes = [each["label"] for each in report["classes"]]
    most = report["most_confused"][0]
    body = get(server, f"/jobs/{jobs[0]}/report/pictures", label=most["label"], predicted=most["predicted"], limit=200)
    assert (body["total"], body["epoch"]) == (most["count"], 1)
    sure = [each["probability"] for each in body["data"]]
    assert sure == sorted(sure, reverse=True)
    assert {classes[labels[each["index"]]] for each in body["data"]} == {most["label"]}
    every = get(server, f"/jobs/{jobs[0]}/report/pictures", limit=200)
    assert every["total"] == round((1 - report["accuracy"]) * 10_000)
    assert all(classes[labels[each["index"]]] == each["label"] != each["predicted"] for each in every["data"])


def test_a_wrong_picture_looks_as_it_was_tested_and_a_prediction_says_the_same_of_it(
    server: Epochd, jobs: list[str], arrays: tuple[Any, Any]
) -> None:
    images, _ = arrays
    listed = get(server, f"/jobs/{jobs[0]}/report/pictures", limit=5)["data"]
    for each in listed:
        answer = server.http.get(each["url"]).raise_for_status()
        assert np.array_equal(pixels(answer.content), images[each["index"], 0])
        headers = {"Content-Type": "image/png"}
        said = server.http.post("/predict", params={"job": jobs[0]}, content=answer.content, headers=headers)
        (prediction,) = said.raise_for_status().json()["predictions"]
        assert prediction["label"] == each["predicted"]
        assert math.isclose(prediction["probability"], each["probability"], abs_tol=1e-4)


def test_a_datasets_pictures_are_those_of_its_arrays(server: Epochd, jobs: list[str], arrays: tuple[Any, Any]) -> None:
    images, labels = arrays
    classes = get(server, "/datasets/fashion-mnist")["classes"]
    body = get(server, "/datasets/fashion-mnist/pictures", **{"class": classes[3], "offset": 5, "limit": 3})
    expected = np.flatnonzero(labels == 3)
    assert body["total"] == len(expected)
    assert [each["index"] for each in body["data"]] == expected[5:8].tolist()
    for each in body["data"]:
        content = server.http.get(each["url"]).raise_for_status().content
        assert np.array_equal(pixels(content), images[each["index"], 0])
