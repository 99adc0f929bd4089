"""Jobs beside each other."""

from typing import TYPE_CHECKING, Annotated

import typer

from .command import Cli, command
from .ending import Exit, Stop
from .screen import Cell, Styled, status
from .text import number, plain, short

if TYPE_CHECKING:
    from service.bodies.compare import ComparisonBody, DifferenceBody

app = typer.Typer()


@command(app)
def compare(
    cli: Cli, jobs: Annotated[list[str], typer.Argument(metavar="JOB JOB...", help="Changes are against the first")]
) -> None:
    """Show what differs between jobs, and whether it made a difference."""
    if len(jobs) < 2:
        raise Stop(Exit.USAGE, "Name at least two jobs.")
    found = cli.client.compare(*(cli.job_id(each) for each in jobs))
    if cli.screen.as_json:
        cli.screen.json(found)
        return
    _results(cli, found)
    _differences(cli, "spec", found.spec, found)
    _differences(cli, "provenance", found.provenance, found)
    _classes(cli, found)
    for pair in found.pairs:
        first, second = _called(found, pair.first), _called(found, pair.second)
        cli.screen.line(f"{first} and {second}:", Styled(pair.verdict, "bold"))


def _called(found: "ComparisonBody", job_id: str) -> str:
    name = next((each.name for each in found.jobs if each.id == job_id), None)
    return f"{name} ({short(job_id)})" if name else short(job_id)


def _results(cli: Cli, found: "ComparisonBody") -> None:
    names = list(dict.fromkeys(name for job in found.jobs for name in job.metrics))
    rows: list[list[Cell]] = [
        [
            _called(found, job.id) if cli.screen.is_terminal else job.id,
            status(job.status),
            number(job.epoch),
            *(number(job.metrics[name].best) if name in job.metrics else "-" for name in names),
        ]
        for job in found.jobs
    ]
    best = [f"best {name}" for name in names]
    cli.screen.table(("job", "status", "epoch", *best), rows, right=("epoch", *best))


def _differences(cli: Cli, what: str, differences: "list[DifferenceBody]", found: "ComparisonBody") -> None:
    if not differences:
        return
    ids = [job.id for job in found.jobs]
    rows = [
        [f"{what} {each.pointer}", *(plain(each.values[job]) if job in each.values else "-" for job in ids)]
        for each in differences
    ]
    cli.screen.table((f"{what} differs", *(_called(found, job) for job in ids)), rows)


def _classes(cli: Cli, found: "ComparisonBody") -> None:
    """Each class's F1, and how it has changed."""
    ids = [job.id for job in found.jobs]
    rows: list[list[Cell]] = []
    for each in found.classes:
        cells: list[Cell] = [f"class {each.label}"]
        for job in ids:
            of_job = each.jobs.get(job)
            change = of_job.f1_change if of_job and job != ids[0] else None
            style = "green" if change and change > 0 else "red" if change and change < 0 else ""
            by = f" ({change:+.4f})" if change is not None else ""
            cells.append(Styled(f"{number(of_job.f1 if of_job else None)}{by}", style))
        rows.append(cells)
    if rows:
        cli.screen.table(("F1 by class", *(_called(found, job) for job in ids)), rows)
