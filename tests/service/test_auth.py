"""API keys: everything is closed unless it is public, and a walk over all routes proves it."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import select
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

import service.auth
from service.auth import Keys, first_key
from tests.service.conftest import Serve
from worker.jobs.db import Database
from worker.jobs.errors import Unauthenticated
from worker.jobs.settings import Settings
from worker.jobs.tables import ApiKey

KEY = "a-key-that-is-long-enough"
PUBLIC = {
    *("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/docs", "/openapi.json"),
    *("/ui/key", "/ui/key/forget"),
}
Headers = dict[bytes, bytes]


def authorization(value: str | bytes) -> Headers:
    return {b"Authorization": value.encode() if isinstance(value, str) else value}


def bearer(key: str) -> Headers:
    return authorization(f"Bearer {key}")


WRONG: list[Headers] = [
    {},
    bearer(f"{KEY}x"),
    bearer(KEY[:-1]),
    bearer(KEY.upper()),
    bearer(""),
    authorization("Bearer"),
    authorization(KEY),
    authorization(f"Basic {KEY}"),
    authorization(b"Bearer \xff\xfe\x80"),
    authorization(b"\xff\xfe\x80"),
    {b"X-API-Key": KEY.encode()},
    {b"Cookie": f"Authorization=Bearer {KEY}".encode()},
]


def addresses(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the app serves, with something in place of each parameter."""
    for route in iter_route_contexts(app.routes):
        assert route.path is not None
        path = re.sub(r"{[^}]*}", "x", route.path) or "/"
        for method in sorted(route.methods or {"GET"}):
            yield method, path


def open_addresses(client: TestClient, headers: Headers) -> set[str]:
    """Where these headers get anything but a proper 401, or of a page to where a key is entered."""
    assert isinstance(client.app, FastAPI)
    found = set()
    for method, path in addresses(client.app):
        answer = client.request(method, path, headers=headers, follow_redirects=False)
        is_page = method in ("GET", "HEAD") and (path == "/" or path.startswith("/ui/")) and path not in PUBLIC
        if is_page and answer.status_code == 303 and answer.headers["Location"].startswith("/ui/key?next="):
            continue
        refused = answer.headers.get("WWW-Authenticate") == "Bearer" and answer.status_code == 401
        if not refused or (method != "HEAD" and answer.json()["code"] != "unauthenticated"):
            found.add(path)
    return found


@pytest.fixture
def closed(serve: Serve) -> TestClient:
    return serve(api_key=SecretStr(KEY))


def test_the_walk_meets_every_kind_of_route(closed: TestClient) -> None:
    assert isinstance(closed.app, FastAPI)
    assert {
        ("GET", "/jobs"),
        ("POST", "/jobs"),
        ("GET", "/jobs/x"),
        ("POST", "/jobs/x/cancel"),
        ("GET", "/jobs/x/metrics"),
        ("GET", "/jobs/x/checkpoints/x"),
        ("POST", "/predict"),
        ("GET", "/healthz"),
    } <= set(addresses(closed.app))


@pytest.mark.parametrize("headers", [{}, bearer("wrong")], ids=["without", "wrong"])
def test_without_the_key_only_health_and_the_description_are_open(closed: TestClient, headers: Headers) -> None:
    assert open_addresses(closed, headers) == PUBLIC


def test_a_wrong_key_opens_nothing(closed: TestClient) -> None:
    for headers in WRONG:
        answer = closed.get("/jobs", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), headers
        assert answer.headers["WWW-Authenticate"] == "Bearer", headers


def test_the_key_opens_everything(closed: TestClient) -> None:
    assert closed.get("/jobs", headers=bearer(KEY)).status_code == 200
    assert closed.post("/jobs", headers=bearer(KEY), json={}).status_code == 201
    assert closed.get("/jobs", headers=authorization(f"bearer {KEY}")).status_code == 200


def test_a_key_in_the_address_opens_nothing(closed: TestClient) -> None:
    assert closed.get(f"/jobs?key={KEY}&token={KEY}&access_token={KEY}").status_code == 401


def test_without_the_key_no_body_is_looked_at(closed: TestClient) -> None:
    for body in (b"[", b'{"unknown": 1}', b"[" * 100_000, b"\xff", b" " * (2**20 + 1)):
        answer = closed.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 401, body[:20]


def test_a_key_beyond_ascii_opens(serve: Serve) -> None:
    client = serve(api_key=SecretStr("schlüssel-für-epochd"))
    assert client.get("/jobs", headers=bearer("schlüssel-für-epochd")).status_code == 200


