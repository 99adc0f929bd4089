"""An API key that somebody puts into the wrong field ends there: it is in no log, no table, no answer, no file.

Every operation of the description is asked with the key in each of its places, one at a time and all at once.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.end_to_end.pictures import png, zip_files
from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import prepare_tiny
from worker.jobs import keys
from worker.jobs.db import Database
from worker.jobs.states import Scope

HEADERS = (
    "Idempotency-Key",
    "Last-Event-ID",
    "X-Request-Id",
    "User-Agent",
    "If-None-Match",
    "Accept",
    "Cookie",
    "Origin",
)
NOWHERE = "0" * 24  # the id of no job: what changes something must not change the one that others look at
QUICK = {"epochs": 1, "threads": 1, "device": "cpu", "model": {"name": "mlp", "hidden": [8]}}
OWN_SECRETS = {"EPOCHD_API_KEY": "a-key-of-the-house-itself", "EPOCHD_WEBHOOK_SECRET": "what-webhooks-are-signed-with"}
_UNBOUND = 60.0  # seconds


@dataclass(frozen=True)
class Asked:
    """One request, to be made with the key in some of its places."""

    method: str
    path: str  # with `{name}`s
    at: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    files: dict[str, Any] | None = None

    def send(self, http: httpx2.Client) -> httpx2.Response:
        path = self.path.format_map(self.at)
        sent = {"json": self.body} if self.files is None and self.body is not None else {}
        form = {"data": self.body, "files": self.files} if self.files is not None else {}
        return http.request(self.method, path, params=self.query, headers=self.headers, **sent, **form)


@dataclass(frozen=True)
class Place:
    server: Epochd
    key: str
    job: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A service whose only key is the canary, with a job that has succeeded."""
    data_dir = tmp_path_factory.mktemp("canary")
    prepare_tiny(data_dir)
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    db.migrate()
    key, _ = keys.create(db, [Scope.ADMIN])
    db.close()
    with epochd(data_dir) as server:
        server.http.headers["Authorization"] = f"Bearer {key}"
        job = server.submit(name="sample", **QUICK)
        assert server.wait_terminal(job)["status"] == "succeeded"
        server.http.put("/models/default", json={"job": job}).raise_for_status()
        yield Place(server, key, job)


def test_a_key_in_the_wrong_place_is_found_nowhere(place: Place, tmp_path: Path) -> None:
    begun = time.monotonic()
    server, key, http = place.server, place.key, place.server.http
    document = http.get("/openapi.json").json()
    asked = [*walk(document, place), *uploads(key, tmp_path), *tensors(key)]
    assert len(asked) > 500
    told, statuses = [], set()
    for each in asked:
        answer = each.send(http)
        statuses.add(answer.status_code)
        if key.encode() in answer.content + repr(answer.headers).encode():
            told.append((each.method, each.path, each, answer.status_code, answer.text[:300]))
    assert not told
    assert {200, 201, 404, 422} <= statuses <= set(range(200, 500)) | {503, 507}
    settle(server)
    assert key not in http.get("/metrics").text
    assert holders(server.data_dir, key) == []
    for line in server.log.read_text().splitlines():
        assert "event" in json.loads(line), line
    assert time.monotonic() - begun < _UNBOUND


def test_a_request_can_be_followed_from_its_answer_to_the_training(place: Place) -> None:
    server = place.server
    answer = server.http.post("/jobs", json=QUICK)
    job, request = answer.json()["id"], answer.headers["X-Request-Id"]
    server.wait_terminal(job)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    of_request = [line for line in lines if line.get("request_id") == request]
    assert {(line["process"], line["event"]) for line in of_request} >= {
        ("service", "request"),
        ("worker", "attempt_started"),
    }
    started = next(line for line in of_request if line["event"] == "attempt_started")
    assert (started["job"], started["attempt"]) == (job, 1)
    training = server.http.get(f"/jobs/{job}/logs").json()["data"]
    for line in map(json.loads, training):
        assert (line["job"], line["attempt"], line["request_id"], line["process"]) == (job, 1, request, "attempt")
    assert training


