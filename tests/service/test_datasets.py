"""Datasets over HTTP: list, upload, look, delete. What a worker would do is done by the tests."""

import errno
import io
import json
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient

import service.uploads
from service.routes.datasets import _validated
from service.uploads import _Form
from tests.service.conftest import Serve
from tests.service.test_errors import CANARY, assert_problem
from tests.worker.jobs.making import LEASE_SECONDS, card, finish
from worker.jobs import datasets, queue, versions
from worker.jobs.built_in import BUILT_IN
from worker.jobs.card import Card, Finding, FindingKind
from worker.jobs.db import Database
from worker.jobs.errors import BadArchive, DatasetInvalid
from worker.jobs.failures import Failure
from worker.jobs.files import require_space
from worker.jobs.form import Form
from worker.jobs.states import Outcome


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return buffer.getvalue()


ARCHIVE = zipped(x=b"x")


def upload(client: TestClient, archive: bytes = ARCHIVE, **form: Any) -> httpx2.Response:
    form = {"name": "shoes"} | form
    return client.post("/datasets", files={"archive": ("a.zip", archive)}, data={"dataset": json.dumps(form)})


@pytest.fixture(autouse=True)
def uploads(data_dir: Path, db: Database) -> Iterator[Path]:
    """The folder of archives, which is empty before and after."""
    folder = data_dir / "uploads"
    yield folder
    for path in folder.glob("*"):
        path.unlink()


def prepared(db: Database, found: Card | None = None) -> None:
    """As a worker would."""
    claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert claimed is not None
    datasets.set_ready(db, claimed.id, claimed.attempt, found or card(name=claimed.name))


def test_an_upload_is_kept_for_a_worker_and_says_where_to_look(client: TestClient, uploads: Path) -> None:
    answer = upload(client, channels="grey", image_size=[32, 48])
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == "/datasets/shoes?version=1"
    body = answer.json()
    assert (body["name"], body["version"], body["status"], body["built_in"]) == ("shoes", 1, "uploaded", False)
    assert body["form"] == {
        "name": "shoes",
        "task": "classification",
        "image_size": [32, 48],
        "channels": "grey",
        "test_fraction": None,
        "strict": False,
    }
    (kept,) = uploads.iterdir()
    assert kept.read_bytes() == ARCHIVE
    assert client.get(answer.headers["Location"]).json() == body
    assert client.get("/datasets/shoes").json() == body


def test_the_parts_of_the_form_may_come_in_any_order_and_size(client: TestClient, uploads: Path) -> None:
    large = ARCHIVE + bytes(5 * 2**20)  # several buffers; a zip may not end like this, but that is for the worker
    body = b"".join(
        b'--frontier\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % part
        for part in [(b"archive", b'; filename="/etc/passwd"', large), (b"dataset", b"", b'{"name": "shoes"}')]
    )
    headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
    answer = client.post("/datasets", content=body + b"--frontier--\r\n", headers=headers)
    assert answer.status_code == 202, answer.text
    (kept,) = uploads.iterdir()
    assert kept.read_bytes() == large


def test_a_dataset_shows_how_far_its_preparing_is_and_what_it_became(client: TestClient, db: Database) -> None:
    upload(client)
    claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert claimed is not None
    datasets.record_progress(db, claimed.id, 1, "decoding", 5, 10)
    body = client.get("/datasets/shoes").json()
    assert (body["status"], body["progress"]) == ("preparing", {"step": "decoding", "done": 5, "total": 10})
    finding = Finding(kind=FindingKind.LEAKAGE, count=3, detail="Tested on what was trained on.")
    datasets.set_ready(db, claimed.id, 1, card(name="shoes", findings=[finding]))
    body = client.get("/datasets/shoes").json()
    assert (body["status"], body["progress"], body["classes"]) == ("ready", None, ["cat", "dog"])
    assert (body["channels"], body["height"], body["train_count"], body["test_count"]) == (1, 28, 500, 100)
    assert body["sha256"] == body["card"]["sha256"]
    assert body["card"]["findings"] == [finding.model_dump(mode="json")]


def test_an_invalid_dataset_says_why(client: TestClient, db: Database) -> None:
    upload(client)
    claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert claimed is not None
    failure = Failure.of(DatasetInvalid("There is one class only."), phase="decoding")
    datasets.set_invalid(db, claimed.id, 1, failure, card(name="shoes"))
    body = client.get("/datasets/shoes").json()
    assert (body["status"], body["error"]["code"]) == ("invalid", "dataset_invalid")
    assert body["error"]["message"] == "There is one class only."
    assert body["card"] is not None
    refused = client.post("/jobs", json={"dataset": {"name": "shoes"}})
    assert_problem(refused, 422, "validation_error")
    assert refused.json()["errors"][0]["pointer"] == "#/dataset"
    assert "There is one class only." in refused.json()["detail"]


