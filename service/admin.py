"""`epochd admin`: backup, restore, check."""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, NoReturn

import typer
from sqlalchemy.exc import SQLAlchemyError
from worker.jobs import backup, checking, logs
from worker.jobs.db import Database
from worker.jobs.errors import EpochdError
from worker.jobs.files import fsync
from worker.jobs.restore import restore
from worker.jobs.starting import EXIT_DATA, leave, open_database, read_settings

app = typer.Typer(no_args_is_help=True, help="Look after the data folder and the database.")

_STREAM = "-"


@app.callback()
def prepare() -> None:
    logs.configure("admin")  # to standard error: standard output may be the backup
    for each in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _stop)  # or what is half made would stay


@app.command("backup")
def make_backup(
    target: Annotated[str, typer.Argument(help="A tar file that is not there yet, or - for standard output")],
) -> None:
    """Write all rows and files into one tar file, while everything goes on."""
    started = time.monotonic()
    with _opened("the backup cannot be written") as (db, data_dir):
        if target == _STREAM:
            # Not with Python's own standard output: what that could not write it would try again at the very end.
            with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as pipe:
                written = backup.write(db, data_dir, pipe)
        else:
            written = _to_file(Path(target), lambda file: backup.write(db, data_dir, file))
    seconds = time.monotonic() - started
    _say(f"{written.files} files, {written.bytes / 2**20:.1f} MiB, in {seconds:.1f} s")
    if written.missing:
        leave(EXIT_DATA, f"the backup lacks files that are missing here, such as {written.missing[0]}: run admin check")


@app.command("restore")
def bring_back(
    source: Annotated[str, typer.Argument(help="A backup, or - for standard input")],
) -> None:
    """Bring a backup back, into an empty data folder and database."""
    with _opened("the backup cannot be restored") as (db, data_dir):
        if source == _STREAM:
            manifest = restore(db, data_dir, sys.stdin.buffer)
        else:
            with Path(source).open("rb") as file:
                manifest = restore(db, data_dir, file)
    _say(f"{len(manifest.entries) - 1} files, as of {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC")


@app.command()
def check(
    digests: Annotated[bool, typer.Option("--digests", help="Read each checkpoint and compare its SHA-256")] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove the files that nothing names")
    ] = False,
) -> None:
    """Say what is wrong with rows and files; the exit code is 1 if anything is."""
    with _opened("it cannot be checked") as (db, data_dir):
        found = checking.check(db, data_dir, digests=digests)
        counts = checking.counts(db)
    _say("there are " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    for finding in found:
        removed = remove_orphans and finding.is_orphan
        if removed:
            _remove(data_dir / finding.subject)
        typer.echo(f"{finding.subject}: {finding.sentence}{' Removed.' if removed else ''}")
    if not found:
        typer.echo("Nothing is wrong.")
    if any(not (remove_orphans and finding.is_orphan) for finding in found):
        raise typer.Exit(1)


@contextmanager
def _opened(what: str) -> Iterator[tuple[Database, Path]]:
    """The database and the data folder. When it goes wrong, one sentence says what and why."""
    settings = read_settings()
    db = open_database(settings)
    try:
        yield db, settings.data_dir
    except EpochdError as error:
        leave(EXIT_DATA, error.detail)
    except OSError as error:
        leave(EXIT_DATA, f"{what}: {error.strerror}")
    except SQLAlchemyError as error:
        leave(EXIT_DATA, f"{what}: {str(getattr(error, 'orig', error)).splitlines()[0]}")
    finally:
        db.close()


def _stop(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is left of a backup would wait for a reader for ever
    raise SystemExit(128 + number)


def _to_file(target: Path, write: Callable[[IO[bytes]], backup.Written]) -> backup.Written:
    """The file appears whole, or not at all."""
    _require_absent(target)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".writing", dir=target.parent)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            written = write(file)
            file.flush()
            os.fsync(file.fileno())
        _require_absent(target)  # another backup may have taken the name
        unfinished.rename(target)
        fsync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _require_absent(target: Path) -> None:
    if target.exists():
        leave(EXIT_DATA, f"{target} is there already")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _say(sentence: str) -> None:
    """On standard error: standard output may be the backup."""
    typer.echo(f"epochd: {sentence}", err=True)
