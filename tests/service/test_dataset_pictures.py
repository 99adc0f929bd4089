"""The pictures of a dataset and of a job's report, one by one and in lists."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pydantic import SecretStr

from tests.service.conftest import Serve
from tests.service.test_auth import bearer
from tests.service.test_errors import assert_problem
from tests.worker.jobs.answering import CLASSES, answers, job_with, record_answers
from tests.worker.jobs.making import LEASE_SECONDS, card, claim, finish, record, running
from worker.jobs import datasets, keys, submitting, versions
from worker.jobs.card import Card
from worker.jobs.db import Database
from worker.jobs.failures import Failure
from worker.jobs.form import Form
from worker.jobs.owners import Caller
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Scope
from worker.jobs.submitting import Origin
from worker.jobs.tables import Dataset

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 3, 5, 7), dtype=np.uint8)
GREY = RNG.integers(0, 256, (4, 1, 5, 7), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 1, 1, 0])


class Uploads:
    """Datasets that somebody uploaded, as preparing leaves them."""

    def __init__(self, db: Database, data_dir: Path) -> None:
        self._db, self._data_dir = db, data_dir
        self.folders: list[Path] = []

    def add(self, name: str, owner: str = "", *, labels: Any = LABELS, images: Any = COLOUR, **changed: Any) -> Dataset:
        task = changed.pop("task", "classification")
        dataset = datasets.add_upload(self._db, f"{len(self.folders):024x}", Form(name=name, task=task), owner)
        datasets.claim(self._db, "preparer", LEASE_SECONDS)
        kinds: dict[str, Any] = {"classes": CLASSES, "train_count": len(GREY), "test_count": len(images)}
        datasets.set_ready(self._db, dataset.id, 1, Card.model_validate(card(**kinds | changed).model_dump()))
        found = versions.by_id(self._db, dataset.id)
        folder = self._data_dir / versions.folder(found)
        folder.mkdir(parents=True)
        self.folders.append(folder)
        for split, arrays in (("train", (GREY, labels[:4])), ("test", (images, labels))):
            for part, array in zip(("images", "labels"), arrays, strict=True):
                np.save(folder / f"{split}_{part}.npy", array)
        return found


@pytest.fixture
def uploads(db: Database, data_dir: Path) -> Iterator[Uploads]:
    made = Uploads(db, data_dir)
    yield made
    for folder in made.folders:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def pixels(answer: Any) -> "np.ndarray[Any, Any]":
    """C x H x W."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    image = np.asarray(Image.open(io.BytesIO(answer.content)))
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def test_each_picture_is_seen_as_it_is_trained_on(client: TestClient, uploads: Uploads) -> None:
    uploads.add("shoes")
    for split, images in (("test", COLOUR), ("train", GREY)):
        for index, expected in enumerate(images):
            assert np.array_equal(pixels(client.get(f"/datasets/shoes/pictures/{split}/{index}.png")), expected)


def test_a_picture_of_a_version_may_be_kept_and_one_of_the_newest_may_not(client: TestClient, uploads: Uploads) -> None:
    uploads.add("shoes")
    uploads.add("shoes", images=COLOUR[::-1])
    first, newest = (client.get(f"/datasets/shoes/pictures/test/0.png{which}") for which in ("?version=1", ""))
    assert np.array_equal(pixels(first), COLOUR[0])
    assert np.array_equal(pixels(newest), COLOUR[-1])
    assert first.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert first.headers["vary"] == "Authorization, Cookie"
    assert newest.headers["cache-control"] == "private, no-cache"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("test/6.png", 404, "not_found"),
        ("train/4.png", 404, "not_found"),
        ("test/9007199254740991.png", 404, "not_found"),
        ("test/-1.png", 422, "validation_error"),
        ("test/9007199254740992.png", 422, "validation_error"),
        ("test/1e0.png", 422, "validation_error"),
        ("test/..%2F..%2Fcard.png", 404, "not_found"),
        ("validation/0.png", 422, "validation_error"),
        ("test/0.png?version=2", 404, "not_found"),
        ("test/0.png?scale=2", 422, "validation_error"),
    ],
)
def test_a_picture_that_is_not_there_is_refused(
    client: TestClient, uploads: Uploads, path: str, status: int, code: str
) -> None:
    uploads.add("shoes")
    assert_problem(client.get(f"/datasets/shoes/pictures/{path}"), status, code)


