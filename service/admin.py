"""`epochd admin`: backup, restore, check."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated

import typer
from worker.jobs import backup, checking
from worker.jobs.errors import EpochdError
from worker.jobs.files import fsync
from worker.jobs.restore import restore
from worker.jobs.starting import EXIT_DATA, leave, open_database, read_settings

app = typer.Typer(no_args_is_help=True, help="Look after the data folder and the database.")

_STREAM = "-"


@app.command("backup")
def make_backup(
    target: Annotated[str, typer.Argument(help="A tar file that is not there yet, or - for standard output")],
) -> None:
    """Write all rows and files into one tar file, while everything goes on."""
    settings = read_settings()
    db = open_database(settings)
    started = time.monotonic()
    try:
        if target == _STREAM:
            written = backup.write(db, settings.data_dir, sys.stdout.buffer)
        else:
            written = _to_file(Path(target), lambda file: backup.write(db, settings.data_dir, file))
    except OSError as error:
        leave(EXIT_DATA, f"the backup cannot be written: {error.strerror}")
    finally:
        db.close()
    seconds = time.monotonic() - started
    _say(f"{written.files} files, {written.bytes / 2**20:.1f} MiB, in {seconds:.1f} s")
    if written.missing:
        leave(EXIT_DATA, f"the backup lacks files that are missing here, such as {written.missing[0]}: run admin check")


@app.command("restore")
def bring_back(
    source: Annotated[str, typer.Argument(help="A backup, or - for standard input")],
) -> None:
    """Bring a backup back, into an empty data folder and database."""
    settings = read_settings()
    db = open_database(settings)
    try:
        if source == _STREAM:
            manifest = restore(db, settings.data_dir, sys.stdin.buffer)
        else:
            with Path(source).open("rb") as file:
                manifest = restore(db, settings.data_dir, file)
    except EpochdError as error:
        leave(EXIT_DATA, error.detail)
    except OSError as error:
        leave(EXIT_DATA, f"the backup cannot be restored: {error.strerror}")
    finally:
        db.close()
    _say(f"{len(manifest.entries) - 1} files, as of {manifest.created_at:%Y-%m-%d %H:%M:%S} UTC")


@app.command()
def check(
    digests: Annotated[bool, typer.Option("--digests", help="Read each checkpoint and compare its SHA-256")] = False,
    remove_orphans: Annotated[
        bool, typer.Option("--remove-orphans", help="Remove the files that nothing names")
    ] = False,
) -> None:
    """Say what is wrong with rows and files; the exit code is 1 if anything is."""
    settings = read_settings()
    db = open_database(settings)
    found = checking.check(db, settings.data_dir, digests=digests)
    db.close()
    for finding in found:
        removed = remove_orphans and finding.is_orphan
        if removed:
            _remove(settings.data_dir / finding.subject)
        typer.echo(f"{finding.subject}: {finding.sentence}{' Removed.' if removed else ''}")
    if not found:
        typer.echo("Nothing is wrong.")
    if any(not (remove_orphans and finding.is_orphan) for finding in found):
        raise typer.Exit(1)


def _to_file(target: Path, write: Callable[[IO[bytes]], backup.Written]) -> backup.Written:
    """The file appears whole, or not at all."""
    if target.exists():
        leave(EXIT_DATA, f"{target} is there already")
    unfinished = target.with_name(f".{target.name}.writing")
    try:
        with unfinished.open("xb") as file:
            written = write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(target)
        fsync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)
    return written


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def _say(sentence: str) -> None:
    """On standard error: standard output may be the backup."""
    typer.echo(f"epochd: {sentence}", err=True)
