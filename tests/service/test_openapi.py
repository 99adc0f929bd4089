"""The description: every status that an address can answer with is in it, with an example, and clients can be made."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

from service.auth import PUBLIC
from service.errors import STATUS

WRITES_NOTHING = {
    ("POST", "/v2/models/{name}/infer"),
    ("POST", "/v2/models/{name}/versions/{version}/infer"),
    ("POST", "/predict"),
}
# Clients have methods of these names: they stay.
OPERATION_IDS = {
    *("submit_job", "list_jobs", "show_job", "delete_job", "cancel_job", "pause_job", "resume_job", "retry_job"),
    *("extend_job", "read_metrics", "read_report", "read_logs", "read_parity", "list_deliveries"),
    *("list_checkpoints", "download_checkpoint", "export_checkpoint", "import_bundle"),
    *("list_aliases", "show_alias", "put_alias", "rollback_alias", "delete_alias"),
    *("list_datasets", "add_dataset", "show_dataset", "delete_dataset"),
    *("predict", "predict_batch", "healthz", "readyz", "read_prometheus"),
    *("v2_server", "v2_live", "v2_ready", "v2_model", "v2_model_version", "v2_model_ready", "v2_version_ready"),
    *("v2_infer", "v2_infer_version"),
    *("compare_jobs", "list_report_pictures", "show_report_picture", "list_pictures", "show_picture"),
    *("submit_sweep", "list_sweeps", "show_sweep", "cancel_sweep", "delete_sweep", "read_metrics_csv"),
}
PROBLEM = "application/problem+json"
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


@pytest.fixture
def operations(document: dict[str, Any]) -> list[Operation]:
    paths: dict[str, dict[str, Any]] = document["paths"]
    return [(method.upper(), path, each) for path, methods in paths.items() for method, each in methods.items()]


def problems(operation: dict[str, Any]) -> Iterator[int]:
    for status, response in operation["responses"].items():
        assert response["description"], status
        if "application/problem+json" in response.get("content", {}):
            yield int(status)


def test_every_address_says_what_any_of_them_may_answer(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        everywhere = {400, 408, 413, 422, 503} | (set() if path in PUBLIC else {401, 403})
        missing = everywhere - {int(status) for status in operation["responses"]}
        assert not missing, (method, path)
        assert operation["summary"], (method, path)


def test_every_address_that_changes_something_says_what_forbids_it(operations: list[Operation]) -> None:
    changing = [each for each in operations if each[0] != "GET"]
    assert len(changing) > 8
    for method, path, operation in changing:
        wanted = {403} if (method, path) in WRITES_NOTHING else {403, 507}
        assert wanted <= set(problems(operation)), (method, path)


def test_every_address_of_something_says_that_it_may_not_be_there(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        assert ("{" not in path) or 404 in problems(operation), (method, path)


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("POST", "/jobs", {200, 201, 400, 403, 409, 415, 422, 503, 507}),
        ("POST", "/jobs/{job_id}/cancel", {200, 202, 400, 404, 409, 415, 422}),
        ("POST", "/jobs/{job_id}/pause", {200, 202, 400, 404, 409, 415, 422}),
        ("POST", "/jobs/{job_id}/resume", {200, 400, 404, 409, 415, 422}),
        ("POST", "/jobs/{job_id}/retry", {200, 400, 404, 409, 415, 422, 507}),
        ("POST", "/jobs/{job_id}/extend", {200, 400, 404, 409, 415, 422, 507}),
        ("DELETE", "/jobs/{job_id}", {204, 404, 409}),
        ("GET", "/jobs/{job_id}/logs", {200, 404}),
        ("GET", "/jobs/{job_id}/checkpoints/{which}", {200, 404, 409}),
        ("POST", "/predict", {200, 400, 404, 409, 413, 415, 422, 503}),
    ],
)
def test_an_address_says_what_else_it_may_answer(
    operations: list[Operation], method: str, path: str, statuses: set[int]
) -> None:
    (operation,) = [each for *address, each in operations if address == [method, path]]
    assert statuses <= {int(status) for status in operation["responses"]}


@pytest.mark.parametrize(("path", "needed"), [("cancel", False), ("pause", False), ("retry", False), ("extend", True)])
def test_the_description_says_whether_a_body_may_be_left_out(
    operations: list[Operation], path: str, needed: bool
) -> None:
    (operation,) = [each for _, address, each in operations if address == f"/jobs/{{job_id}}/{path}"]
    assert operation["requestBody"].get("required", False) is needed
    assert set(operation["requestBody"]["content"]) == {"application/json"}


def test_both_that_may_be_away_are_named_where_both_are_needed(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        if (method, path) in (("POST", "/jobs"), ("POST", "/predict")):
            described = operation["responses"]["503"]["description"]
            assert "predictor" in described
            assert "database" in described


def test_every_operation_has_a_short_name_that_stays(operations: list[Operation]) -> None:
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(names) == len(set(names))
    assert {*OPERATION_IDS} <= {*names}
    for name in names:
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+){0,2}", name), name


def test_every_operation_says_whether_it_needs_a_key(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        assert operation["security"] == ([] if path in PUBLIC else [{"HTTPBearer": []}]), (method, path)
        assert operation["tags"], (method, path)


def test_every_json_that_is_sent_or_answered_has_an_example_that_fits(
    document: dict[str, Any], operations: list[Operation]
) -> None:
    for method, path, operation in operations:
        bodies = {"request": operation.get("requestBody", {}), **operation["responses"]}
        for of, body in bodies.items():
            for kind, media in body.get("content", {}).items():
                if kind in ("application/json", PROBLEM):
                    found = list(examples(media, document))
                    assert found, (method, path, of)
                    for example in found:
                        validate(example, media["schema"], document)


def test_every_problem_s_example_is_one_of_its_status(document: dict[str, Any], operations: list[Operation]) -> None:
    statuses = {kind.code: set[int]() for kind in STATUS}
    for kind, its in STATUS.items():
        statuses[kind.code].add(int(its))
    for method, path, operation in operations:
        for status in problems(operation):
            media = operation["responses"][str(status)]["content"][PROBLEM]
            assert media["schema"] == {"$ref": "#/components/schemas/Problem"}, (method, path)
            for example in examples(media, document):
                assert example["status"] == status, (method, path, example)
                assert status in statuses[example["code"]], (method, path, example)


def test_headers_are_described_where_they_come(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        for status, response in operation["responses"].items():
            wanted = {"X-Request-Id"}
            wanted |= {"401": {"WWW-Authenticate"}, "429": {"Retry-After"}, "503": {"Retry-After"}}.get(status, set())
            if method in ("POST", "PUT") and status == "201":
                wanted |= {"Location"}
            assert wanted <= response["headers"].keys(), (method, path, status)


@pytest.mark.parametrize(
    ("name", "header"),
    [("submit_job", "Idempotency-Key"), ("stream_job", "Last-Event-ID"), ("read_metrics", "If-None-Match")],
)
def test_headers_that_may_be_sent_are_described(operations: list[Operation], name: str, header: str) -> None:
    (operation,) = [each for _, _, each in operations if each["operationId"] == name]
    sent = [each["name"].lower() for each in operation["parameters"] if each["in"] == "header"]
    assert header.lower() in sent


def test_a_location_leads_to_an_operation_that_is_there(operations: list[Operation]) -> None:
    parameters = {
        each["operationId"]: {parameter["name"] for parameter in each.get("parameters", [])}
        for _, _, each in operations
    }
    links = [
        link
        for _, _, operation in operations
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert len(links) >= 4
    for link in links:
        assert link["parameters"].keys() <= parameters[link["operationId"]]


def test_a_method_that_an_address_does_not_take_is_answered_with_those_that_it_takes(
    client: TestClient, document: dict[str, Any]
) -> None:
    for path, methods in document["paths"].items():
        if path != "/models/import":  # also an alias of that name
            answer = client.request("TRACE", re.sub(r"{\w+}", "1", path))
            assert answer.status_code == 405, path
            assert {*answer.headers["Allow"].split(", ")} == {method.upper() for method in methods}, path


def test_numbers_are_written_as_they_are(document: dict[str, Any]) -> None:
    """2^63 as 9.223372036854776e+18 is read as something else by half of the world."""
    seed = document["components"]["schemas"]["Spec"]["properties"]["seed"]
    assert (type(seed["exclusiveMaximum"]), seed["exclusiveMaximum"]) == (int, 2**63)


def test_no_default_is_an_object_since_generators_of_clients_refuse_it(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        for field, each in schema.get("properties", {}).items():
            assert not isinstance(each.get("default"), dict), (name, field)


def examples(media: dict[str, Any], document: dict[str, Any]) -> Iterator[Any]:
    """Of a body: its own, or those of the schema that it refers to."""
    if "example" in media:
        yield media["example"]
    for each in media.get("examples", {}).values():
        yield resolved(each, document)["value"]
    schema = media["schema"]
    for choice in schema.get("anyOf", [schema]):
        yield from resolved(choice, document).get("examples", [])


def resolved(part: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in part:
        _, kind, name = part["$ref"].removeprefix("#/").split("/")
        part = document["components"][kind][name]
    return part


def validate(example: Any, schema: dict[str, Any], document: dict[str, Any]) -> None:
    jsonschema_rs.validate({**schema, "components": document["components"]}, example)
