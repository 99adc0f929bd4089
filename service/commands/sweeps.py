"""Sweeps: many jobs of one spec, some of whose fields vary."""

import time
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from . import specs
from .command import Cli, Exit, Stop, command
from .following import patiently
from .screen import Cell, Styled, status
from .specs import SetOption
from .text import moment, number, plain, short

if TYPE_CHECKING:
    from service.bodies.sweeps import SweepBody, SweepPlan, TrialBody

app = typer.Typer()
group = typer.Typer(no_args_is_help=True, help="Sweeps: list, look, cancel.")

_LOOK_SECONDS: Final = 1.0
SweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", help="A sweep's id, the end of one if no other ends so, or: last")
]


@command(app)
def sweep(
    cli: Cli,
    form: Annotated[str, typer.Argument(help="A file of YAML or JSON, or - for standard input")],
    settings: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Launch nothing; say which trials there would be")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until all trials have ended")] = False,
) -> None:
    """Launch many trainings of one spec, some of whose fields vary."""
    body = specs.changed(specs.read(form), settings)
    if dry_run:
        _plan(cli, cli.client.plan_sweep(body))
        return
    made = cli.client.sweep(body)
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
    _show(cli, cli.client.show_sweep(_id(cli, sweep)))


@command(group)
def cancel(cli: Cli, sweep: SweepArgument) -> None:
    """Cancel every trial that has not ended."""
    found = cli.client.cancel_sweep(_id(cli, sweep))
    if cli.screen.as_json:
        cli.screen.json(found)
    else:
        cli.screen.line(found.id, status(found.status))


def _id(cli: Cli, given: str) -> str:
    """The id that was meant. Raises Stop where that is unclear."""
    if len(given) == 24:
        return given
    found = [each.id for each in cli.client.sweeps() if given == "last" or each.id.endswith(given.lower())]
    if not found:
        raise Stop(Exit.NOT_FOUND, f"No sweep's id ends in {given}." if given != "last" else "There is no sweep yet.")
    if given != "last" and len(found) > 1:
        raise Stop(Exit.USAGE, f"{len(found)} sweeps' ids end in {given}.")
    return found[0]


def _follow(cli: Cli, found: "SweepBody") -> None:
    """A line for each trial that gets on, at the end all of them. Raises Stop when it was cancelled, or all failed."""
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
        sentence = f"The sweep goes on without you. To look at it: {cli.hint('sweeps show', found.id)}"
        raise Stop(Exit.INTERRUPTED, sentence) from None
    _show(cli, found)
    if found.status == "cancelled":
        raise Stop(Exit.CANCELLED, "The sweep was cancelled.")
    if found.trials and all(trial.status == "failed" for trial in found.trials):
        raise Stop(Exit.REFUSED, "All trials have failed.")


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
