"""Errors: one shape, the right status, and nothing of what the caller sent."""

import json
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.errors import STATUS
from tests.service.conftest import Serve
from tests.service.predictor import FakePredictor
from tests.worker.jobs.making import finish, record, running
from tests.worker.jobs.test_failures import family
from worker.jobs import errors
from worker.jobs.db import Database
from worker.jobs.states import Outcome

CANARY = "c4narybird"
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
FORM = {"Content-Type": "multipart/form-data; boundary=frontier"}
NO_JOB = "0" * 24
# Never the answer to a request: a job tells them, or the process does not start.
INTERNAL = {
    errors.DatasetInvalid,
    errors.WeightsMissing,
    errors.WeightsUnfit,
    errors.BadBackup,
    errors.DeviceUnavailable,
    errors.OutOfMemory,
    errors.Diverged,
    errors.StaleAttempt,
    errors.Killed,
    errors.Crashed,
    errors.Stalled,
    errors.WorkerLost,
    errors.SchemaTooNew,
}

Row = tuple[str, str, dict[str, Any], int, str]


def job_body(content: bytes, status: int = 422, code: str = "validation_error") -> Row:
    return "POST", "/jobs", {"content": content, "headers": JSON}, status, code


def address(method: str, path: str, status: int, code: str) -> Row:
    return method, path, {}, status, code


def picture(content: bytes, headers: dict[str, str], status: int, code: str) -> Row:
    return "POST", "/predict", {"content": content, "headers": headers}, status, code


