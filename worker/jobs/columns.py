"""Kinds of columns that several tables have."""

from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Column, DateTime, Dialect, ForeignKey, String, literal
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field

HOUSE: Final = ""  # the owner of what belongs to no key


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time on both databases; SQLite itself keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return value.replace(tzinfo=UTC) if value and value.tzinfo is None else value


def one_of(column: str, values: Iterable[StrEnum]) -> str:
    """The condition of a CHECK constraint."""
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def time(*, nullable: bool = True) -> Any:
    return Field(default=None, sa_column=Column(UtcDateTime, nullable=nullable))


def added_later(default: object) -> Any:
    """A column that rows of before do not have."""
    return Field(default=default, sa_column_kwargs={"server_default": literal(default)})


def owner() -> Any:
    """Whose a row is: see `tables`."""
    return Field(default=HOUSE, max_length=64, sa_column_kwargs={"server_default": literal(HOUSE)})


def of_job() -> Any:
    """The job whose row it is, and which it goes with; it is what the row is found by."""
    return Field(sa_column=Column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True))
