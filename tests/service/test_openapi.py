"""The description: every status that an address can answer with is in it."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

WRITES_NOTHING = {
    ("POST", "/v2/models/{name}/infer"),
    ("POST", "/v2/models/{name}/versions/{version}/infer"),
    ("POST", "/predict"),
}
Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
def operations(client: TestClient) -> list[Operation]:
    paths: dict[str, dict[str, Any]] = client.get("/openapi.json").json()["paths"]
    return [(method.upper(), path, each) for path, methods in paths.items() for method, each in methods.items()]


def problems(operation: dict[str, Any]) -> Iterator[int]:
    for status, response in operation["responses"].items():
        assert response["description"], status
        if "application/problem+json" in response.get("content", {}):
            yield int(status)


def test_every_address_says_what_any_of_them_may_answer(operations: list[Operation]) -> None:
    for method, path, operation in operations:
        missing = {401, 413, 422, 503} - {int(status) for status in operation["responses"]}
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
