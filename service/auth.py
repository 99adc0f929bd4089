"""Who asks, and what they may do. See `worker.jobs.keys` for how keys are made, and `owners` for what is whose."""

import asyncio
import hmac
from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import structlog
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from worker.jobs import keys
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import CrossSite, Forbidden, Unauthenticated
from worker.jobs.owners import EVERYBODY, Caller
from worker.jobs.settings import Settings
from worker.jobs.states import Scope as Right
from worker.jobs.tables import ApiKey

from .errors import response_to
from .pages.addresses import SIGN_IN, STATIC, cookie_name, is_page

PUBLIC = frozenset(
    {
        *("/healthz", "/readyz"),  # a container's health check has no key,
        *("/v2/health/live", "/v2/health/ready"),  # nor has a load balancer that speaks this protocol
        *("/docs", "/openapi.json"),  # the same for every epochd
        *(SIGN_IN, f"{SIGN_IN}/forget"),  # where a browser is given a key, and where it is taken away
    }
)
_LOOK_SECONDS: Final = 0.4  # a key that is revoked is refused within a second
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# Only says so in /docs; RequireKey is what asks.
bearer = HTTPBearer(auto_error=False, description="Needed when the service has a key")
_log = structlog.get_logger()


class Known(NamedTuple):
    """A key, as far as it takes to let somebody in."""

    sha256: str
    caller: Caller
    rights: frozenset[Right]
    expires_at: datetime | None

    @classmethod
    def of(cls, row: ApiKey) -> "Known":
        rights = frozenset(Right(each) for each in row.scopes)
        return cls(row.sha256, Caller(row.owner, sees_all=Right.ADMIN in rights), rights, row.expires_at)

    @property
    def is_over(self) -> bool:
        return self.expires_at is not None and self.expires_at <= datetime.now(UTC)

    def may(self, right: Right) -> bool:
        return right in self.rights or Right.ADMIN in self.rights


_OPEN: Final = Known("", EVERYBODY, frozenset({Right.ADMIN}), None)  # who asks a service that has no key


class Keys:
    """The keys that open this service. Where there never was any, and on loopback only, it is open."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._settings, self._db = settings, db
        self._accepted: dict[str, Known] = {}
        self.is_open = False
        self.look()

    def look(self) -> None:
        """Takes the keys from the database as they are now."""
        rows = keys.every(self._db)
        found = [Known.of(row) for row in rows if row.revoked_at is None]
        if self._settings.api_key is not None:
            digest = keys.digest(self._settings.api_key.get_secret_value().encode())
            found.append(_OPEN._replace(sha256=digest))
        self._accepted = {each.sha256: each for each in found}
        self.is_open = not rows and not found and not self._settings.is_exposed

    async def keep_looking(self) -> None:
        """Until cancelled. While the database is away, the keys of before stay."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await run_in_threadpool(self.look)
            except DATABASE_AWAY:
                _log.warning("keys_unknown")

    def accepts(self, known: Known) -> bool:
        """Whether one who was let in would be let in now."""
        if known is _OPEN:
            return self.is_open
        return self._accepted.get(known.sha256) == known and not known.is_over

    def find(self, key: bytes) -> Known:
        """Raises Unauthenticated."""
        if self.is_open:
            return _OPEN
        # Nobody can choose a digest, so how long it takes to find one tells nothing about the keys that there are.
        digest = keys.digest(key)
        known = self._accepted.get(digest)
        if known is None or not hmac.compare_digest(known.sha256.encode(), digest.encode()):
            raise Unauthenticated
        if known.is_over:
            raise Unauthenticated
        return known


def first_key(settings: Settings, db: Database) -> str | None:
    """Makes a key when other machines can reach the service and it has none. The caller shows it, once."""
    return keys.first(db) if settings.is_exposed and settings.api_key is None else None


def right_for(method: str, path: str) -> Right:
    """What a request needs a key to be for."""
    if path == "/v2" or path.startswith(("/predict", "/v2/")):
        return Right.PREDICT
    return Right.READ if method in _SAFE else Right.SUBMIT


class RequireKey:
    """Every request needs a key, whatever routes there are, unless its path is named in PUBLIC.

    A middleware and not a dependency, because FastAPI reads and parses a body before it asks any dependency.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...] = ()) -> None:
        """`origins`: of pages that may use the service from a browser."""
        self._app, self._origins = app, frozenset(each.encode() for each in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not is_public(scope["path"]):
            key, is_cookie = presented(scope)
            try:
                known = scope["app"].state.keys.find(key)
                self._refuse_other_sites(scope, is_cookie=is_cookie)
                right = right_for(scope["method"], scope["path"])
                if not known.may(right):
                    raise Forbidden(f"This key may not do that: it lacks the scope `{right}`.")
                scope["state"] |= {"caller": known.caller, "known": known}
            except (Unauthenticated, CrossSite, Forbidden) as error:
                response = _to_sign_in(scope) if isinstance(error, Unauthenticated) and is_page(scope["path"]) else None
                response = response or response_to(error, scope["state"]["request_id"])
                await response(scope, receive, send)
                return
        elif scope["type"] == "http" and is_page(scope["path"]):  # where a key is entered: nobody else may do that
            try:
                self._refuse_other_sites(scope, is_cookie=False)
            except CrossSite as error:
                await response_to(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse_other_sites(self, scope: Scope, *, is_cookie: bool) -> None:
        """A browser lets any page send a form anywhere, and on loopback there may be no key. Raises CrossSite.

        Who shows a key in a header knows it. A cookie is sent by the browser: then it has to say that the page is ours.
        """
        if scope["method"] in _SAFE:
            return
        headers = dict(scope["headers"])
        site, origin = headers.get(b"sec-fetch-site", b"none"), headers.get(b"origin")
        is_ours = site == b"same-origin" or (
            origin is not None and origin.partition(b"://")[2] == headers.get(b"host")  # no `sec-` without https
        )
        if is_ours or (site == b"none" and origin is None and not is_cookie):
            return
        if is_cookie or origin not in self._origins:
            raise CrossSite


def is_public(path: str) -> bool:
    return path in PUBLIC or path.startswith(STATIC)


def _to_sign_in(scope: Scope) -> Response | None:
    """For a person who looks at a page without a key: where to enter one. None: it is no such request."""
    if scope["method"] not in ("GET", "HEAD"):
        return None
    headers = dict(scope["headers"])
    if b"hx-request" in headers:  # a part of a page: the whole page has to go there
        address = _path_of(headers.get(b"hx-current-url", b"/").decode("latin-1"))
        return Response(status_code=401, headers={"HX-Redirect": f"{SIGN_IN}?{urlencode({'next': address})}"})
    query = scope["query_string"].decode("latin-1")
    address = scope["path"] + (f"?{query}" if query else "")
    return RedirectResponse(f"{SIGN_IN}?{urlencode({'next': address})}", 303)


def _path_of(url: str) -> str:
    try:
        shown = urlsplit(url)
    except ValueError:
        return "/"
    return shown.path + (f"?{shown.query}" if shown.query else "")


def presented(scope: Scope) -> tuple[bytes, bool]:
    """The key as it came, in bytes since a header need not be ASCII; and whether a browser's cookie brought it."""
    cookie, own = None, cookie_name(Headers(scope=scope).get("host", ""))
    for name, value in scope["headers"]:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            return bytes(token.strip()), False
        if name == b"cookie" and cookie is None:
            cookie = cookie_parser(value.decode("latin-1")).get(own)
    return (cookie.encode("latin-1"), True) if cookie else (b"", False)
