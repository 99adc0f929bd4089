"""What a request may be, and what every answer says to browsers."""

import re
from collections.abc import Iterable, Iterator

import pytest
from fastapi.testclient import TestClient
from httpx2 import Headers
from pydantic import SecretStr

from tests.service.conftest import Serve
from tests.service.test_errors import assert_problem

KEY = "a-key-that-is-long-enough"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
JSON = {"Content-Type": "application/json"}
ORIGIN = "https://lab.example.org"
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, idempotency-key",
}


def hosts(client: TestClient, names: Iterable[str]) -> set[str]:
    """Those by which the service may be called."""
    answers = {name: client.get("/jobs", headers={"Host": name}) for name in names}
    for answer in answers.values():
        if answer.status_code != 200:
            assert_problem(answer, 400, "bad_host")
    return {name for name, answer in answers.items() if answer.status_code == 200}


NAMES = {"localhost", "127.0.0.1", "[::1]:8000", "LocalHost:80", "evil.example", "epochd.example.org"}
NO_NAMES = {
    "",
    "a/b?c",
    "a b",
    "localhost:x",
    "localhost@evil.example",
    "localhost#",
    "evil.example,localhost",
    "h" * 300,
}


def test_on_loopback_only_its_own_names_are_taken(client: TestClient) -> None:
    assert hosts(client, NAMES | NO_NAMES) == {"localhost", "127.0.0.1", "[::1]:8000", "LocalHost:80"}


def test_the_names_that_are_set_are_taken_and_no_others(serve: Serve) -> None:
    client = serve(allowed_hosts="epochd.example.org, Other.example.org")
    assert hosts(client, NAMES | NO_NAMES) == {"epochd.example.org"}
    assert hosts(client, ["other.example.ORG:8000"]) == {"other.example.ORG:8000"}


def test_an_exposed_service_is_called_by_any_name_but_not_by_what_is_none(serve: Serve) -> None:
    client = serve(host="0.0.0.0", api_key=SecretStr(KEY))
    client.headers.update(AUTHORIZED)
    assert hosts(client, NAMES | NO_NAMES) == NAMES


def test_a_wrong_name_is_refused_even_by_health_and_before_the_key(serve: Serve) -> None:
    client = serve(api_key=SecretStr(KEY))
    for path in ("/healthz", "/docs", "/jobs", "/nowhere"):
        assert_problem(client.get(path, headers={"Host": "evil.example"}), 400, "bad_host")