def test_no_process_that_works_for_the_service_has_its_secrets(tmp_path: Path) -> None:
    prepare_tiny(tmp_path)
    with epochd(tmp_path, OWN_SECRETS | {"EPOCHD_WEBHOOKS": "true"}) as server:
        server.http.headers["Authorization"] = f"Bearer {OWN_SECRETS['EPOCHD_API_KEY']}"
        job = server.submit(**QUICK | {"epochs": 1000})
        server.wait(job, lambda body: body["status"] == "running" and bool(server.attempt_pids()))
        service = server.pid_of("service")
        children = [pid for pid in server.processes() if pid != service]
        commands = " ".join(server.processes().values())
        assert "-m worker.inference" in commands
        assert "forkserver" in commands
        told = [(pid, name) for pid in children for name, value in OWN_SECRETS.items() if value in environment_of(pid)]
        server.http.post(f"/jobs/{job}/cancel")
        assert not told
        assert OWN_SECRETS["EPOCHD_API_KEY"] in environment_of(service)
        assert not any(value in server.log.read_text() for value in OWN_SECRETS.values())


def environment_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except ProcessLookupError:
        return ""


def walk(document: dict[str, Any], place: Place) -> Iterator[Asked]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from ways(document, method.upper(), path, operation, place)
    for path in (f"/{place.key}", f"/docs/{place.key}", f"/jobs/{place.job}/{place.key}"):
        yield Asked("GET", path)


def ways(document: dict[str, Any], method: str, path: str, operation: dict[str, Any], place: Place) -> Iterator[Asked]:
    """The operation, with the key in each place that it has."""
    key = place.key
    parameters = [resolved(document, each) for each in operation.get("parameters", [])]
    named = {
        where: [each["name"] for each in parameters if each["in"] == where] for where in ("path", "query", "header")
    }
    usual = {"job_id": place.job if method == "GET" else NOWHERE, "name": "default", "epoch": "1", "version": "1"}
    at = {name: usual.get(name, "best") for name in named["path"]}
    plain = Asked(method, path, at)
    content = resolved(document, operation.get("requestBody", {})).get("content", {})
    if "application/json" in content:
        schema = content["application/json"].get("schema", {})
        fine = QUICK if (method, path) == ("POST", "/jobs") else {}
        bodies = [*bodies_of(document, schema, key), key, [key], {key: key}]
        yield from (replace(plain, body=body) for body in bodies)
        plain = replace(plain, body=fine)
    yield from (replace(plain, at=at | {name: key}) for name in at)
    yield from (replace(plain, query={name: key}) for name in {*named["query"], key})
    headers = {*named["header"], *HEADERS}
    yield from (replace(plain, headers={name: key}) for name in sorted(headers))
    yield replace(plain, headers={key.replace("_", "-"): key, "Content-Type": key})
    everything = replace(
        plain, query=dict.fromkeys([*named["query"], key], key), headers=dict.fromkeys(sorted(headers), key)
    )
    yield everything if plain.body is None else replace(everything, body={key: key})
    yield replace(everything, at=dict.fromkeys(at, key))


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")]
        schema = found
    return schema


def bodies_of(document: dict[str, Any], schema: dict[str, Any], key: str, depth: int = 0) -> Iterator[Any]:
    """Values of this schema with the key in one place: a field, or a field's name."""
    schema = resolved(document, schema)
    yield key
    if depth > 5:
        return
    for choice in [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])]:
        yield from bodies_of(document, choice, key, depth + 1)
    if "items" in schema:
        yield from ([each] for each in bodies_of(document, schema["items"], key, depth + 1))
    if isinstance(schema.get("additionalProperties"), dict):
        yield from ({"a": each} for each in bodies_of(document, schema["additionalProperties"], key, depth + 1))
    properties = schema.get("properties", {})
    told = {name: each.get("const", each.get("default")) for name, each in properties.items() if name == "name"}
    told = {name: value for name, value in told.items() if isinstance(value, str)}
    if properties:
        yield told | {key: key}
    for name, each in properties.items():
        yield from (told | {name: value} for value in bodies_of(document, each, key, depth + 1))


