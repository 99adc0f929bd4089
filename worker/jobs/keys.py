"""API keys: made, listed, revoked. Only their SHA-256 is kept; a key is 256 random bits, so a slow hash would gain
nothing.
"""

import hashlib
import secrets
from collections.abc import Collection
from datetime import timedelta
from typing import Final

from sqlalchemy import or_, select
from sqlmodel import Session, col

from .columns import HOUSE
from .db import Database, now, one_at_a_time
from .errors import Conflict, NotFound
from .ids import new_id
from .states import Scope
from .tables import ApiKey

_PREFIX_CHARACTERS: Final = 13  # `epochd_` and six more: enough to tell keys apart, and nothing to guess the rest from


def digest(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def create(
    db: Database,
    scopes: Collection[Scope],
    *,
    name: str | None = None,
    like: str | None = None,
    days: float | None = None,
) -> tuple[str, ApiKey]:
    """A new key, which nobody can show again, and its row.

    `like`: prefix or id of a key whose things are to be this one's too, for when that is to be replaced.
    `days`: after which it is not accepted any more. Raises NotFound and Conflict, see `find`.
    """
    with db.write() as session:
        row_id = new_id()
        owner = HOUSE if Scope.ADMIN in scopes else find(session, like).owner if like is not None else row_id
        return _add(session, row_id, owner, scopes, name, days)


def first(db: Database) -> str | None:
    """A key that may do everything, unless there ever was any key."""
    with db.write() as session:
        one_at_a_time(session, "first key")
        if session.execute(select(col(ApiKey.id)).limit(1)).first() is not None:
            return None
        return _add(session, new_id(), HOUSE, [Scope.ADMIN], "first start", None)[0]


def every(db: Database) -> list[ApiKey]:
    """Oldest first; those that are not accepted any more as well."""
    with db.read() as session:
        return list(session.execute(select(ApiKey).order_by(col(ApiKey.id))).scalars())


def revoke(db: Database, which: str) -> ApiKey:
    """From now on it is not accepted; services that run know within a second. Raises NotFound and Conflict."""
    with db.write() as session:
        key = find(session, which)
        key.revoked_at = key.revoked_at or now(session)
        return key


def find(session: Session, which: str) -> ApiKey:
    """By id, or by how it begins. Raises NotFound, and Conflict when several begin like this."""
    begins = col(ApiKey.prefix).startswith(which[:_PREFIX_CHARACTERS], autoescape=True)
    is_long_enough = len(which) > len("epochd_")
    named = or_(col(ApiKey.id) == which, begins) if is_long_enough else col(ApiKey.id) == which
    found = list(session.execute(select(ApiKey).where(named).limit(2)).scalars())
    if not found:
        raise NotFound("There is no key of this id or prefix; `epochd keys list` shows those that there are.")
    if len(found) > 1:
        raise Conflict("Several keys begin like this; take the id, which `epochd keys list` shows.")
    key: ApiKey = found[0]
    return key


def _add(
    session: Session, row_id: str, owner: str, scopes: Collection[Scope], name: str | None, days: float | None
) -> tuple[str, ApiKey]:
    key = f"epochd_{secrets.token_urlsafe(32)}"
    at = now(session)
    row = ApiKey(
        id=row_id,
        sha256=digest(key.encode()),
        prefix=key[:_PREFIX_CHARACTERS],
        name=name,
        owner=owner,
        scopes=[str(scope) for scope in Scope if scope in scopes],
        created_at=at,
        expires_at=at + timedelta(days=days) if days is not None else None,
    )
    session.add(row)
    session.flush()
    return key, row
