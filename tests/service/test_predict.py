"""Prediction: what the predictor is asked, and what is answered."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.bodies.predict import EpochsBody, PredictBody
from tests.service.predictor import FakePredictor
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import finish, record, running, saved
from worker.jobs import control, errors
from worker.jobs.db import Database
from worker.jobs.processes import cores
from worker.jobs.states import Outcome
from worker.jobs.tables import Job

PNG = {"Content-Type": "image/png"}
PICTURE = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture
def job(db: Database) -> Job:
    """A job that succeeded, and whose second checkpoint of three is the best."""
    job = running(db)
    for epoch, accuracy in enumerate((0.25, 0.75, 0.5), start=1):
        record(db, job, epoch, test_accuracy=accuracy)
    finish(db, job, Outcome.SUCCEEDED)
    return job


def predicted(client: TestClient, query: str = "", **request: Any) -> dict[str, Any]:
    answer = client.post(f"/predict{query}", **request or {"content": PICTURE, "headers": PNG})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_a_picture_is_answered_by_the_best_checkpoint_of_the_newest_job(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    body = predicted(client, "?top_k=2")
    checkpoint = saved(2)
    assert body == {
        "job": job.id,
        "checkpoint": {"epoch": 2, "sha256": checkpoint.sha256},
        "predictions": [
            {
                "class_index": 9,
                "label": "class 9",
                "probability": 0.5,
                "top": [
                    {"class_index": 9, "label": "class 9", "probability": 0.5},
                    {"class_index": 8, "label": "class 8", "probability": 0.5},
                ],
                "warnings": [f"{len(PICTURE)} bytes"],
                "fixed": [],
            }
        ],
    }
    asked = {"path": checkpoint.path, "sha256": checkpoint.sha256, "top_k": 2, "image": PICTURE}
    assert predictor.pictures == [asked | {"auto_fix": False, "threads": cores()}]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "IMAGE/PNG; q=1", "application/octet-stream", None])
def test_the_body_may_be_the_picture_itself(
    client: TestClient, predictor: FakePredictor, job: Job, kind: str | None
) -> None:
    predicted(client, content=PICTURE, headers={"Content-Type": kind} if kind else {})
    assert predictor.pictures[0]["image"] == PICTURE


def test_a_form_may_hold_one_picture(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    assert len(predicted(client, files={"image": ("shoe.png", PICTURE, "image/png")})["predictions"]) == 1
    assert predictor.pictures[0]["image"] == PICTURE


def test_a_form_may_hold_many_pictures_and_their_order_is_kept(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    pictures = [PICTURE + b"!" * number for number in range(1, 5)]
    body = predicted(client, files=[("image", ("same name.png", picture, "image/png")) for picture in pictures])
    assert [each["warnings"] for each in body["predictions"]] == [[f"{len(picture)} bytes"] for picture in pictures]
    assert [asked["image"] for asked in predictor.pictures] == pictures


def test_a_large_picture_arrives_whole(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    picture = bytes(range(256)) * 8192  # 2 MiB: more than a form keeps in memory
    predicted(client, files={"image": picture})
    predicted(client, content=picture, headers=PNG)
    assert [asked["image"] for asked in predictor.pictures] == [picture, picture]


def test_five_classes_are_named_unless_told_otherwise(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    for query in ("", "?top_k=1", "?top_k=1000"):
        predicted(client, query)
    assert [asked["top_k"] for asked in predictor.pictures] == [5, 1, 1000]


@pytest.mark.parametrize(("which", "epoch"), [("best", 2), ("last", 3), ("1", 1)])
def test_the_checkpoint_can_be_chosen(
    client: TestClient, predictor: FakePredictor, job: Job, which: str, epoch: int
) -> None:
    assert predicted(client, f"?checkpoint={which}")["checkpoint"]["epoch"] == epoch
    assert predictor.pictures[0]["path"] == saved(epoch).path


def test_the_job_can_be_chosen_even_while_it_runs(client: TestClient, db: Database, job: Job) -> None:
    other = running(db)
    record(db, other, 1)
    assert predicted(client, f"?job={other.id}")["job"] == other.id
    assert predicted(client)["job"] == job.id


def test_every_epoch_can_be_asked_at_once(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    body = predicted(client, "?checkpoint=all", files=[("image", PICTURE), ("image", PICTURE + b"!")])
    assert body["job"] == job.id
    assert [each["checkpoint"]["epoch"] for each in body["epochs"]] == [1, 2, 3]
    assert [len(each["predictions"]) for each in body["epochs"]] == [2, 2, 2]
    assert [asked["path"] for asked in predictor.pictures] == [saved(epoch).path for epoch in (1, 1, 2, 2, 3, 3)]
    EpochsBody.model_validate(body)


def test_what_is_answered_is_what_the_documentation_says(client: TestClient, job: Job) -> None:
    PredictBody.model_validate(predicted(client))


def test_a_running_job_keeps_its_cores(client: TestClient, db: Database, predictor: FakePredictor, job: Job) -> None:
    running(db)
    predicted(client)
    assert predictor.pictures[0]["threads"] == 1


def test_the_answer_says_what_took_how_long(client: TestClient, job: Job) -> None:
    answer = client.post("/predict", content=PICTURE, headers=PNG)
    spans = [each.strip().split(";dur=") for each in answer.headers["Server-Timing"].split(",")]
    assert [name for name, _ in spans] == ["read", "find", "predict"]
    assert all(0 <= float(milliseconds) < 60_000 for _, milliseconds in spans)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("?job=a&model=b", "?"),
        ("?checkpoint=worst", "?checkpoint"),
        ("?top_k=0", "?top_k"),
        ("?top_k=many", "?top_k"),
        ("?epoch=3", "?epoch"),
        ("?auto_fix=perhaps", "?auto_fix"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(client: TestClient, job: Job, query: str, pointer: str) -> None:
    answer = client.post(f"/predict{query}", content=PICTURE, headers=PNG)
    assert_problem(answer, 422, "validation_error")
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_more_pictures_than_may_wait_are_refused_as_a_whole(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    predictor.room = 2
    answer = client.post("/predict", files=[("image", PICTURE)] * 3)
    assert_problem(answer, 503, "predictor_unavailable")
    assert (answer.headers["Retry-After"], predictor.pictures) == ("1", [])


@pytest.mark.parametrize("said", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_is_decoded(
    serve: Callable[..., TestClient], predictor: FakePredictor, job: Job, said: bool
) -> None:
    client = serve(max_image_bytes=1000)
    content = b"!" * 1001 if said else iter([b"!" * 600, b"!" * 600])
    assert_problem(client.post("/predict", content=content, headers=PNG), 413, "too_large")
    assert predictor.pictures == []


def test_without_a_job_that_succeeded_nobody_answers(
    client: TestClient, predictor: FakePredictor, db: Database
) -> None:
    record(db, running(db), 1)
    answer = client.post("/predict", content=PICTURE, headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ready")
    assert predictor.pictures == []


def test_a_job_without_checkpoint_is_not_ready(client: TestClient, db: Database, job: Job) -> None:
    answer = client.post(f"/predict?job={running(db).id}", content=PICTURE, headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (409, "not_ready")


@pytest.mark.parametrize("query", ["?job=000000000000000000000000", "?job=nobody", "?checkpoint=4"])
def test_what_is_not_there_is_not_found(client: TestClient, predictor: FakePredictor, job: Job, query: str) -> None:
    answer = client.post(f"/predict{query}", content=PICTURE, headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert predictor.pictures == []


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"", "headers": PNG}, 400, "invalid_request"),
        ({"content": b""}, 400, "invalid_request"),
        ({"files": {"image": b""}}, 400, "invalid_request"),
        ({"files": [("image", PICTURE), ("image", b"")]}, 400, "invalid_request"),
        ({"files": {"picture": PICTURE}}, 400, "invalid_request"),
        ({"files": [("image", PICTURE), ("label", b"9")]}, 400, "invalid_request"),
        ({"files": {"image": (None, "a text, not a file")}}, 400, "invalid_request"),
        ({"files": [("image", PICTURE), ("image", (None, "text"))]}, 400, "invalid_request"),
        ({"files": [("image", PICTURE)] * 65}, 400, "invalid_request"),
        ({"data": {"image": "text"}}, 415, "unsupported_media_type"),
        ({"json": {"image": "aGVsbG8="}}, 415, "unsupported_media_type"),
        ({"content": b"hello", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
    ],
)
def test_a_request_without_a_picture_is_refused(
    client: TestClient, predictor: FakePredictor, job: Job, request_: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/predict", **request_)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert predictor.pictures == []


def test_64_pictures_are_answered(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    assert len(predicted(client, files=[("image", PICTURE)] * 64)["predictions"]) == 64


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.BadImage(), 422),
        (errors.ImageTooLarge(), 413),
        (errors.CheckpointCorrupt(), 409),
        (errors.PredictorUnavailable(), 503),
    ],
)
def test_what_the_predictor_refuses_is_refused(
    client: TestClient, predictor: FakePredictor, job: Job, error: errors.EpochdError, status: int
) -> None:
    predictor.error = error
    answer = client.post("/predict", content=PICTURE, headers=PNG)
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (status, error.code, error.detail)


def test_while_the_predictor_restarts_a_client_is_told_when_to_come_back(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    predictor.ready = False
    answer = client.post("/predict", content=PICTURE, headers=PNG)
    assert (answer.status_code, answer.json()["code"]) == (503, "predictor_unavailable")
    assert answer.headers["Retry-After"] == "1"
    predictor.ready = True
    assert predicted(client)["job"] == job.id


Damaged = Callable[[set[str], Callable[[], None]], None]


@pytest.fixture
def damaged(predictor: FakePredictor, monkeypatch: pytest.MonkeyPatch) -> Damaged:
    """Has the predictor refuse the files at these paths; before it first does, something may happen."""
    answer = predictor.predict

    def install(paths: set[str], first: Callable[[], None]) -> None:
        pending = [first]

        async def predict(**request: Any) -> bytes:
            answered = await answer(**request)
            if request["path"] not in paths:
                return answered
            if pending:
                pending.pop()()
            raise errors.CheckpointCorrupt

        monkeypatch.setattr(predictor, "predict", predict)

    return install


def test_a_checkpoint_that_is_damaged_is_asked_once(
    client: TestClient, predictor: FakePredictor, job: Job, damaged: Damaged
) -> None:
    damaged({saved(2).path}, lambda: None)
    assert_problem(client.post("/predict", content=PICTURE, headers=PNG), 409, "checkpoint_corrupt")
    assert len(predictor.pictures) == 1


def test_a_checkpoint_that_was_just_replaced_gives_way_to_the_new_one(
    client: TestClient, predictor: FakePredictor, db: Database, damaged: Damaged
) -> None:
    job = running(db, checkpoints={"keep": "last"})
    record(db, job, 1)
    damaged({saved(1).path}, lambda: record(db, job, 2))
    body = predicted(client, f"?job={job.id}&checkpoint=last", files=[("image", PICTURE), ("image", PICTURE)])
    assert (body["checkpoint"]["epoch"], len(body["predictions"])) == (2, 2)
    assert [asked["path"] for asked in predictor.pictures[-2:]] == [saved(2).path] * 2


def test_all_pictures_of_a_request_are_answered_by_one_checkpoint(
    client: TestClient, predictor: FakePredictor, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(db, checkpoints={"keep": "last"})
    record(db, job, 1)
    answer = predictor.predict

    async def predict(**request: Any) -> bytes:
        answered = await answer(**request)
        if request["path"] == saved(1).path and len(predictor.pictures) == 2:
            record(db, job, 2)
            raise errors.CheckpointCorrupt
        return answered

    monkeypatch.setattr(predictor, "predict", predict)
    body = predicted(client, f"?job={job.id}", files=[("image", PICTURE)] * 3)
    assert (body["checkpoint"], len(body["predictions"])) == ({"epoch": 2, "sha256": saved(2).sha256}, 3)
    assert [asked["path"] for asked in predictor.pictures[-3:]] == [saved(2).path] * 3


def test_a_new_checkpoint_that_is_damaged_too_is_the_end(
    client: TestClient, predictor: FakePredictor, db: Database, damaged: Damaged
) -> None:
    job = running(db, checkpoints={"keep": "last"})
    record(db, job, 1)
    damaged({saved(1).path, saved(2).path}, lambda: record(db, job, 2))
    answer = client.post(f"/predict?job={job.id}", content=PICTURE, headers=PNG)
    assert_problem(answer, 409, "checkpoint_corrupt")
    assert len(predictor.pictures) == 2


def test_what_was_just_forgotten_or_deleted_is_not_found(
    client: TestClient, db: Database, job: Job, damaged: Damaged
) -> None:
    other = running(db, checkpoints={"keep": "last"})
    record(db, other, 1)
    damaged({saved(1).path}, lambda: record(db, other, 2))
    answer = client.post(f"/predict?job={other.id}&checkpoint=1", content=PICTURE, headers=PNG)
    assert_problem(answer, 404, "not_found")
    damaged({saved(2).path}, lambda: control.delete(db, job.id))
    assert_problem(client.post(f"/predict?job={job.id}", content=PICTURE, headers=PNG), 404, "not_found")


def test_one_bad_picture_fails_the_request(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    predictor.error = errors.BadImage()
    answer = client.post("/predict", files=[("image", PICTURE), ("image", PICTURE)])
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_image")