def uploads(key: str, folder: Path) -> Iterator[Asked]:
    """Forms, files, names of files, and what archives hold."""
    picture = png(np.zeros((8, 8), dtype=np.uint8))
    usual = [(f"{name}/{number}.png", picture) for name in ("a", "b") for number in range(4)]
    table = "file,label\n" + "".join(f"images/{number}.png,{'a' if number else key}\n" for number in range(4))
    archives = {
        "class": [*usual, (f"{key}/1.png", picture)],
        "picture": [*usual, (f"a/{key}.png", picture)],
        "broken": [*usual, (f"a/x{key}.png", b"no picture")],
        "other": [*usual, (f"{key}.txt", key.encode())],
        "table": [("labels.csv", table.encode()), *((f"images/{number}.png", picture) for number in range(4))],
        "column": [("labels.csv", f"file,label,{key}\n1.png,a,b\n".encode()), ("1.png", picture)],
        "fine": usual,
    }
    for name, entries in archives.items():
        archive = zip_files(folder / f"{name}.zip", iter(entries)).read_bytes()
        yield upload("/datasets", {"dataset": json.dumps({"name": name})}, {"archive": (f"{key}.zip", archive)})
        yield upload("/predict/batch", {}, {"archive": (f"{key}.zip", archive)})
        yield upload("/models/import", {}, {"bundle": (f"{key}.zip", archive)})
    fine = {"archive": (f"{key}.zip", archive)}
    for form in (
        {"name": key},
        {"name": "x", key: key},
        {"name": "x", "task": key},
        {"name": "x", "image_size": key},
        key,
    ):
        yield upload("/datasets", {"dataset": json.dumps(form)}, fine)
    yield upload("/datasets", {"dataset": '{"name": "x"}', key: key}, fine)
    yield upload("/datasets", {"dataset": '{"name": "x"}'}, {key: (key, archive)})
    yield upload("/datasets", {"dataset": key}, {"archive": (key, key.encode())})
    yield upload("/predict", {key: key}, {"image": (f"{key}.png", picture)})
    yield upload("/predict", {}, {"image": (f"{key}.png", picture, key)})
    yield upload("/predict", {}, {"image": (f"{key}.png", key.encode())})
    yield upload("/predict", {}, {key: (key, picture)})


def upload(path: str, form: dict[str, str], files: dict[str, Any]) -> Asked:
    return Asked("POST", path, body=form, files=files)


def tensors(key: str) -> Iterator[Asked]:
    pixels = {"name": "pixels", "shape": [1, 1, 28, 28], "datatype": "UINT8", "data": [0] * 784}
    bodies: list[dict[str, Any]] = [
        {"id": key, "inputs": [pixels]},
        {"inputs": [pixels | {"name": key}]},
        {"inputs": [pixels | {"datatype": key}]},
        {"inputs": [pixels | {"data": [key]}]},
        {"inputs": [pixels | {"parameters": {key: key}}]},
        {"inputs": [pixels], "outputs": [{"name": key}]},
        {"inputs": [pixels], "outputs": [{"name": "logits", "parameters": {"classification": key, key: key}}]},
        {"inputs": [pixels], "parameters": {key: key}},
        {"inputs": [pixels], key: key},
    ]
    yield from (Asked("POST", "/v2/models/default/infer", body=body) for body in bodies)


def settle(server: Epochd) -> None:
    """Until nothing is under way: each of these ends may still write something."""
    deadline = time.monotonic() + _UNBOUND
    while time.monotonic() < deadline:
        jobs, datasets = (server.http.get(path).json()["data"] for path in ("/jobs?limit=100", "/datasets"))
        if all(job["finished_at"] for job in jobs) and not any(
            each["status"] in ("uploaded", "preparing") for each in datasets
        ):
            return
        time.sleep(0.1)
    raise AssertionError("something never ended")


def holders(data_dir: Path, key: str) -> list[str]:
    """The files of the data folder that hold the key, or have it in their name: log, database and WAL among them."""
    files = [Path(folder, name) for folder, _, names in os.walk(data_dir) for name in names]
    assert {"epochd.db", "epochd.db-wal", "serve.log"} <= {path.name for path in files}
    return [str(path) for path in files if key in str(path) or key.encode() in path.read_bytes()]
