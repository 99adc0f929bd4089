"""The `epochd` command: what `commands/` has, put together."""

import importlib
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from .commands import (
    comparing,
    daemons,
    datasets,
    following,
    jobs,
    logs,
    metrics,
    models,
    predicting,
    specs,
    submitting,
    sweeps,
)

# They talk to the database, and what that takes to load is not wanted where nobody asks for them.
_LATER: Final = {"admin": "service.admin", "keys": "service.keys"}
_EXIT_CODES: Final = """\
Exit codes: 0 fine; 1 the service refused, or the job that was followed has failed; 2 wrong usage, or a file that cannot
be read; 3 no service answers; 4 there is no such thing; 5 the job that was followed was cancelled; 130 Ctrl-C; 141
nobody reads on what is followed."""
_WHERE: Final = """\
The service is looked for at EPOCHD_URL, else at http://127.0.0.1 and EPOCHD_PORT, with the key in EPOCHD_API_KEY."""


class _Commands(TyperGroup):
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, found, rest = super().resolve_command(ctx, args)
        if name in _LATER:
            found = typer.main.get_command(importlib.import_module(_LATER[name]).app)
            found.name = name
        return name, found, rest


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Trains image models for whoever asks over HTTP.",
    epilog=f"{_WHERE}\n\n{_EXIT_CODES}",
)


@app.callback()
def everywhere(
    url: Annotated[str | None, typer.Option(help="Where the service is; every command takes it too")] = None,
    key: Annotated[str | None, typer.Option(help="API key; every command takes it too")] = None,
) -> None:
    """Trains image models for whoever asks over HTTP."""


for _room in (daemons, submitting, following, jobs, logs, metrics, predicting, sweeps, comparing, specs):
    app.registered_commands += _room.app.registered_commands
app.add_typer(sweeps.group, name="sweeps")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(typer.Typer(help="Make, list and revoke API keys. With the first, the service is closed."), name="keys")
app.add_typer(typer.Typer(help="Look after the data folder and the database."), name="admin")


def main() -> None:
    app()


if __name__ == "__main__":
    main()