def test_built_in_datasets_are_listed_among_the_others(client: TestClient) -> None:
    upload(client)
    listed = {each["name"]: each for each in client.get("/datasets").json()["data"]}
    assert listed.keys() == {*BUILT_IN, "shoes"}
    assert list(listed) == sorted(listed)
    assert (listed["fashion-mnist"]["status"], len(listed["fashion-mnist"]["classes"])) == ("ready", 2)
    assert (listed["mnist"]["status"], listed["mnist"]["version"], listed["mnist"]["built_in"]) == (
        "available",
        None,
        True,
    )
    assert client.get("/datasets/mnist").json()["status"] == "available"


def test_a_built_in_dataset_is_prepared_when_asked_for(client: TestClient, db: Database) -> None:
    answer = client.post("/datasets", json={"name": "mnist"})
    assert (answer.status_code, answer.json()["status"]) == (202, "uploaded")
    prepared(db)
    answer = client.post("/datasets", json={"name": "mnist"})
    assert (answer.status_code, answer.json()["status"], answer.json()["version"]) == (200, "ready", 1)


def test_a_job_that_waits_for_its_dataset_says_so(client: TestClient, db: Database) -> None:
    upload(client)
    job = client.post("/jobs", json={"dataset": {"name": "shoes"}}).json()
    assert job["spec"]["dataset"] == {"name": "shoes", "version": 1}
    assert "not ready yet: uploaded" in job["queue"]["reason"]
    claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert claimed is not None
    datasets.record_progress(db, claimed.id, 1, "decoding", 5, 10)
    assert "preparing (decoding: 5 of 10)" in client.get(f"/jobs/{job['id']}").json()["queue"]["reason"]
    datasets.set_ready(db, claimed.id, 1, card(name="shoes"))
    assert "slots" in client.get(f"/jobs/{job['id']}").json()["queue"]["reason"]
    assert queue.claim(db, "worker-1", LEASE_SECONDS) is not None
    assert client.get(f"/jobs/{job['id']}").json()["queue"] is None


def test_deleting_removes_the_files_and_is_refused_while_a_job_needs_them(
    client: TestClient, db: Database, data_dir: Path, uploads: Path
) -> None:
    upload(client)
    prepared(db)
    found = versions.get(db, "shoes")
    assert found is not None
    folder = data_dir / versions.folder(found)
    folder.mkdir(parents=True)
    (folder / "train_images.npy").write_bytes(b"x")
    log = folder.with_name(f"{found.id}.attempt-1.log")
    log.write_text("{}")
    job_id = client.post("/jobs", json={"dataset": {"name": "shoes"}}).json()["id"]
    refused = client.delete("/datasets/shoes")
    assert_problem(refused, 409, "conflict")
    assert job_id in refused.json()["detail"]
    assert folder.exists()
    job = queue.claim(db, "worker-1", LEASE_SECONDS)
    assert job is not None
    finish(db, job, Outcome.SUCCEEDED)
    assert client.delete("/datasets/shoes").status_code == 204
    assert not folder.exists()
    assert not log.exists()
    assert list(uploads.iterdir()) == []
    assert_problem(client.get("/datasets/shoes"), 404, "not_found")
    assert_problem(client.delete("/datasets/shoes"), 404, "not_found")
    assert client.get(f"/jobs/{job_id}").json()["spec"]["dataset"] == {"name": "shoes", "version": 1}


def test_one_version_is_deleted_alone(client: TestClient) -> None:
    upload(client)
    upload(client)
    assert client.get("/datasets/shoes").json()["versions"] == [2, 1]
    assert client.delete("/datasets/shoes?version=2").status_code == 204
    assert client.get("/datasets/shoes").json()["versions"] == [1]
    assert_problem(client.get("/datasets/shoes?version=2"), 404, "not_found")


