"""The Open Inference Protocol over HTTP: what the predictor is asked, and in which shape clients are told."""

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.conftest import Serve
from tests.service.predictor import FakePredictor
from tests.worker.jobs.kept_files import put
from tests.worker.jobs.making import finish, record, running, saved
from worker.jobs import aliases, errors
from worker.jobs.db import Database
from worker.jobs.processes import cores
from worker.jobs.states import Outcome
from worker.jobs.tables import Job
from worker.jobs.wire import InferRequest

HEADER = "Inference-Header-Content-Length"
BODY = b'{"inputs": [{"name": "pixels"}]}'


@pytest.fixture
def job(db: Database) -> Job:
    """A job that succeeded, and whose second checkpoint of three is the best."""
    return trained(db)


def trained(db: Database, **spec: Any) -> Job:
    job = running(db, **spec)
    for epoch, accuracy in enumerate((0.25, 0.75, 0.5), start=1):
        record(db, job, epoch, test_accuracy=accuracy)
    finish(db, job, Outcome.SUCCEEDED)
    return job


@pytest.fixture(autouse=True)
def answer(predictor: FakePredictor) -> bytes:
    """What the predictor's process gives: JSON alone."""
    predictor.answer = struct.pack("!I", 2) + b"{}"
    return predictor.answer