BAD: list[Row] = [
    # bodies that are no JSON
    job_body(f'{{"name": "{CANARY}"'.encode(), 400, "invalid_json"),
    job_body(CANARY.encode(), 400, "invalid_json"),
    job_body(b"{'name': '" + CANARY.encode() + b"'}", 400, "invalid_json"),
    job_body(b"\x89PNG\r\n\x1a\n" + CANARY.encode(), 400, "invalid_json"),
    job_body(b'"\xff\xfe' + CANARY.encode() + b'"', 400, "invalid_json"),
    job_body(b"[" * 100_000, 400, "invalid_json"),
    job_body(b'{"labels":' * 50_000, 400, "invalid_json"),
    job_body(b'{"seed": ' + b"9" * 5000 + b"}", 400, "invalid_json"),
    # bodies that are no spec
    job_body(b""),
    job_body(b"null"),
    job_body(b"[]"),
    job_body(b"7"),
    job_body(f'"{CANARY}"'.encode()),
    job_body(f'["{CANARY}"]'.encode()),
    job_body(b'{"model": []}'),
    job_body(b'{"optimizer": {"lr": NaN}}'),
    job_body(b'{"optimizer": {"lr": Infinity}}'),
    job_body(b'{"optimizer": {"lr": 1e999}}'),
    job_body(b'{"optimizer": {"lr": -1e999}}'),
    job_body(b'{"seed": NaN}'),
    job_body(b'{"seed": 9223372036854775808}'),
    job_body(b'{"seed": -9223372036854775809}'),
    job_body(b'{"seed": 1e3}'),
    job_body(b'{"epochs": 123456789012345678901234567890}'),
    job_body(f'{{"epochs": "{CANARY}"}}'.encode()),
    job_body(f'{{"device": "{CANARY}"}}'.encode()),
    job_body(f'{{"precision": "{CANARY}"}}'.encode()),
    job_body(f'{{"dataset": {{"name": "../{CANARY}"}}}}'.encode()),
    job_body(f'{{"dataset": "{CANARY}"}}'.encode()),
    job_body(f'{{"model": {{"name": "{CANARY}"}}}}'.encode()),
    job_body(f'{{"model": {{"hidden": ["{CANARY}"]}}}}'.encode()),
    job_body(f'{{"optimizer": {{"name": "{CANARY}", "lr": 1}}}}'.encode()),
    job_body(f'{{"optimizer": {{"name": ["{CANARY}"]}}}}'.encode()),
    job_body(f'{{"optimizer": "{CANARY}"}}'.encode()),
    job_body(f'{{"model": {{"name": "layers", "layers": [{{"name": "{CANARY}"}}]}}}}'.encode()),
    job_body(f'{{"model": {{"name": "layers", "layers": ["{CANARY}"]}}}}'.encode()),
    job_body(f'{{"loss": {{"class_weights": "{CANARY}"}}}}'.encode()),
    job_body(b'{"optimizer": {"nesterov": true}}'),
    job_body(f'{{"name": "{CANARY}", "batch_size": 1, "accumulation": 2}}'.encode()),
    job_body(f'{{"name": "{CANARY}\\u0000"}}'.encode()),
    job_body(f'{{"name": "{CANARY}\\ud800"}}'.encode()),
    job_body(f'{{"labels": {{"key": "{CANARY}\\n"}}}}'.encode()),
    job_body(f'{{"labels": "{CANARY}"}}'.encode()),
    job_body(b'{"\\ud800": 1}'),
    job_body(b'{"labels": {"\\ud800": "value"}}'),
    job_body(f'{{"no_such_field": "{CANARY}"}}'.encode()),
    # the wrong kind of body
    ("POST", "/jobs", {"data": {"name": CANARY}}, 415, "unsupported_media_type"),
    ("POST", "/jobs", {"files": {"name": CANARY}}, 415, "unsupported_media_type"),
    ("POST", "/jobs", {"content": b"{}"}, 415, "unsupported_media_type"),
    ("POST", "/jobs", {"content": b"{}", "headers": {"Content-Type": CANARY}}, 415, "unsupported_media_type"),
    ("POST", "/jobs", {"content": b"\x89PNG", "headers": PNG}, 415, "unsupported_media_type"),
    # addresses
    address("GET", f"/{CANARY}", 404, "not_found"),
    address("POST", f"/{CANARY}", 404, "not_found"),
    address("GET", f"/jobs/{CANARY}", 404, "not_found"),
    address("GET", f"/jobs/{CANARY}%00", 404, "not_found"),
    address("GET", f"/jobs/{CANARY}%ed%a0%80", 404, "not_found"),
    address("GET", f"/jobs/{CANARY}/metrics", 404, "not_found"),
    address("GET", f"/jobs/{CANARY}/checkpoints", 404, "not_found"),
    address("GET", f"/jobs/{CANARY}/checkpoints/best", 404, "not_found"),
    address("POST", f"/jobs/{CANARY}/cancel", 404, "not_found"),
    address("GET", f"/jobs/{NO_JOB}/metrics?since=-1", 422, "validation_error"),
    address("DELETE", "/jobs", 405, "method_not_allowed"),
    address("PATCH", f"/jobs/{CANARY}", 405, "method_not_allowed"),
    address("GET", "/predict", 405, "method_not_allowed"),
    address("GET", f"/jobs/{CANARY}/cancel", 405, "method_not_allowed"),
    # queries
    address("GET", "/jobs?no_such_parameter=1", 422, "validation_error"),
    address("GET", f"/jobs?limit={CANARY}", 422, "validation_error"),
    address("GET", "/jobs?limit=0", 422, "validation_error"),
    address("GET", "/jobs?limit=101", 422, "validation_error"),
    address("GET", "/jobs?limit=1e999", 422, "validation_error"),
    address("GET", "/jobs?limit=9223372036854775808", 422, "validation_error"),
    address("GET", f"/jobs?status={CANARY}", 422, "validation_error"),
    address("GET", f"/jobs?after={CANARY}", 422, "validation_error"),
    address("GET", "/jobs?after=%00", 422, "validation_error"),
    address("GET", f"/jobs?after={NO_JOB}%0A", 422, "validation_error"),
    address("POST", f"/predict?top_k={CANARY}", 422, "validation_error"),
    address("POST", "/predict?top_k=0", 422, "validation_error"),
    address("POST", f"/predict?checkpoint={CANARY}", 422, "validation_error"),
    address("POST", f"/predict?job={CANARY * 10}", 422, "validation_error"),
    # pictures
    picture(b"", PNG, 400, "invalid_request"),
    picture(CANARY.encode(), {"Content-Type": f"text/{CANARY}"}, 415, "unsupported_media_type"),
    picture(CANARY.encode(), {"Content-Type": "multipart/form-data"}, 400, "invalid_request"),
    picture(CANARY.encode(), FORM, 400, "invalid_request"),
    picture(f"--frontier\r\n{CANARY}\x00: x\r\n\r\n".encode(), FORM, 400, "invalid_request"),
    picture(
        f"--frontier\r\nContent-Disposition: {CANARY}\r\n\r\nx\r\n--frontier--".encode(), FORM, 400, "invalid_request"
    ),
    ("POST", "/predict", {"files": {CANARY: (CANARY, CANARY.encode())}}, 400, "invalid_request"),
    ("POST", f"/predict?job={CANARY}", {"content": CANARY.encode(), "headers": PNG}, 404, "not_found"),
    ("POST", f"/predict?job={CANARY}%00", {"content": CANARY.encode(), "headers": PNG}, 404, "not_found"),
]