@pytest.mark.parametrize(
    ("form", "pointer"),
    [
        ({"name": "mnist"}, "#/name"),
        ({"name": "Shoes"}, "#/name"),
        ({"name": "../shoes"}, "#/name"),
        ({"name": "a" * 65}, "#/name"),
        ({"name": "sh\0es"}, "#/name"),
        ({"name": None}, "#/name"),
        ({"task": "segmentation"}, "#/task"),
        ({"image_size": 0}, "#/image_size"),
        ({"image_size": 1025}, "#/image_size"),
        ({"image_size": [28]}, "#/image_size"),
        ({"image_size": [28, 0]}, "#/image_size/1"),
        ({"image_size": "28"}, "#/image_size"),
        ({"channels": "red"}, "#/channels"),
        ({"channels": 3}, "#/channels"),
        ({"test_fraction": 0}, "#/test_fraction"),
        ({"test_fraction": 1.0}, "#/test_fraction"),
        ({"strict": "yes"}, "#/strict"),
        ({CANARY: 1}, f"#/{CANARY}"),
    ],
)
def test_a_form_that_is_not_right_is_refused_with_its_field(
    client: TestClient, uploads: Path, form: dict[str, Any], pointer: str
) -> None:
    answer = upload(client, **form)
    assert answer.status_code == 422, answer.text
    pointers = [each["pointer"] for each in answer.json()["errors"]]
    assert all(each.startswith(pointer) for each in pointers), pointers
    assert list(uploads.iterdir()) == []


def multipart(*parts: bytes) -> dict[str, Any]:
    body = b"".join(b"--frontier\r\n" + part + b"\r\n" for part in parts) + b"--frontier--\r\n"
    return {"content": body, "headers": {"Content-Type": "multipart/form-data; boundary=frontier"}}


def part(name: str, value: bytes) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value


GOOD = (part("dataset", b'{"name": "shoes"}'), part("archive", ARCHIVE))


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (multipart(GOOD[0]), 400, "invalid_request"),
        (multipart(GOOD[1]), 400, "invalid_request"),
        (multipart(*GOOD, GOOD[1]), 400, "invalid_request"),
        (multipart(GOOD[0], *GOOD), 400, "invalid_request"),
        (multipart(*GOOD, part(CANARY, b"x")), 400, "invalid_request"),
        (multipart(part("dataset", b"{" * 70_000), GOOD[1]), 400, "invalid_request"),
        (multipart(part("dataset", b"not json " + CANARY.encode()), GOOD[1]), 400, "invalid_json"),
        (multipart(part("dataset", b"\xff\xfe"), GOOD[1]), 400, "invalid_json"),
        (multipart(part("dataset", b"[]"), GOOD[1]), 422, "validation_error"),
        (multipart(part("dataset", b"{}"), GOOD[1]), 422, "validation_error"),
        (multipart(GOOD[0], part("archive", b"")), 422, "bad_archive"),
        (multipart(GOOD[0], part("archive", b"\x89PNG" + CANARY.encode())), 422, "bad_archive"),
        (multipart(GOOD[0], part("archive", b"Rar!\x1a\x07\x00")), 422, "bad_archive"),
        (multipart(b"\r\n\r\n"), 400, "invalid_request"),
        ({"content": multipart(*GOOD)["content"][:-60]} | {"headers": multipart()["headers"]}, 400, "invalid_request"),
        ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 400, "invalid_request"),
        ({"content": b"x" * 100, "headers": multipart()["headers"]}, 400, "invalid_request"),
        ({"content": ARCHIVE, "headers": {"Content-Type": "application/zip"}}, 415, "unsupported_media_type"),
        ({"content": ARCHIVE}, 415, "unsupported_media_type"),
        ({"json": {"name": "shoes"}}, 404, "not_found"),
        ({"json": {"name": CANARY}}, 404, "not_found"),
        ({"json": {"name": "../" + CANARY}}, 422, "validation_error"),
        ({"json": {"name": "mnist", "archive": CANARY}}, 422, "validation_error"),
        ({"json": {}}, 422, "validation_error"),
        ({"content": b"{" + b" " * 70_000, "headers": {"Content-Type": "application/json"}}, 400, "invalid_request"),
        ({"content": CANARY.encode(), "headers": {"Content-Type": "application/json"}}, 400, "invalid_json"),
    ],
)
def test_a_request_that_is_no_upload_is_a_problem_and_leaves_nothing(
    client: TestClient, uploads: Path, request_: dict[str, Any], status: int, code: str
) -> None:
    assert_problem(client.post("/datasets", **request_), status, code)
    assert not uploads.exists() or list(uploads.iterdir()) == []
    assert {each["name"] for each in client.get("/datasets").json()["data"]} == set(BUILT_IN)


@pytest.mark.parametrize("name", [CANARY, f"{CANARY}%00", f"..%2f{CANARY}", f"{CANARY}%ed%a0%80", "%2e%2e", "A" * 64])
def test_a_name_that_is_not_there_is_not_found(client: TestClient, name: str) -> None:
    for method in ("GET", "DELETE"):
        assert_problem(client.request(method, f"/datasets/{name}"), 404, "not_found")


@pytest.mark.parametrize("query", ["version=0", "version=x", f"version={2**31}", "unknown=1"])
def test_a_bad_version_is_refused(client: TestClient, query: str) -> None:
    for method in ("GET", "DELETE"):
        assert_problem(client.request(method, f"/datasets/shoes?{query}"), 422, "validation_error")