def test_two_names_at_once_are_refused(client: TestClient) -> None:
    answer = client.get("/healthz", headers=[("Host", "localhost"), ("Host", "localhost")])
    assert_problem(answer, 400, "bad_host")


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(size // 100):
        yield b" " * 100


@pytest.mark.parametrize(
    ("setting", "method", "path", "kind"),
    [
        ("max_json_bytes", "POST", "/jobs", "application/json"),
        ("max_json_bytes", "PUT", "/models/default", "application/json"),
        ("max_json_bytes", "POST", "/jobs/x/cancel", "application/json"),
        ("max_image_bytes", "POST", "/predict", "image/png"),
        ("max_image_bytes", "POST", "/v2/models/default/infer", "application/json"),
        ("max_dataset_bytes", "POST", "/datasets", "application/zip"),
        ("max_dataset_bytes", "POST", "/models/import", "application/zip"),
        ("max_dataset_bytes", "POST", "/predict/batch", "application/zip"),
    ],
)
def test_a_body_above_its_limit_is_refused_and_one_at_the_limit_is_not(
    serve: Serve, setting: str, method: str, path: str, kind: str
) -> None:
    client = serve(**{setting: 1000})
    headers = {"Content-Type": kind}
    too_large = client.request(method, path, content=b" " * 1001, headers=headers)
    assert (too_large.status_code, too_large.json()["code"]) == (413, "too_large")
    assert client.request(method, path, content=b" " * 1000, headers=headers).status_code != 413
    if path not in (
        "/datasets",
        "/models/import",
        "/predict/batch",
    ):  # they refuse what is no archive at its first byte
        too_large = client.request(method, path, content=chunked(1100), headers=headers)
        assert (too_large.status_code, too_large.json()["code"]) == (413, "too_large")


def test_a_length_that_is_a_lie_does_not_get_around_the_limit(serve: Serve) -> None:
    client = serve(max_json_bytes=1000)
    headers = JSON | {"Content-Length": "10"}
    assert_problem(client.post("/jobs", content=chunked(1100), headers=headers), 413, "too_large")


def test_as_many_jobs_may_wait_as_is_set(serve: Serve) -> None:
    client = serve(max_queued_jobs=2)
    assert [client.post("/jobs", json={}).status_code for _ in range(2)] == [201, 201]
    refused = client.post("/jobs", json={})
    assert_problem(refused, 429, "too_many_jobs")
    assert int(refused.headers["Retry-After"]) > 0
    assert client.post("/jobs?dry_run=true", json={}).status_code != 429
    (job, _) = client.get("/jobs").json()["data"]
    client.post(f"/jobs/{job['id']}/cancel")
    assert client.post("/jobs", json={}).status_code == 201


def test_as_many_jobs_of_one_key_may_wait_as_is_set(serve: Serve) -> None:
    client = serve(max_queued_jobs_per_key=1, max_queued_jobs=5)
    assert client.post("/jobs", json={}, headers={"Idempotency-Key": "one"}).status_code == 201
    assert_problem(client.post("/jobs", json={}), 429, "too_many_jobs")
    again = client.post("/jobs", json={}, headers={"Idempotency-Key": "one"})
    assert again.status_code == 201  # it is there already


KINDS = {
    "found": ("GET", "/jobs", AUTHORIZED, 200),
    "not found": ("GET", "/nowhere", AUTHORIZED, 404),
    "no key": ("GET", "/jobs", {}, 401),
    "wrong name": ("GET", "/jobs", {"Host": "evil.example"}, 400),
    "wrong method": ("PUT", "/jobs", AUTHORIZED, 405),
    "health": ("GET", "/healthz", {}, 200),
    "description": ("GET", "/openapi.json", {}, 200),
    "metrics": ("GET", "/metrics", AUTHORIZED, 200),
    "no body": ("POST", "/predict", AUTHORIZED, 400),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_says_to_browsers_what_it_is(serve: Serve, kind: str) -> None:
    method, path, headers, status = KINDS[kind]
    answer = serve(api_key=SecretStr(KEY)).request(method, path, headers=headers)
    assert answer.status_code == status
    assert_secure(answer.headers)
    assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["Cache-Control"] == "no-store"


def assert_secure(headers: Headers) -> None:
    found = dict(headers.multi_items())
    for name, value in SECURITY.items():
        assert found[name.lower()] == value
    names = [name for name, _ in headers.multi_items()]
    assert len(names) == len(set(names))
    assert found["x-request-id"]


def test_the_answer_to_a_body_that_is_too_large_says_so_too(serve: Serve) -> None:
    client = serve(max_json_bytes=10)
    too_large = client.post("/jobs", content=b" " * 11, headers=JSON)
    assert too_large.status_code == 413
    assert_secure(too_large.headers)


def test_the_page_of_the_docs_may_load_what_it_needs_and_is_framed_by_nobody(client: TestClient) -> None:
    answer = client.get("/docs")
    assert_secure(answer.headers)
    policy = answer.headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'self';" in policy
    assert "https:" not in policy
    assert not re.search(r'(?:src|href)="(?![/#])', answer.text)


def test_pages_of_other_origins_may_nothing_unless_it_is_set(serve: Serve) -> None:
    client = serve(api_key=SecretStr(KEY))
    for answer in (
        client.options("/jobs", headers=PREFLIGHT),
        client.get("/jobs", headers=AUTHORIZED | {"Origin": ORIGIN}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert client.options("/jobs", headers=PREFLIGHT).status_code == 401


def test_pages_of_the_origins_that_are_set_may_use_the_service(serve: Serve) -> None:
    client = serve(api_key=SecretStr(KEY), cors_origins=f"{ORIGIN}, http://localhost:5173")
    asked = client.options("/jobs", headers=PREFLIGHT)  # a browser sends no key with it
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    assert {"authorization", "content-type", "idempotency-key"} <= {
        each.strip().lower() for each in asked.headers["Access-Control-Allow-Headers"].split(",")
    }
    assert_secure(asked.headers)
    from_page = AUTHORIZED | {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}
    made = client.post("/jobs", json={}, headers=from_page)
    assert made.status_code == 201
    assert made.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Location" in made.headers["Access-Control-Expose-Headers"]
    assert "access-control-allow-credentials" not in made.headers
    refused = client.post("/jobs", json={}, headers={"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"})
    assert_problem(refused, 401, "unauthenticated")
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN  # so that the page can read why


def test_pages_of_other_origins_than_those_that_are_set_may_nothing(serve: Serve) -> None:
    client = serve(api_key=SecretStr(KEY), cors_origins=ORIGIN)
    for origin in ("https://evil.example", "null", f"{ORIGIN}.evil.example", "https://LAB.example.org.evil"):
        asked = client.options("/jobs", headers=PREFLIGHT | {"Origin": origin})
        assert "access-control-allow-origin" not in asked.headers
        from_page = AUTHORIZED | {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        assert_problem(client.post("/jobs", json={}, headers=from_page), 403, "cross_site")
