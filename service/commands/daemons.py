"""What runs the service itself. Everything is loaded when it is needed: other commands should start in a blink."""

import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from .command import Cli, command

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on; else EPOCHD_HOST")] = None,
    port: Annotated[int | None, typer.Option(help="Port, 0 takes a free one; else EPOCHD_PORT")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Data folder; else EPOCHD_DATA_DIR")] = None,
) -> None:
    """Run the service and a worker in the foreground; Ctrl-C stops both."""
    given = {"EPOCHD_HOST": host, "EPOCHD_PORT": port, "EPOCHD_DATA_DIR": data_dir}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
    from worker.jobs import logs
    from worker.jobs.starting import leave, open_database, read_settings

    from service import serve as parent

    settings = read_settings()
    logs.configure("epochd")
    open_database(settings).close()  # what is wrong with it would end both children again and again
    try:
        listener = parent.listen(settings)
    except OSError as error:
        leave(1, f"cannot listen on {settings.host} port {settings.port}: {error.strerror}. Try --port 0.")
    raise typer.Exit(parent.run(listener, settings))


@app.command()
def worker() -> None:
    """Run a worker in the foreground, on the database that EPOCHD_DATABASE_URL or the data folder names."""
    os.execv(sys.executable, [sys.executable, "-m", "worker"])  # noqa: S606  # nosec B606  # our own, from a list


@app.command()
def sinks() -> None:
    """Write metrics into the sinks that EPOCHD_SINKS names, in the foreground."""
    from service.sinks.__main__ import main

    main()


@command(app)
def version(cli: Cli) -> None:
    """Say which version this is."""
    number = installed_version("epochd")
    if cli.screen.as_json:
        cli.screen.json({"version": number})
    else:
        typer.echo(f"epochd {number}")