@pytest.mark.parametrize("chunked", [True, False])
def test_an_upload_over_the_limit_is_refused_and_leaves_nothing(serve: Serve, uploads: Path, chunked: bool) -> None:
    client = serve(max_dataset_bytes=100_000)
    request_ = multipart(GOOD[0], part("archive", ARCHIVE + bytes(3 * 2**20)))
    if chunked:
        body: bytes = request_["content"]
        request_["content"] = (body[at : at + 50_000] for at in range(0, len(body), 50_000))
    assert_problem(client.post("/datasets", **request_), 413, "too_large")
    assert not uploads.exists() or list(uploads.iterdir()) == []


def test_a_full_disk_is_said_so(client: TestClient, uploads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: IO[bytes], data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(service.uploads, "_write", full)
    assert_problem(upload(client), 507, "disk_full")
    assert list(uploads.iterdir()) == []


def test_a_database_that_refuses_leaves_no_archive(
    client: TestClient, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "add_upload", lambda *_: 1 / 0)
    assert_problem(upload(client), 500, "internal")
    assert list(uploads.iterdir()) == []


def test_the_form_is_described(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = document["paths"]["/datasets"]["post"]["requestBody"]["content"]
    assert described.keys() == {"multipart/form-data", "application/json"}
    assert described["multipart/form-data"]["schema"]["properties"]["dataset"] == {"$ref": "#/components/schemas/Form"}
    form = document["components"]["schemas"]["Form"]["properties"]
    assert form.keys() == {"name", "task", "image_size", "channels", "test_fraction", "strict"}
    assert all(field["description"] for field in form.values())


def test_deleting_an_old_version_of_a_built_in_dataset_leaves_the_new_ones_files(
    client: TestClient, db: Database, data_dir: Path
) -> None:
    client.delete("/datasets/fashion-mnist")
    folders = []
    for _ in range(2):
        client.post("/datasets", json={"name": "fashion-mnist"})
        claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
        assert claimed is not None
        folder = data_dir / versions.folder(claimed)
        folder.mkdir(parents=True)
        folders.append(folder)
        if len(folders) == 1:
            datasets.set_invalid(db, claimed.id, 1, Failure.of(DatasetInvalid()))
        else:
            datasets.set_ready(db, claimed.id, 1, card())
    old, new = client.get("/datasets/fashion-mnist").json()["versions"][::-1]
    assert client.delete(f"/datasets/fashion-mnist?version={old}").status_code == 204
    assert [folder.exists() for folder in folders] == [False, True]
    assert client.get("/datasets/fashion-mnist").json()["version"] == new
    folders[1].rmdir()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_cannot_send_a_form(client: TestClient, uploads: Path, site: str) -> None:
    request_ = multipart(*GOOD)
    request_["headers"] |= {"Sec-Fetch-Site": site}
    assert_problem(client.post("/datasets", **request_), 403, "cross_site")
    assert not uploads.exists() or list(uploads.iterdir()) == []
    request_["headers"] |= {"Sec-Fetch-Site": "same-origin"}
    assert client.post("/datasets", **request_).status_code == 202
    assert client.get("/datasets", headers={"Sec-Fetch-Site": site}).status_code == 200


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([part("dataset", b'{"name": "Shoes"}'), part("archive", b"")], RequestValidationError),
        ([part("archive", b"\x89PNG" + bytes(600))], BadArchive),
    ],
)
def test_what_is_wrong_is_said_before_the_rest_is_read(
    tmp_path: Path, parts: list[bytes], error: type[Exception]
) -> None:
    with (tmp_path / "archive").open("wb") as file:
        form = _Form(b"frontier", file, partial(_validated, Form), spare_bytes=0)
        with pytest.raises(error):
            form.feed(b"--frontier\r\n" + b"\r\n--frontier\r\n".join(parts))


def test_an_upload_that_finds_the_disk_nearly_full_is_refused(
    client: TestClient, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.uploads, "require_space", partial(require_space, needed=2**62))
    assert_problem(upload(client), 507, "disk_full")
    assert list(uploads.iterdir()) == []


def test_the_version_that_can_be_used_is_named_when_the_newest_cannot(client: TestClient, db: Database) -> None:
    upload(client)
    prepared(db)
    upload(client)
    claimed = datasets.claim(db, "worker-1", LEASE_SECONDS)
    assert claimed is not None
    datasets.set_invalid(db, claimed.id, 1, Failure.of(DatasetInvalid("There is one class only.")))
    assert "Version 1 is ready" in client.post("/jobs", json={"dataset": {"name": "shoes"}}).json()["detail"]