def weights(about: dict[str, Any]) -> bytes:
    """A file of safetensors without tensors."""
    header = json.dumps({"__metadata__": {"epochd": json.dumps(about)}}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.fixture
def written(data_dir: Path) -> Callable[[int, dict[str, Any]], None]:
    """Puts a checkpoint's file where its row says."""

    def write(epoch: int, about: dict[str, Any]) -> None:
        shape = {"channels": 3, "height": 32, "width": 40}
        put(data_dir, saved(epoch).path, weights({"preprocessing": shape, "classes": [], "targets": []} | about))

    return write


def asked(predictor: FakePredictor) -> list[tuple[InferRequest, bytes]]:
    """Certificates are asked for meanwhile too."""
    return [(request, body) for request, body in predictor.asked if isinstance(request, InferRequest)]


def versions(predictor: FakePredictor) -> list[str]:
    return [request.model_version for request, _ in asked(predictor)]


def assert_told(answer: Any, status: int, code: str) -> dict[str, Any]:
    """A problem as everywhere, which the protocol's clients understand too."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert body["error"] == body["detail"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def test_the_server_says_what_it_is(client: TestClient) -> None:
    about = client.get("/v2").json()
    assert about["name"] == "epochd"
    assert set(about["extensions"]) == {"binary_tensor_data", "classification"}
    assert about["version"]


def test_health_is_the_predictors(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    addresses = ["/v2/health/ready", f"/v2/models/{job.id}/ready", f"/v2/models/{job.id}/versions/1/ready"]
    assert [client.get(each).status_code for each in ["/v2/health/live", *addresses]] == [200] * 4
    assert client.get(addresses[2]).json() == {"name": job.id, "ready": True}
    predictor.ready = False
    assert client.get("/v2/health/live").json() == {"live": True}
    for each in addresses:
        told = client.get(each)
        assert_told(told, 503, "predictor_unavailable")
        assert told.headers["Retry-After"] == "1"


def test_metadata_is_what_the_checkpoints_file_says(
    client: TestClient, job: Job, written: Callable[[int, dict[str, Any]], None]
) -> None:
    written(2, {"classes": ["cat", "dog"]})
    assert client.get(f"/v2/models/{job.id}").json() == {
        "name": job.id,
        "versions": ["1", "2", "3"],
        "platform": "pytorch",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 3, 32, 40]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
        ],
    }
    written(3, {"targets": ["age", "ink", "weight"]})
    third = client.get(f"/v2/models/{job.id}/versions/3").json()
    assert third["versions"] == ["3"]
    assert third["outputs"] == [{"name": "values", "datatype": "FP32", "shape": [-1, 3]}]


@pytest.mark.parametrize(
    "contents", [None, b"", b"\xff" * 8, b"\xff" * 100, weights({}), struct.pack("<Q", 4) + b"null", weights({})[:-5]]
)
def test_metadata_of_a_damaged_file_is_refused(
    client: TestClient, data_dir: Path, job: Job, contents: bytes | None
) -> None:
    (data_dir / saved(2).path).unlink(missing_ok=True)
    if contents is not None:
        put(data_dir, saved(2).path, contents)
    assert_told(client.get(f"/v2/models/{job.id}"), 409, "checkpoint_corrupt")


def test_the_predictor_gets_the_body_as_it_came(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    head = {HEADER: str(len(BODY))}
    for name, version, epoch in ((job.id, "", 2), (job.id, "/versions/3", 3), ("default", "", 2)):
        answer = client.post(f"/v2/models/{name}{version}/infer", content=BODY + b"\0\1\2", headers=head)
        assert answer.status_code == 200, answer.text
        request, body = asked(predictor)[-1]
        assert request == InferRequest(
            path=saved(epoch).path,
            sha256=saved(epoch).sha256,
            json_bytes=len(BODY),
            model_name=name,
            model_version=str(epoch),
            threads=cores(),
        )
        assert body == BODY + b"\0\1\2"


def test_without_the_header_all_of_the_body_is_json(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    client.post(f"/v2/models/{job.id}/infer", content=BODY)
    assert asked(predictor)[0][0].json_bytes == len(BODY)


def test_an_answer_of_json_is_json(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    predictor.answer = struct.pack("!I", 11) + b'{"a": "b" }'
    answer = client.post(f"/v2/models/{job.id}/infer", content=BODY)
    assert (answer.headers["content-type"], answer.content) == ("application/json", b'{"a": "b" }')
    assert HEADER not in answer.headers


def test_an_answer_with_binary_tensors_says_where_they_begin(
    client: TestClient, predictor: FakePredictor, job: Job
) -> None:
    predictor.answer = struct.pack("!I", 2) + b"{}" + b"\0\0\x80?"
    answer = client.post(f"/v2/models/{job.id}/infer", content=BODY)
    assert (answer.headers["content-type"], answer.content) == ("application/octet-stream", b"{}\0\0\x80?")
    assert answer.headers[HEADER] == "2"


@pytest.mark.parametrize(
    ("name", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_a_body_may_be_packed(
    client: TestClient, predictor: FakePredictor, job: Job, name: str, pack: Callable[[bytes], bytes]
) -> None:
    headers = {HEADER: str(len(BODY)), "Content-Encoding": name}
    answer = client.post(f"/v2/models/{job.id}/infer", content=pack(BODY + b"\0\1"), headers=headers)
    assert answer.status_code == 200, answer.text
    ((request, body),) = asked(predictor)
    assert (body, request.json_bytes) == (BODY + b"\0\1", len(BODY))


@pytest.mark.parametrize(
    ("encoding", "content", "status", "code"),
    [
        ("br", BODY, 415, "unsupported_media_type"),
        ("gzip, deflate", BODY, 415, "unsupported_media_type"),
        ("gzip", BODY, 400, "invalid_request"),
        ("gzip", b"", 400, "invalid_request"),
        ("deflate", gzip.compress(BODY, mtime=0), 400, "invalid_request"),
        ("gzip", gzip.compress(BODY, mtime=0)[:-1], 400, "invalid_request"),
        ("gzip", gzip.compress(b" " * 10**8, mtime=0), 413, "too_large"),
        ("deflate", zlib.compress(b" " * 10**8), 413, "too_large"),
    ],
)
def test_a_body_that_is_not_packed_as_it_should_be_is_refused(
    client: TestClient, predictor: FakePredictor, job: Job, encoding: str, content: bytes, status: int, code: str
) -> None:
    headers = {"Content-Encoding": encoding}
    answer = client.post(f"/v2/models/{job.id}/infer", content=content, headers=headers)
    assert_told(answer, status, code)
    assert asked(predictor) == []


@pytest.mark.parametrize("length", ["", "-1", "1.5", "33", "x", "9" * 5000, "\N{SUPERSCRIPT TWO}"])
def test_a_length_that_cannot_be_is_refused(
    client: TestClient, predictor: FakePredictor, job: Job, length: str
) -> None:
    headers = {HEADER.encode(): length.encode("latin-1")}
    assert_told(client.post(f"/v2/models/{job.id}/infer", content=BODY, headers=headers), 400, "invalid_request")
    assert asked(predictor) == []


def test_a_body_that_is_too_large_is_refused(serve: Serve, predictor: FakePredictor, job: Job) -> None:
    client = serve(max_image_bytes=1000)
    answer = client.post(f"/v2/models/{job.id}/infer", content=b"!" * 1001)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    headers = {"Content-Encoding": "gzip"}
    packed = client.post(f"/v2/models/{job.id}/infer", content=gzip.compress(b"!" * 1001, mtime=0), headers=headers)
    assert_told(packed, 413, "too_large")
    assert asked(predictor) == []


def test_an_alias_answers_with_its_own_epoch_unless_another_is_named(
    client: TestClient, db: Database, predictor: FakePredictor, job: Job
) -> None:
    aliases.put(db, "shoes", job.id, "1")
    client.post("/v2/models/shoes/infer", content=BODY)
    client.post("/v2/models/shoes/versions/3/infer", content=BODY)
    assert versions(predictor) == ["1", "3"]
    assert {request.model_name for request, _ in asked(predictor)} == {"shoes"}


def test_default_is_the_alias_of_that_name_or_else_the_newest_job(
    client: TestClient, db: Database, predictor: FakePredictor, job: Job
) -> None:
    newer = trained(db)
    client.post("/v2/models/default/infer", content=BODY)
    aliases.put(db, "default", job.id, "3")
    client.app.state.resolver.forget()  # type: ignore[attr-defined]  # as PUT /models/default does
    client.post("/v2/models/default/infer", content=BODY)
    assert newer.id != job.id
    assert versions(predictor) == ["2", "3"]


@pytest.mark.parametrize("name", ["nobody", "0" * 24, "Shoes", "%00", "a%20b"])
def test_what_is_not_there_is_not_found(client: TestClient, db: Database, job: Job, name: str) -> None:
    for address in ("", "/ready", "/versions/1", "/versions/1/ready"):
        assert_told(client.get(f"/v2/models/{name}{address}"), 404, "not_found")
    assert_told(client.post(f"/v2/models/{name}/infer", content=BODY), 404, "not_found")


def test_a_version_that_was_not_kept_is_not_found(client: TestClient, db: Database, job: Job) -> None:
    aliases.put(db, "shoes", job.id, "1")
    for name in ("shoes", job.id):
        assert "version" in assert_told(client.get(f"/v2/models/{name}/versions/4/ready"), 404, "not_found")["error"]


def test_a_job_without_checkpoint_is_not_ready(client: TestClient, db: Database, job: Job) -> None:
    assert_told(client.get(f"/v2/models/{running(db).id}/ready"), 409, "not_ready")


@pytest.mark.parametrize("version", ["0", "-1", "best", "1.5", "9" * 30])
def test_a_version_that_is_no_epoch_is_refused(client: TestClient, job: Job, version: str) -> None:
    told = client.post(f"/v2/models/{job.id}/versions/{version}/infer", content=BODY)
    assert_told(told, 422, "validation_error")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequest("The shape wants 784 numbers; 1 came."), 400),
        (errors.BodyTooLarge("Send it as binary data."), 413),
        (errors.CheckpointCorrupt(), 409),
        (errors.PredictorUnavailable(), 503),
    ],
)
def test_what_the_predictor_refuses_is_told_in_both_shapes(
    client: TestClient, predictor: FakePredictor, job: Job, error: errors.EpochdError, status: int
) -> None:
    predictor.error = error
    answer = client.post(f"/v2/models/{job.id}/infer", content=BODY)
    assert assert_told(answer, status, error.code)["error"] == error.detail
    assert ("Retry-After" in answer.headers) is (status == 503)


def test_what_nobody_foresaw_is_told_as_everywhere(client: TestClient, predictor: FakePredictor, job: Job) -> None:
    predictor.error = RuntimeError("secret")
    answer = client.post(f"/v2/models/{job.id}/infer", content=BODY)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


def test_a_checkpoint_that_was_just_replaced_gives_way_to_the_new_one(
    client: TestClient, predictor: FakePredictor, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(db, checkpoints={"keep": "last"})
    record(db, job, 1)
    ask = predictor.ask

    async def asking(request: InferRequest, body: bytes) -> bytes:
        answered = await ask(request, body)
        if request.path == saved(1).path:
            record(db, job, 2)
            raise errors.CheckpointCorrupt
        return answered

    monkeypatch.setattr(predictor, "ask", asking)
    assert client.post(f"/v2/models/{job.id}/infer", content=BODY).status_code == 200
    assert versions(predictor) == ["1", "2"]


def test_a_key_is_needed_as_everywhere(serve: Serve, predictor: FakePredictor, job: Job) -> None:
    client = serve(api_key="a key of sixteen!")
    for address in ("/v2", f"/v2/models/{job.id}", f"/v2/models/{job.id}/ready"):
        assert client.get(address).status_code == 401
    assert client.post(f"/v2/models/{job.id}/infer", content=BODY).status_code == 401
    assert asked(predictor) == []
    headers = {"Authorization": "Bearer a key of sixteen!"}
    assert client.post(f"/v2/models/{job.id}/infer", content=BODY, headers=headers).status_code == 200
