"""API keys: what is stored of them, how they are named, and whose things are theirs."""

import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import update

from worker.jobs import keys
from worker.jobs.columns import HOUSE
from worker.jobs.db import Database
from worker.jobs.errors import Conflict, NotFound
from worker.jobs.states import Scope
from worker.jobs.tables import ApiKey


def test_only_the_digest_and_the_beginning_of_a_key_are_stored(db: Database) -> None:
    key, row = keys.create(db, [Scope.READ], name="a")
    assert key.startswith(row.prefix)
    assert len(key) - len(row.prefix) >= 32  # what is not shown: more than 128 bits
    assert row.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert key not in repr([vars(each) for each in keys.every(db)])


def test_no_two_keys_are_the_same(db: Database) -> None:
    assert len({keys.create(db, [Scope.READ])[0] for _ in range(20)}) == 20


def test_a_key_owns_what_it_makes_and_one_that_is_like_it_owns_that_too(db: Database) -> None:
    _, first = keys.create(db, [Scope.SUBMIT])
    _, other = keys.create(db, [Scope.SUBMIT])
    _, second = keys.create(db, [Scope.PREDICT], like=first.prefix)
    _, third = keys.create(db, [Scope.PREDICT], like=second.id)
    assert first.owner == second.owner == third.owner == first.id
    assert other.owner == other.id


def test_what_an_admin_makes_is_the_houses(db: Database) -> None:
    assert keys.create(db, [Scope.ADMIN])[1].owner == HOUSE
    assert keys.create(db, [Scope.READ, Scope.ADMIN])[1].scopes == ["read", "admin"]


def test_a_key_may_end_by_itself(db: Database) -> None:
    _, row = keys.create(db, [Scope.READ], days=0.5)
    assert row.expires_at is not None
    assert row.expires_at - row.created_at == timedelta(hours=12)
    assert keys.create(db, [Scope.READ])[1].expires_at is None


def test_a_key_is_revoked_by_id_prefix_or_whole_and_once(db: Database) -> None:
    made = [keys.create(db, [Scope.READ]) for _ in range(3)]
    names = [made[0][1].id, made[1][1].prefix, made[2][0]]
    for name in names:
        assert keys.revoke(db, name).revoked_at is not None
    when = [row.revoked_at for row in keys.every(db)]
    assert all(when)
    keys.revoke(db, names[0])
    assert [row.revoked_at for row in keys.every(db)] == when


@pytest.mark.parametrize("which", ["", "epochd_", "e", "%", "epochd_%", "nobody", "epochd_nobodyy"])
def test_what_names_no_key_revokes_none(db: Database, which: str) -> None:
    keys.create(db, [Scope.READ])
    with pytest.raises(NotFound):
        keys.revoke(db, which)
    assert [row.revoked_at for row in keys.every(db)] == [None]


def test_a_prefix_of_several_keys_names_none_of_them(db: Database) -> None:
    for _ in range(2):
        keys.create(db, [Scope.READ])
    with db.write() as session:
        session.execute(update(ApiKey).values(prefix="epochd_same00"))
    with pytest.raises(Conflict):
        keys.revoke(db, "epochd_same00")


def test_the_first_key_is_made_only_where_there_never_was_any(db: Database) -> None:
    key = keys.first(db)
    assert key is not None
    (row,) = keys.every(db)
    assert row.scopes == ["admin"]
    keys.revoke(db, row.id)
    assert keys.first(db) is None
