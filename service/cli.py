"""The `epochd` command."""

import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated, NoReturn

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError
from worker.jobs import logs
from worker.jobs.db import Database
from worker.jobs.errors import SchemaTooNew
from worker.jobs.settings import Settings

from . import serve as parent

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trains image models for whoever asks over HTTP.",
)
_errors = Console(stderr=True, highlight=False)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env EPOCHD_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [env EPOCHD_PORT]")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Data folder [env EPOCHD_DATA_DIR]")] = None,
) -> None:
    """Run the service and a worker in the foreground; Ctrl-C stops both."""
    given = {"EPOCHD_HOST": host, "EPOCHD_PORT": port, "EPOCHD_DATA_DIR": data_dir}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    settings = _settings()
    logs.configure("epochd")
    _check_data(settings)
    try:
        listener = parent.listen(settings)
    except OSError as error:
        _fail(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}. Try --port 0.")
    address, port_taken = listener.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    structlog.get_logger().info(
        "listening", url=f"http://{shown}:{port_taken}", docs=f"http://{shown}:{port_taken}/docs"
    )
    raise typer.Exit(parent.run(listener))


@app.command()
def worker() -> None:
    """Run a worker in the foreground, on the database that EPOCHD_DATABASE_URL or the data folder names."""
    _settings()
    os.execv(sys.executable, [sys.executable, "-m", "worker"])  # noqa: S606


@app.command()
def version() -> None:
    """Say which version this is."""
    typer.echo(f"epochd {installed_version('epochd')}")


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        for each in error.errors():
            name = f"EPOCHD_{'_'.join(str(part) for part in each['loc']).upper()}: " if each["loc"] else ""
            _errors.print(f"epochd: {name}{each['msg'].removeprefix('Value error, ')}", style="red", markup=False)
        raise typer.Exit(2) from None


def _check_data(settings: Settings) -> None:
    """Says in a sentence what would make the service and the worker die again and again."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db = Database(settings.resolved_database_url)
        db.migrate()
        db.close()
    except OSError as error:
        _fail(f"cannot use the data folder {settings.data_dir}: {error.strerror}.")
    except SchemaTooNew as error:
        _fail(error.detail)
    except SQLAlchemyError as error:
        _fail(f"cannot open the database: {str(error.__cause__ or error).splitlines()[0]}")


def _fail(sentence: str) -> NoReturn:
    _errors.print(f"epochd: {sentence}", style="red", markup=False)
    raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
