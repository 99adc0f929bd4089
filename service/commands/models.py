"""Aliases: names that answer instead of a job."""

from typing import TYPE_CHECKING, Annotated

import typer

from .command import Cli, command
from .naming import JobArgument
from .screen import Cell
from .text import moment, short

if TYPE_CHECKING:
    from service.bodies.models import AliasBody

app = typer.Typer(no_args_is_help=True, help="Aliases: names that point at a checkpoint.")

NameArgument = Annotated[str, typer.Argument(help="The alias; default answers whoever names none")]


@command(app, "list")
def show_all(cli: Cli) -> None:
    """List aliases and what they point at."""
    found = cli.client.models()
    if cli.screen.as_json:
        cli.screen.json(found)
        return
    columns = ("name", "job", "epoch", "version", "since")
    cli.screen.table(columns, [_line(cli, each) for each in found], right=("epoch", "version"))


@command(app, "set")
def point(
    cli: Cli,
    name: NameArgument,
    job: JobArgument,
    checkpoint: Annotated[str, typer.Option(help="best, last or an epoch, as it is now")] = "best",
) -> None:
    """Point an alias at a job's checkpoint."""
    _told(cli, cli.client.set_alias(name, cli.job_id(job), checkpoint))


@command(app)
def rollback(cli: Cli, name: NameArgument) -> None:
    """Point an alias at what it pointed at before."""
    _told(cli, cli.client.rollback_alias(name))


@command(app)
def delete(cli: Cli, name: NameArgument) -> None:
    """Delete an alias. What it points at stays."""
    cli.client.delete_alias(name)
    if cli.screen.as_json:
        cli.screen.json({"deleted": name})
    else:
        cli.screen.line(name, "is deleted")


def _told(cli: Cli, alias: "AliasBody") -> None:
    if cli.screen.as_json:
        cli.screen.json(alias)
    else:
        cli.screen.line(alias.name, "points at", alias.job, f"epoch {alias.checkpoint.epoch}")


def _line(cli: Cli, alias: "AliasBody") -> list[Cell]:
    job = short(alias.job) if cli.screen.is_terminal else alias.job
    return [alias.name, job, str(alias.checkpoint.epoch), str(alias.version), moment(alias.updated_at)]
