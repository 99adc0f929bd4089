"""Who asks, and what they may do. See `worker.jobs.keys` for how keys are made, and `owners` for what is whose."""

import asyncio
import hmac
from datetime import UTC, datetime
from typing import Final, NamedTuple

import structlog
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send
from worker.jobs import keys
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.errors import CrossSite, Forbidden, Unauthenticated
from worker.jobs.owners import EVERYBODY, Caller
from worker.jobs.settings import Settings
from worker.jobs.states import Scope as Right
from worker.jobs.tables import ApiKey

from .errors import response_to

PUBLIC = frozenset(
    {
        *("/healthz", "/readyz"),  # a container's health check has no key,
        *("/v2/health/live", "/v2/health/ready"),  # nor has a load balancer that speaks this protocol
        *("/docs", "/openapi.json"),  # the same for every epochd, and a browser cannot send a key to a page
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
        if scope["type"] != "lifespan" and scope["path"] not in PUBLIC:
            try:
                known = scope["app"].state.keys.find(_presented(scope))
                self._refuse_other_sites(scope)
                right = right_for(scope["method"], scope["path"])
                if not known.may(right):
                    raise Forbidden(f"This key may not do that: it lacks the scope `{right}`.")
                scope["state"] |= {"caller": known.caller, "known": known}
            except (Unauthenticated, CrossSite, Forbidden) as error:
                await response_to(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refuse_other_sites(self, scope: Scope) -> None:
        """A browser lets any page send a form anywhere, and on loopback there may be no key. Raises CrossSite."""
        if scope["method"] in _SAFE:
            return
        headers = dict(scope["headers"])
        site = headers.get(b"sec-fetch-site", b"none")
        if site not in (b"same-origin", b"none") and headers.get(b"origin") not in self._origins:
            raise CrossSite


def _presented(scope: Scope) -> bytes:
    """The bearer token as it came: bytes, since a header need not be ASCII."""
    for name, value in scope["headers"]:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            return bytes(token.strip())
    return b""
