"""Sweeps: many jobs of one spec, some of whose fields vary."""

import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from . import specs
from .command import Cli, command
from .ending import Exit, Stop
from .following import patiently
from .naming import SweepArgument
from .screen import Cell, Styled, status
from .specs import SweepSetOption
from .text import moment, number, plain, short

if TYPE_CHECKING:
    from service.bodies.sweeps import SweepBody, SweepPlan, TrialBody

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Sweeps: list, look, stay, cancel, delete.")

_LOOK_SECONDS: Final = 1.0


@command(app)
def sweep(
    cli: Cli,
    form: Annotated[str, typer.Argument(help="A file of YAML or JSON, or - for standard input")],
    settings: SweepSetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Launch nothing; say which trials there would be")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until all trials have ended")] = False,
) -> None:
    """Launch many trainings of one spec, some of whose fields vary."""
    body = specs.changed_sweep(specs.read(form), settings)
    if dry_run:
        _plan(cli, cli.client.plan_sweep(body))
        return
    made = cli.client.sweep(body)
    cli.is_following = follow
    if cli.screen.as_json:
        cli.screen.json(made)
    else:
        cli.screen.line(
            *((f"Launched sweep {made.id} of {len(made.trials)} trials",) if cli.screen.is_terminal else (made.id,))
        )
    if follow:
        _follow(cli, made)


@command(group, "list")
def show_all(cli: Cli, limit: Annotated[int, typer.Option(min=1, help="At most so many")] = 20) -> None:
    """List sweeps, newest first."""
    found = list(islice(cli.client.sweeps(), limit))
    if cli.screen.as_json:
        cli.screen.json(found)
        return
    rows: list[list[Cell]] = [
        [
            short(each.id) if cli.screen.is_terminal else each.id,
            each.name or "",
            status(each.status),
            each.search,
            ", ".join(f"{count} {name}" for name, count in each.counts.items() if count),
            moment(each.created_at),
        ]
        for each in found
    ]
    cli.screen.table(("id", "name", "status", "search", "trials", "made"), rows)


@command(group)
def show(cli: Cli, sweep: SweepArgument) -> None:
    """Look at a sweep: its trials, and which is the best."""
    _show(cli, cli.client.show_sweep(cli.sweep_id(sweep)))


@command(group)
def watch(cli: Cli, sweep: SweepArgument) -> None:
    """Show how its trials get on, until all have ended. Ctrl-C leaves them alone."""
    _follow(cli, cli.client.show_sweep(cli.sweep_id(sweep)))


@command(group)
def cancel(
    cli: Cli,
    sweep: SweepArgument,
    now: Annotated[bool, typer.Option("--now", help="Kill them; nothing is saved")] = False,
) -> None:
    """Cancel every trial that has not ended."""
    found = cli.client.cancel_sweep(cli.sweep_id(sweep), "now" if now else "save")
    if cli.screen.as_json:
        cli.screen.json(found)
    else:
        cli.screen.line(found.id, status(found.status))


@command(group)
def delete(cli: Cli, sweep: SweepArgument) -> None:
    """Delete a sweep whose trials have ended, with all their files."""
    sweep_id = cli.sweep_id(sweep)
    cli.client.delete_sweep(sweep_id)
    if cli.screen.as_json:
        cli.screen.json({"deleted": sweep_id})
    else:
        cli.screen.line(sweep_id, "is deleted")


def _follow(cli: Cli, found: "SweepBody") -> None:
    """A line for each trial that gets on, at the end all of them. Raises Stop when it was cancelled, and when none has
    succeeded.
    """
    cli.is_following = True
    told: dict[int, tuple[str, int]] = {}
    sweep_id = found.id
    try:
        while True:
            for trial in found.trials:
                if told.get(trial.trial, ("queued", 0)) != (trial.status, trial.epoch):
                    told[trial.trial] = (trial.status, trial.epoch)
                    _told(cli, found, trial)
            if found.finished_at is not None:
                break
            time.sleep(_LOOK_SECONDS)
            found = patiently(cli, lambda: cli.client.show_sweep(sweep_id))
    except KeyboardInterrupt:
        sentence = f"The sweep goes on without you. To come back: {cli.hint('sweeps watch', sweep_id)}"
        raise Stop(Exit.INTERRUPTED, sentence) from None
    _show(cli, found)
    ends = {trial.status for trial in found.trials}
    if found.status == "cancelled" or ends == {"cancelled"}:
        raise Stop(
            Exit.CANCELLED, "The sweep was cancelled." if found.status == "cancelled" else "All trials were cancelled."
        )
    if "succeeded" not in ends:
        raise Stop(Exit.REFUSED, "No trial has succeeded.")


def _told(cli: Cli, sweep: "SweepBody", trial: "TrialBody") -> None:
    if cli.screen.as_json:
        cli.screen.json(trial)
        return
    value = f"{sweep.metric} {number(trial.value)}" if trial.value is not None else ""
    cells: list[Cell] = [f"trial {trial.trial}", status(trial.status), f"epoch {trial.epoch}/{trial.epochs}", value]
    cli.screen.line(*cells, _parameters(trial.parameters))


def _show(cli: Cli, sweep: "SweepBody") -> None:
    if cli.screen.as_json:
        cli.screen.json(sweep)
        return
    names = list(dict.fromkeys(name for trial in sweep.trials for name in trial.parameters))
    rows: list[list[Cell]] = [
        [
            Styled(f"{trial.trial} *", "bold")
            if sweep.best and trial.trial == sweep.best.trial
            else f"{trial.trial}  ",
            short(trial.job) if cli.screen.is_terminal else trial.job,
            status(trial.status),
            f"{trial.epoch}/{trial.epochs}",
            number(trial.value),
            number(trial.last),
            *(plain(trial.parameters.get(name)) for name in names),
        ]
        for trial in sweep.trials
    ]
    cli.screen.line(sweep.id, sweep.name or "", status(sweep.status))
    columns = ("trial", "job", "status", "epoch", f"best {sweep.metric}", "last", *names)
    cli.screen.table(columns, rows, right=("trial", "epoch", columns[4], "last", *names))
    if sweep.best:
        best = sweep.best
        cli.screen.line(
            f"Best: trial {best.trial}, {sweep.metric} {number(best.value)}, {_parameters(best.parameters)}"
        )


def _plan(cli: Cli, plan: "SweepPlan") -> None:
    if cli.screen.as_json:
        cli.screen.json(plan)
        return
    cli.screen.table(("trial", "parameters"), [(str(each.trial), _parameters(each.parameters)) for each in plan.trials])
    for each in plan.rungs:
        cli.screen.line(f"{each.trials} trials are trained for {each.epochs} epochs")


def _parameters(parameters: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={plain(value)}" for name, value in parameters.items())