def assert_problem(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json"), answer.text
    body = answer.json()
    assert body.keys() == {"type", "title", "status", "detail", "code", "request_id", "errors"}
    assert (body["status"], body["code"], body["type"]) == (status, code, f"urn:epochd:problem:{code}")
    assert body["title"]
    assert body["detail"]
    assert body["request_id"]
    assert answer.headers["X-Request-Id"] == body["request_id"]
    assert CANARY not in answer.text + str(answer.headers)


def test_every_error_has_a_status_or_is_internal() -> None:
    assert set(family()) - set(STATUS) == INTERNAL
    assert not INTERNAL & set(STATUS)
    assert all(400 <= status <= 507 for status in STATUS.values())


@pytest.mark.parametrize(("method", "path", "request_", "status", "code"), BAD)
def test_a_bad_request_is_a_problem(
    client: TestClient, method: str, path: str, request_: dict[str, Any], status: int, code: str
) -> None:
    assert_problem(client.request(method, path, **request_), status, code)
    assert client.get("/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"epochs": 0}, "#/epochs"),
        ({"optimizer": {"lr": -1}}, "#/optimizer/lr"),
        ({"model": {"hidden": [8, 0]}}, "#/model/hidden/1"),
        ({"learning_rate": 1}, "#/learning_rate"),
        ({"a/b~c": 1}, "#/a~1b~0c"),
        ([], "#"),
        # of choices: nothing but what was sent
        ({"optimizer": {"name": "adam", "lr": 0}}, "#/optimizer/lr"),
        ({"optimizer": {"name": "adam", "betas": [0.9, 2]}}, "#/optimizer/betas/1"),
        ({"optimizer": {"name": "adam", "momentum": 0.9}}, "#/optimizer/momentum"),
        ({"optimizer": {"(sgd)": 1}}, "#/optimizer/(sgd)"),
        ({"optimizer": {"name": "lion"}}, "#/optimizer/name"),
        ({"optimizer": {"name": "(sgd)"}}, "#/optimizer/name"),
        ({"optimizer": "adam"}, "#/optimizer"),
        ({"model": {"name": "cnn", "channels": [8, 0]}}, "#/model/channels/1"),
        ({"model": {"name": "layers"}}, "#/model/layers"),
        ({"model": {"name": "layers", "layers": [{"name": "relu"}, {"name": "conv2d"}]}}, "#/model/layers/1/channels"),
        ({"model": {"name": "layers", "layers": [{"name": "lstm"}]}}, "#/model/layers/0/name"),
        ({"model": {"name": "layers", "layers": [{}]}}, "#/model/layers/0/name"),
        ({"model": {"name": "layers", "layers": [7]}}, "#/model/layers/0"),
        ({"labels": {"": "value"}}, "#/labels/"),
        # of parts that cannot work together
        ({"optimizer": {"nesterov": True}}, "#/optimizer/nesterov"),
        ({"epochs": 2, "schedule": {"name": "cosine", "warmup_epochs": 3}}, "#/schedule/warmup_epochs"),
        ({"loss": {"name": "nll"}, "augmentation": {"mixup": 0.2}}, "#/augmentation/mixup"),
        ({"precision": "tf32", "device": "cpu"}, "#/precision"),
        # and of what does not suit the dataset
        ({"loss": {"class_weights": [1, 2, 3]}}, "#/loss/class_weights"),
        ({"early_stopping": {"metric": "test_r2"}}, "#/early_stopping/metric"),
    ],
)
def test_a_refused_body_says_which_field_and_why(client: TestClient, body: object, pointer: str) -> None:
    problem = client.post("/jobs", json=body).json()
    (field,) = problem["errors"]
    assert field["pointer"] == pointer
    assert field["detail"].endswith(".")
    assert problem["detail"] == f"{pointer}: {field['detail']}"


@pytest.mark.parametrize(
    ("weights", "pointers"),
    [
        ([1, 0], ["#/loss/class_weights/1", "#/loss/class_weights"]),
        ("even", ["#/loss/class_weights", "#/loss/class_weights"]),
        ({"1": 1}, ["#/loss/class_weights", "#/loss/class_weights"]),
    ],
)
def test_a_field_that_can_be_two_things_says_both(client: TestClient, weights: object, pointers: list[str]) -> None:
    problem = client.post("/jobs", json={"loss": {"class_weights": weights}}).json()
    assert [each["pointer"] for each in problem["errors"]] == pointers


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"optimizer": {"name": CANARY}}, ["sgd", "adam", "adamw", "rmsprop"]),
        ({"loss": {"name": CANARY}}, ["cross_entropy", "nll", "mse"]),
        ({"model": {"name": CANARY}}, ["mlp", "cnn", "layers", "resnet18"]),
        ({"model": {"name": "layers", "layers": [{"name": CANARY}]}}, ["linear", "conv2d", "relu", "flatten"]),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(client: TestClient, body: object, names: list[str]) -> None:
    answer = client.post("/jobs", json=body)
    assert_problem(answer, 422, "validation_error")
    assert all(name in answer.json()["detail"] for name in names)


