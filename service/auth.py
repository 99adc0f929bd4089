"""API keys: who may ask. Only their SHA-256 is kept; a key is 256 random bits, so a slow hash would gain nothing."""

import hashlib
import hmac
import secrets
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlmodel import col, select
from worker.jobs.db import Database, now
from worker.jobs.errors import Unauthenticated
from worker.jobs.settings import Settings
from worker.jobs.tables import ApiKey

PUBLIC = frozenset({"/healthz", "/readyz"})  # a container's health check has no key
_bearer = HTTPBearer(auto_error=False, description="Needed when the service was started with a key")


class Keys:
    """The keys that open this service. Without any, and on loopback only, it is open."""

    def __init__(self, settings: Settings, db: Database) -> None:
        with db.read() as session:
            self._digests = [bytes.fromhex(each) for each in session.exec(select(ApiKey.sha256))]
        if settings.api_key is not None:
            self._digests.append(_digest(settings.api_key.get_secret_value()))
        self._open = not self._digests and not settings.is_exposed

    def check(self, key: str | None) -> None:
        """Raises Unauthenticated."""
        if self._open:
            return
        presented = _digest(key or "")
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
        session.add(ApiKey(sha256=_digest(key).hex(), prefix=key[:12], created_at=now(session)))
    return key


def require_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """The whole app depends on this: a new route is closed unless it is named in PUBLIC."""
    if request.scope["path"] not in PUBLIC:
        request.app.state.keys.check(credentials.credentials if credentials else None)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