def test_on_loopback_and_without_keys_the_service_is_open(client: TestClient) -> None:
    assert client.get("/jobs").status_code == 200
    assert client.get("/jobs", headers=bearer("whatever")).status_code == 200


def test_an_exposed_service_without_keys_is_closed(serve: Serve) -> None:
    assert open_addresses(serve(host="0.0.0.0"), {}) == PUBLIC


def test_the_walk_catches_an_app_that_does_not_ask_for_the_key(closed: TestClient) -> None:
    async def leak() -> PlainTextResponse:
        return PlainTextResponse("leaked")

    mutant = FastAPI(openapi_url=None)
    mutant.add_api_route("/leak/{number}", leak, methods=["PUT"])
    mutant.router.routes.append(Route("/plain", lambda _: PlainTextResponse("leaked")))
    mutant.router.routes.append(Mount("/mounted", PlainTextResponse("leaked")))
    with TestClient(mutant, base_url="http://localhost") as client:
        assert open_addresses(client, {}) == {"/leak/x", "/plain", "/mounted"}
    assert isinstance(closed.app, FastAPI)
    closed.app.router.routes += mutant.router.routes
    assert open_addresses(closed, {}) == PUBLIC


def test_an_unknown_address_asks_for_the_key_too(closed: TestClient) -> None:
    assert closed.get("/nowhere").status_code == 401
    assert closed.get("/nowhere", headers=bearer(KEY)).status_code == 404


def test_a_route_of_a_router_that_is_added_later_asks_for_the_key(closed: TestClient) -> None:
    router = APIRouter(prefix="/later")

    @router.delete("/{name}")
    def remove(name: str) -> str:
        return name

    assert isinstance(closed.app, FastAPI)
    closed.app.include_router(router)
    assert ("DELETE", "/later/x") in set(addresses(closed.app))
    assert "/later/x" not in open_addresses(closed, {})


def test_a_route_that_became_public_by_mistake_is_caught(closed: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.auth, "PUBLIC", service.auth.PUBLIC | {"/jobs"})
    assert "/jobs" in open_addresses(closed, {})


@pytest.fixture
def exposed(data_dir: Path) -> Settings:
    return Settings(data_dir=data_dir, host="0.0.0.0")


def test_the_first_key_of_an_exposed_service_is_made_once(exposed: Settings, db: Database, serve: Serve) -> None:
    key = first_key(exposed, db)
    assert key is not None
    assert re.fullmatch(r"epochd_[\w-]{43}", key)
    assert first_key(exposed, db) is None
    client = serve(host="0.0.0.0")
    assert client.get("/jobs", headers=bearer(key)).status_code == 200
    assert client.get("/jobs", headers=bearer(key[:-1])).status_code == 401


def test_only_the_hash_of_the_first_key_is_stored(exposed: Settings, db: Database, data_dir: Path) -> None:
    key = first_key(exposed, db)
    assert key is not None
    with db.read() as session:
        (row,) = session.execute(select(ApiKey)).scalars()
    assert (row.sha256, row.prefix) == (hashlib.sha256(key.encode()).hexdigest(), key[:13])
    stored = b"".join(path.read_bytes() for path in data_dir.glob("epochd.db*"))
    assert row.sha256.encode() in stored
    assert key[12:].encode() not in stored


def test_no_key_is_made_where_none_is_needed(exposed: Settings, db: Database) -> None:
    for unneeded in (
        exposed.model_copy(update={"host": "127.0.0.1"}),
        exposed.model_copy(update={"api_key": SecretStr(KEY)}),
    ):
        assert first_key(unneeded, db) is None
    assert first_key(exposed, db) is not None


def test_two_starts_at_once_make_one_key(exposed: Settings, db: Database) -> None:
    assert [first_key(exposed, db) is not None for _ in range(3)] == [True, False, False]


def test_a_key_still_counts_when_the_service_is_bound_to_loopback_again(
    exposed: Settings, db: Database, serve: Serve
) -> None:
    key = first_key(exposed, db)
    assert key is not None
    client = serve()
    assert client.get("/jobs").status_code == 401
    assert client.get("/jobs", headers=bearer(key)).status_code == 200


def test_the_key_of_the_settings_and_the_first_key_both_open(exposed: Settings, db: Database) -> None:
    key = first_key(exposed, db)
    assert key is not None
    keys = Keys(exposed.model_copy(update={"api_key": SecretStr(KEY)}), db)
    keys.find(key.encode())
    keys.find(KEY.encode())
    for wrong in (b"", (key + KEY).encode()):
        with pytest.raises(Unauthenticated):
            keys.find(wrong)