def test_pictures_are_listed_in_pages_with_their_classes(client: TestClient, uploads: Uploads) -> None:
    uploads.add("shoes")
    body = client.get("/datasets/shoes/pictures", params={"offset": 1, "limit": 2}).json()
    assert body == {
        "name": "shoes",
        "version": 1,
        "split": "test",
        "total": 6,
        "data": [
            {"index": 1, "label": "dog", "targets": None, "url": "/datasets/shoes/pictures/test/1.png?version=1"},
            {"index": 2, "label": "emu", "targets": None, "url": "/datasets/shoes/pictures/test/2.png?version=1"},
        ],
    }
    assert np.array_equal(pixels(client.get(body["data"][0]["url"])), COLOUR[1])
    train = client.get("/datasets/shoes/pictures?split=train").json()
    assert ([each["index"] for each in train["data"]], train["total"]) == ([0, 1, 2, 3], 4)
    beyond = client.get("/datasets/shoes/pictures?offset=6").json()
    assert (beyond["data"], beyond["total"]) == ([], 6)


def test_the_pictures_of_one_class_are_listed_alone(client: TestClient, uploads: Uploads) -> None:
    uploads.add("shoes")
    body = client.get("/datasets/shoes/pictures", params={"class": "dog", "offset": 1, "limit": 1}).json()
    assert ([(each["index"], each["label"]) for each in body["data"]], body["total"]) == ([(3, "dog")], 3)
    refused = client.get("/datasets/shoes/pictures", params={"class": "cow"})
    assert_problem(refused, 422, "validation_error")
    assert refused.json()["errors"] == [{"pointer": "?class", "detail": "There is no class of this name."}]


def test_numbers_of_a_regression_are_listed_by_their_names(client: TestClient, uploads: Uploads) -> None:
    targets = np.array([[1.5, 2.0], [0.25, np.nan], [3.0, 4.0], [5.0, 6.0]], dtype=np.float32)
    uploads.add("ages", labels=targets, images=COLOUR[:4], task="regression", classes=[], targets=["age", "height"])
    body = client.get("/datasets/ages/pictures?limit=2").json()
    assert [(each["label"], each["targets"]) for each in body["data"]] == [
        (None, {"age": 1.5, "height": 2.0}),
        (None, {"age": 0.25, "height": None}),
    ]
    assert_problem(client.get("/datasets/ages/pictures?class=cat"), 422, "validation_error")


@pytest.mark.parametrize("path", ["", "/test/0.png"])
def test_before_it_is_ready_a_dataset_has_no_pictures(client: TestClient, db: Database, path: str) -> None:
    assert_problem(client.get(f"/datasets/mnist/pictures{path}"), 409, "not_ready")
    datasets.add_upload(db, "a" * 24, Form(name="shoes"))
    waiting = client.get(f"/datasets/shoes/pictures{path}")
    assert_problem(waiting, 409, "not_ready")
    assert "being prepared" in waiting.json()["detail"]
    datasets.claim(db, "preparer", LEASE_SECONDS)
    datasets.set_invalid(db, "a" * 24, 1, Failure(code="dataset_invalid", message="It is empty."))
    invalid = client.get(f"/datasets/shoes/pictures{path}")
    assert_problem(invalid, 409, "not_ready")
    assert "is invalid" in invalid.json()["detail"]
    assert_problem(client.get(f"/datasets/hats/pictures{path}"), 404, "not_found")


@pytest.mark.parametrize("path", ["", "/test/0.png"])
def test_a_dataset_whose_files_are_gone_says_so(client: TestClient, uploads: Uploads, path: str) -> None:
    uploads.add("shoes")
    for file in uploads.folders[0].iterdir():
        file.unlink()
    assert_problem(client.get(f"/datasets/shoes/pictures{path}"), 409, "dataset_missing")


# Of a job's report


def wrong(client: TestClient, job_id: str, **asked: Any) -> list[tuple[int, str, str, float]]:
    body = client.get(f"/jobs/{job_id}/report/pictures", params=asked).json()
    return [(each["index"], each["label"], each["predicted"], each["probability"]) for each in body["data"]]


def test_a_cell_of_the_confusion_matrix_is_listed_the_most_confident_answers_first(
    client: TestClient, db: Database
) -> None:
    said = answers([0, 0, 0, 1, 2], [1, 0, 1, 0, 1], [0.25, 1.0, 0.75, 0.5, 1.0])
    job = job_with(db, said).id
    assert wrong(client, job, label="cat", predicted="dog") == [(2, "cat", "dog", 0.75), (0, "cat", "dog", 0.25)]
    assert [each[0] for each in wrong(client, job, predicted="dog")] == [4, 2, 0]
    assert [each[0] for each in wrong(client, job, label="dog")] == [3]
    assert [each[0] for each in wrong(client, job)] == [4, 2, 3, 0]
    assert wrong(client, job, label="cat", predicted="cat") == [(1, "cat", "cat", 1.0)]
    body = client.get(f"/jobs/{job}/report/pictures", params={"offset": 1, "limit": 2}).json()
    assert (body["epoch"], body["total"], body["note"]) == (1, 4, None)
    assert [each["url"] for each in body["data"]] == [f"/jobs/{job}/report/pictures/{index}.png" for index in (2, 3)]
    matrix = client.get(f"/jobs/{job}/report").json()["confusion_matrix"]
    for row, label in enumerate(CLASSES):
        for column, predicted in enumerate(CLASSES):
            assert len(wrong(client, job, label=label, predicted=predicted)) == matrix[row][column]


