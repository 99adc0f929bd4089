"""How a browser shows a key: by a cookie, which opens what the key opens and only for our own pages."""

from collections.abc import Iterator
from http.cookies import SimpleCookie

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from tests.service.conftest import Serve
from worker.jobs import keys
from worker.jobs.db import Database
from worker.jobs.states import Scope

KEY = "a-key-that-is-long-enough"
OURS = {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def closed(serve: Serve) -> TestClient:
    return serve(api_key=SecretStr(KEY))


@pytest.fixture
def signed_in(closed: TestClient) -> Iterator[TestClient]:
    assert closed.post("/ui/key", data={"key": KEY, "next": "/"}, follow_redirects=False).status_code == 303
    yield closed
    closed.cookies.clear()


def test_a_page_without_a_key_sends_to_where_one_is_entered(closed: TestClient) -> None:
    answer = closed.get("/?status=failed", follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/key?next=%2F%3Fstatus%3Dfailed")
    shown = closed.get("/?status=failed")
    assert 'value="/?status=failed"' in shown.text
    assert shown.headers["Cache-Control"] == "no-store"


def test_a_part_of_a_page_sends_the_whole_page_there(closed: TestClient) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://localhost/ui/jobs/abc?x=1"}
    answer = closed.get("/ui/jobs", headers=headers, follow_redirects=False)
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/ui/key?next=%2Fui%2Fjobs%2Fabc%3Fx%3D1")


def test_a_key_is_kept_where_no_script_and_no_other_site_reaches_it(closed: TestClient) -> None:
    answer = closed.post("/ui/key", data={"key": f" {KEY} ", "next": "/ui/datasets"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/ui/datasets")
    (cookie,) = SimpleCookie(answer.headers["Set-Cookie"]).values()
    assert (cookie.value, cookie["httponly"], cookie["samesite"], cookie["path"]) == (KEY, True, "lax", "/")
    assert not cookie["expires"]
    assert not cookie["max-age"]
    closed.cookies.clear()


@pytest.mark.parametrize("key", ["", "wrong", "schlüssel", "a" * 3000])
def test_another_key_is_refused(closed: TestClient, key: str) -> None:
    answer = closed.post("/ui/key", data={"key": key}, follow_redirects=False)
    assert answer.status_code == 401
    assert "does not open it" in answer.text
    assert "Set-Cookie" not in answer.headers


def test_a_form_that_is_none_is_refused(closed: TestClient) -> None:
    assert closed.post("/ui/key", content=b"key=" + b"a" * 5000).status_code == 400
    assert closed.post("/ui/key", content=b"&".join([b"key=a"] * 20)).status_code == 400
    assert closed.post("/ui/key", content=b"\xff\xfe").status_code == 400


@pytest.mark.parametrize(
    "address",
    ["https://evil.example", "//evil.example", "/\\evil.example", "\\\\evil.example", "/a\nb", "javascript:1"],
)
def test_nobody_is_sent_to_another_site(closed: TestClient, address: str) -> None:
    answer = closed.post("/ui/key", data={"key": KEY, "next": address}, follow_redirects=False)
    assert answer.headers["Location"] == "/"
    assert 'name="next" value="/"' in closed.get("/ui/key", params={"next": address}).text
    closed.cookies.clear()


def test_the_cookie_opens_pages_and_what_they_ask(signed_in: TestClient) -> None:
    assert "Sign out" in signed_in.get("/", follow_redirects=False).text
    assert signed_in.get("/jobs").status_code == 200
    assert signed_in.post("/jobs", json={}, headers=OURS).status_code == 201
    assert signed_in.post("/jobs", json={}, headers={"Origin": "http://localhost"}).status_code == 201


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:8888"},
        {"Origin": "http://localhost:8888"},
        {"Origin": "null"},
    ],
)
def test_the_cookie_does_nothing_for_other_pages(signed_in: TestClient, headers: dict[str, str]) -> None:
    answer = signed_in.post("/jobs", json={}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert signed_in.get("/jobs").json()["data"] == []


def test_an_origin_that_may_use_the_service_does_so_with_a_key_and_not_with_a_cookie(serve: Serve) -> None:
    client = serve(api_key=SecretStr(KEY), cors_origins=("https://lab.example",))
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://lab.example"}
    assert client.post("/jobs", json={}, headers=headers | {"Authorization": f"Bearer {KEY}"}).status_code == 201
    client.cookies.set("epochd_key", KEY)
    assert client.post("/jobs", json={}, headers=headers).status_code == 403


def test_a_header_counts_before_the_cookie(signed_in: TestClient) -> None:
    assert signed_in.get("/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 401


def test_the_cookie_may_do_what_its_key_may(closed: TestClient, db: Database) -> None:
    key, _ = keys.create(db, (Scope.READ,))
    closed.app.state.keys.look()  # type: ignore[attr-defined]
    closed.post("/ui/key", data={"key": key})
    assert closed.get("/").status_code == 200
    assert closed.post("/jobs", json={}, headers=OURS).status_code == 403
    keys.revoke(db, keys.every(db)[0].id)
    closed.app.state.keys.look()  # type: ignore[attr-defined]
    assert closed.get("/jobs").status_code == 401
    closed.cookies.clear()


@pytest.mark.parametrize("path", ["/ui/key", "/ui/key/forget"])
@pytest.mark.parametrize("more", [{"Sec-Fetch-Site": "cross-site"}, {}])  # which browsers leave out without https
def test_no_other_site_signs_anybody_in_or_out(closed: TestClient, path: str, more: dict[str, str]) -> None:
    headers = {"Origin": "https://evil.example"} | more
    answer = closed.post(path, data={"key": KEY}, headers=headers, follow_redirects=False)
    assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
    assert "Set-Cookie" not in answer.headers


def test_each_port_of_a_host_has_a_cookie_of_its_own(closed: TestClient) -> None:
    answer = closed.post("/ui/key", data={"key": KEY}, headers={"Host": "localhost:8000"}, follow_redirects=False)
    assert answer.headers["Set-Cookie"].startswith("epochd_key_8000=")
    cookie = {"Cookie": f"epochd_key_8000={KEY}"}
    closed.cookies.clear()
    assert closed.get("/jobs", headers=cookie | {"Host": "localhost:8000"}).status_code == 200
    assert closed.get("/jobs", headers=cookie | {"Host": "localhost:8001"}).status_code == 401


def test_an_address_that_is_none_is_no_error(closed: TestClient) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://[bad/"}
    answer = closed.get("/ui/jobs", headers=headers, follow_redirects=False)
    assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/ui/key?next=%2F")


def test_who_signs_out_is_out(signed_in: TestClient) -> None:
    assert signed_in.post("/ui/key/forget").url.path == "/ui/key"
    assert signed_in.get("/jobs").status_code == 401
