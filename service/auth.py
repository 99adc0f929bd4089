"""API keys: who may ask. Only their SHA-256 is kept; a key is 256 random bits, so a slow hash would gain nothing."""

import hashlib
import hmac
import secrets

from fastapi.security import HTTPBearer
from sqlmodel import col, select
from starlette.types import ASGIApp, Receive, Scope, Send
from worker.jobs.db import Database, now
from worker.jobs.errors import CrossSite, Unauthenticated
from worker.jobs.settings import Settings
from worker.jobs.tables import ApiKey

from .errors import response_to

PUBLIC = frozenset(
    {
        *("/healthz", "/readyz"),  # a container's health check has no key,
        *("/v2/health/live", "/v2/health/ready"),  # nor has a load balancer that speaks this protocol
        *("/docs", "/openapi.json"),  # the same for every epochd, and a browser cannot send a key to a page
    }
)
# Only says so in /docs; RequireKey is what asks.
bearer = HTTPBearer(auto_error=False, description="Needed when the service has a key")


class Keys:
    """The keys that open this service. Without any, and on loopback only, it is open."""

    def __init__(self, settings: Settings, db: Database) -> None:
        with db.read() as session:
            self._digests = [bytes.fromhex(each) for each in session.exec(select(ApiKey.sha256))]
        if settings.api_key is not None:
            self._digests.append(_digest(settings.api_key.get_secret_value().encode()))
        self._open = not self._digests and not settings.is_exposed

    def check(self, key: bytes) -> None:
        """Raises Unauthenticated."""
        if self._open:
            return
        presented = _digest(key)
        # No early exit: the time taken tells nothing about which key was nearly right.
        if not sum(hmac.compare_digest(presented, each) for each in self._digests):
            raise Unauthenticated


def first_key(settings: Settings, db: Database) -> str | None:
    """Makes a key when other machines can reach the service and it has none. The caller shows it, once."""
    if not settings.is_exposed or settings.api_key is not None:
        return None
    key = f"epochd_{secrets.token_urlsafe(32)}"
    with db.write() as session:
        if session.exec(select(col(ApiKey.sha256)).limit(1)).first() is not None:
            return None
        session.add(ApiKey(sha256=_digest(key.encode()).hex(), prefix=key[:12], created_at=now(session)))
    return key


class RequireKey:
    """Every request needs a key, whatever routes there are, unless its path is named in PUBLIC.

    A middleware and not a dependency, because FastAPI reads and parses a body before it asks any dependency.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and scope["path"] not in PUBLIC:
            try:
                scope["app"].state.keys.check(_presented(scope))
                _refuse_other_sites(scope)
            except (Unauthenticated, CrossSite) as error:
                await response_to(error, scope["state"]["request_id"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _presented(scope: Scope) -> bytes:
    """The bearer token as it came: bytes, since a header need not be ASCII."""
    for name, value in scope["headers"]:
        scheme, _, token = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            return bytes(token.strip())
    return b""


def _refuse_other_sites(scope: Scope) -> None:
    """A browser lets any page send a form anywhere, and on loopback there may be no key. Raises CrossSite."""
    if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
        for name, value in scope["headers"]:
            if name == b"sec-fetch-site" and value not in (b"same-origin", b"none"):
                raise CrossSite


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
