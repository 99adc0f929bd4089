"""`epochd keys`: who may use the service."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy.exc import SQLAlchemyError
from worker.jobs import keys, logs
from worker.jobs.db import Database
from worker.jobs.errors import EpochdError
from worker.jobs.starting import EXIT_DATA, leave, open_database, read_settings
from worker.jobs.states import Scope
from worker.jobs.tables import ApiKey
from worker.jobs.texts import printable

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys. With the first, the service is closed.")

_USUAL = [Scope.READ, Scope.SUBMIT, Scope.PREDICT]
_NAME_CHARACTERS = 100
Json = Annotated[bool, typer.Option("--json", help="Print JSON")]


@app.callback()
def prepare() -> None:
    logs.configure("keys")


@app.command()
def create(
    name: Annotated[str | None, typer.Argument(help="Whose it is, for people")] = None,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; give it again for more [default: read, submit and predict]"),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="After how long it is not accepted any more: 12h, 90d [default: never]")
    ] = None,
    like: Annotated[
        str | None, typer.Option(help="Prefix or id of a key whose jobs and datasets are this one's too")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a key and show it, this once. Services that run accept it within a second."""
    days = None if expires is None else _days(expires)
    if name is not None:
        try:
            printable(name)
        except ValueError as error:
            leave(2, f"the name {error}")
        if not 0 < len(name) <= _NAME_CHARACTERS:
            leave(2, f"the name must have 1 to {_NAME_CHARACTERS} characters")
    with _opened() as db:
        key, row = keys.create(db, scope or _USUAL, name=name, like=like, days=days)
    if as_json:
        typer.echo(json.dumps({"key": key} | _shown(row)))
    else:
        typer.echo(key)
        typer.echo("Shown only now. Send it as: Authorization: Bearer <key>", err=True)


@app.command("list")
def show_all(as_json: Json = False) -> None:
    """Show all keys that there ever were, by how they begin."""
    with _opened() as db:
        rows = [_shown(row) for row in keys.every(db)]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    columns = ("id", "prefix", "name", "scopes", "created_at", "expires_at", "state")
    lines = [[" ".join(row[name]) if name == "scopes" else str(row[name] or "") for name in columns] for row in rows]
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        for line in lines:
            typer.echo("\t".join(line))
        return
    table = Table(*columns, box=None)
    for line in lines:
        table.add_row(*line)
    console.print(table)


@app.command()
def revoke(which: Annotated[str, typer.Argument(help="The key's id, or how it begins")]) -> None:
    """No longer accept a key. What it made stays, and is its owner's."""
    with _opened() as db:
        row = keys.revoke(db, which)
    typer.echo(f"{row.prefix}... is not accepted any more.")


def _days(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if found is None or not int(found[1]):
        leave(2, "--expires takes a number and a unit: 30m, 12h or 90d")
    return int(found[1]) * {"m": 1 / 1440, "h": 1 / 24, "d": 1.0}[found[2]]


def _shown(row: ApiKey) -> dict[str, Any]:
    expired = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
    return {
        "id": row.id,
        "prefix": row.prefix,
        "name": row.name,
        "owner": row.owner,
        "scopes": row.scopes,
        "created_at": _time(row.created_at),
        "expires_at": _time(row.expires_at),
        "state": "revoked" if row.revoked_at else "expired" if expired else "accepted",
    }


def _time(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None


@contextmanager
def _opened() -> Iterator[Database]:
    """When it goes wrong, one sentence says what and why."""
    db = open_database(read_settings())
    try:
        yield db
    except EpochdError as error:
        leave(EXIT_DATA, error.detail)
    except SQLAlchemyError as error:
        leave(EXIT_DATA, f"the keys cannot be read: {str(getattr(error, 'orig', error)).splitlines()[0]}")
    finally:
        db.close()