def test_a_class_that_the_report_does_not_have_is_refused(client: TestClient, db: Database) -> None:
    job = job_with(db, answers([0], [1])).id
    for field in ("label", "predicted"):
        answer = client.get(f"/jobs/{job}/report/pictures", params={field: "Cat"})
        assert_problem(answer, 422, "validation_error")
        assert answer.json()["errors"] == [{"pointer": f"?{field}", "detail": "There is no class of this name."}]


def test_where_no_answers_were_kept_it_is_said_why(client: TestClient, db: Database) -> None:
    job = running(db)
    record(db, job, 1)  # as a regression
    for said, of in (("Regression has none", job), ("extend it", job_with(db, answers([0], [1]), are_kept=False))):
        answer = client.get(f"/jobs/{of.id}/report/pictures")
        assert_problem(answer, 409, "not_ready")
        assert said in answer.json()["detail"]


def test_a_job_shows_the_pictures_of_its_own_version(client: TestClient, db: Database, uploads: Uploads) -> None:
    uploads.add("shoes")
    job = job_with(db, answers(LABELS.tolist(), [0] * 6), dataset={"name": "shoes"})
    uploads.add("shoes", images=COLOUR[::-1])
    listed = client.get(f"/jobs/{job.id}/report/pictures").json()["data"]
    assert len(listed) == 4
    for each in listed:
        answer = client.get(each["url"])
        assert np.array_equal(pixels(answer), COLOUR[each["index"]])
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert_problem(client.get(f"/jobs/{job.id}/report/pictures/6.png"), 404, "not_found")


def test_the_pictures_of_a_deleted_dataset_are_listed_and_cannot_be_seen(
    client: TestClient, db: Database, uploads: Uploads
) -> None:
    uploads.add("shoes")
    job = job_with(db, answers([0, 0], [1, 0]), dataset={"name": "shoes"})
    finish(db, job, Outcome.SUCCEEDED)
    datasets.delete(db, "shoes")
    uploads.add("shoes")  # another one, of the same name
    body = client.get(f"/jobs/{job.id}/report/pictures").json()
    assert [(each["index"], each["url"]) for each in body["data"]] == [(0, None)]
    assert "has been deleted" in body["note"]
    answer = client.get(f"/jobs/{job.id}/report/pictures/0.png")
    assert_problem(answer, 409, "dataset_missing")
    assert "has been deleted" in answer.json()["detail"]


def test_everybody_sees_the_pictures_of_ones_own_and_who_may_see_all_those_of_the_job(
    serve: Serve, db: Database, uploads: Uploads
) -> None:
    """Datasets of two owners may have the same name and version."""
    closed = serve(api_key=SecretStr("a-key-that-is-long-enough"))
    (ann, anns), (bob, _), (admin, admins) = (
        keys.create(db, [scope], name=name)
        for name, scope in (("ann", Scope.READ), ("bob", Scope.READ), ("root", Scope.ADMIN))
    )
    closed.app.state.keys.look()  # type: ignore[attr-defined]
    uploads.add("shoes", anns.owner)
    uploads.add("shoes", admins.owner, images=COLOUR[::-1])
    picture = "/datasets/shoes/pictures/test/0.png?version=1"
    assert np.array_equal(pixels(closed.get(picture, headers=bearer(ann))), COLOUR[0])
    assert np.array_equal(pixels(closed.get(picture, headers=bearer(admin))), COLOUR[-1])
    for path in (picture, "/datasets/shoes/pictures"):
        assert_problem(closed.get(path, headers=bearer(bob)), 404, "not_found")
    submitting.enqueue(
        db, Spec.model_validate({"dataset": {"name": "shoes"}}), Origin(Caller(anns.owner, sees_all=False))
    )
    job = claim(db)
    record_answers(db, job, answers(LABELS.tolist(), [2] * 6))
    for path in (f"/jobs/{job.id}/report/pictures", f"/jobs/{job.id}/report/pictures/0.png"):
        assert_problem(closed.get(path, headers=bearer(bob)), 404, "not_found")
    for key in (ann, admin):
        url = closed.get(f"/jobs/{job.id}/report/pictures", headers=bearer(key)).json()["data"][0]["url"]
        assert np.array_equal(pixels(closed.get(url, headers=bearer(key))), COLOUR[0])
