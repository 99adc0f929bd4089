"""The `epochd` command."""

import os
import sys
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from worker.jobs import logs
from worker.jobs.starting import leave, open_database, read_settings

from . import admin, keys
from . import serve as parent

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Trains image models for whoever asks over HTTP.",
)
app.add_typer(admin.app, name="admin")
app.add_typer(keys.app, name="keys")


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env EPOCHD_HOST]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [env EPOCHD_PORT]")] = None,
    data_dir: Annotated[str | None, typer.Option(help="Data folder [env EPOCHD_DATA_DIR]")] = None,
) -> None:
    """Run the service and a worker in the foreground; Ctrl-C stops both."""
    given = {"EPOCHD_HOST": host, "EPOCHD_PORT": port, "EPOCHD_DATA_DIR": data_dir}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})
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
def version() -> None:
    """Say which version this is."""
    typer.echo(f"epochd {installed_version('epochd')}")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