def test_a_refused_query_says_which_parameter(client: TestClient) -> None:
    problem = client.get("/jobs?limit=0&status=done&unknown=1").json()
    assert {each["pointer"] for each in problem["errors"]} == {"?limit", "?status", "?unknown"}
    assert problem["detail"].endswith("(and 2 more)")


def test_every_fault_of_a_body_is_told_at_once(client: TestClient) -> None:
    problem = client.post("/jobs", json={"epochs": 0, "seed": -1, "model": {"dropout": 1, "width": 3}}).json()
    assert [each["pointer"] for each in problem["errors"]] == ["#/model/dropout", "#/model/width", "#/epochs", "#/seed"]


def test_the_last_of_duplicate_keys_counts(client: TestClient) -> None:
    answer = client.post("/jobs", content=b'{"epochs": 3, "epochs": 4}', headers=JSON)
    assert (answer.status_code, answer.json()["spec"]["epochs"]) == (201, 4)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({f"field{number}": 1 for number in range(20_000)}).encode(),
        json.dumps({"x" * 500_000: 1}).encode(),
        json.dumps({"labels": {f"{number}\n": "\n" for number in range(32)}}).encode(),
    ],
    ids=["many unknown fields", "a long unknown field", "many bad labels"],
)
def test_an_answer_stays_small_whatever_was_sent(client: TestClient, body: bytes) -> None:
    answer = client.post("/jobs", content=body, headers=JSON)
    assert_problem(answer, 422, "validation_error")
    assert len(answer.content) < 16_384


def chunks(size: int) -> Iterator[bytes]:
    """A body without Content-Length."""
    for start in range(0, size, 65_536):
        yield CANARY.encode().ljust(min(65_536, size - start), b" ")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_json_body_over_1_mib_is_too_large(client: TestClient, chunked: bool) -> None:
    size = 2**20
    for over in (0, 1):
        content = chunks(size + over) if chunked else b"".join(chunks(size + over))
        answer = client.post("/jobs", content=content, headers=JSON)
        assert_problem(answer, *((413, "too_large") if over else (400, "invalid_json")))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_picture_over_the_limit_is_too_large(
    serve: Serve, predictor: FakePredictor, db: Database, chunked: bool
) -> None:
    client = serve(max_image_bytes=100_000)
    job = running(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    for size, status in ((100_000, 200), (100_001, 413)):
        content = chunks(size) if chunked else b"".join(chunks(size))
        answer = client.post("/predict", content=content, headers=PNG)
        assert answer.status_code == status
    assert_problem(answer, 413, "too_large")
    assert_problem(client.post("/predict", files={"image": b" " * 100_000}), 413, "too_large")
    assert len(predictor.pictures) == 1


def test_a_picture_may_be_larger_than_a_json_body(client: TestClient) -> None:
    answer = client.post("/predict", content=b" " * (2**20 + 1), headers=PNG)
    assert_problem(answer, 409, "not_ready")


def test_a_method_that_is_not_taken_says_which_are(client: TestClient) -> None:
    answer = client.put("/predict")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"


def test_every_request_has_an_id_of_its_own(client: TestClient) -> None:
    answers = [client.get("/healthz"), client.get("/jobs"), client.get("/jobs/x")]
    assert len({answer.headers["X-Request-Id"] for answer in answers}) == 3


@pytest.mark.parametrize(
    "error", [RuntimeError(CANARY), errors.StaleAttempt(CANARY), errors.Internal(CANARY), errors.SchemaTooNew(CANARY)]
)
def test_what_nobody_expected_is_told_to_the_log_only(
    client: TestClient,
    predictor: FakePredictor,
    db: Database,
    log: list[MutableMapping[str, Any]],
    error: Exception,
) -> None:
    job = running(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    predictor.error = error
    answer = client.post("/predict", content=b"a picture", headers=PNG)
    assert_problem(answer, 500, "internal")
    assert "Traceback" not in answer.text
    (entry,) = [entry for entry in log if entry["log_level"] == "error"]
    assert (entry["exc_info"], entry["request_id"]) == (error, answer.json()["request_id"])


def test_requests_are_logged_without_what_they_carry(serve: Serve, log: list[MutableMapping[str, Any]]) -> None:
    client = serve(api_key=CANARY * 2)
    client.post("/jobs?dry_run=false", json={"name": CANARY}, headers={"Authorization": f"Bearer {CANARY * 2}"})
    client.get("/healthz")
    (entry,) = [entry for entry in log if entry["event"] == "request"]
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/jobs", 201)
    assert CANARY not in repr(log)
