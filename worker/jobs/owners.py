"""Whose things a caller may see and change.

What a key makes is its owner's. Others do not get to know that it is there. The house owns what was made without a
key, or with one that may do everything; who has such a key sees everybody's.
"""

from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, case, true
from sqlmodel import col

from .columns import HOUSE


class Caller(NamedTuple):
    owner: str  # whose the things will be that are made
    sees_all: bool

    def may_see(self, owner: str) -> bool:
        return self.sees_all or owner == self.owner


EVERYBODY: Final = Caller(HOUSE, sees_all=True)  # who is in this house: workers, the command line, an open service


def visible(owner: Any, caller: Caller) -> ColumnElement[bool]:
    """Of a column `owner`: what the caller may see."""
    return true() if caller.sees_all else col(owner) == caller.owner


def own_first(owner: Any, caller: Caller) -> tuple[ColumnElement[Any], ...]:
    """Of a column `owner`: of equal names, the caller's comes first."""
    return case((col(owner) == caller.owner, 0), else_=1), col(owner).asc()
