"""Jobs: list them, look at one, and what can be done with it."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from worker.jobs.states import Status

from .command import Cli, command
from .naming import JobArgument, label
from .screen import Cell, Styled, status
from .text import ago, clean, duration, moment, number, plain, short, size

if TYPE_CHECKING:
    from service.bodies.jobs import JobBody, JobSummary
    from service.client import Job

app = typer.Typer()

_COLUMNS: Final = ("id", "name", "status", "epoch", "made", "took")


@command(app)
def jobs(
    cli: Cli,
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status")] = None,
    labels: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Only jobs with this label")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="Only trials of this sweep: its id, the end of one, or: last")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many")] = 20,
    show_all: Annotated[bool, typer.Option("--all", help="However many there are")] = False,
) -> None:
    """List jobs, newest first."""
    wanted = dict(label(each) for each in labels or [])
    found = cli.client.jobs(status=status, labels=wanted, sweep=cli.sweep_id(sweep) if sweep else None)
    rows = [job.body for job in (found if show_all else islice(found, limit))]
    if cli.screen.as_json:
        cli.screen.json(rows)
        return
    lines = [_line(row, is_short=cli.screen.is_terminal) for row in rows]
    cli.screen.table(_COLUMNS, lines, right=("epoch", "took"))


@command(app)
def job(cli: Cli, job: JobArgument) -> None:
    """Look at a job."""
    found = cli.client.job(cli.job_id(job)).refresh()
    if cli.screen.as_json:
        cli.screen.json(found)
    else:
        cli.screen.facts(_facts(found))


@command(app)
def cancel(
    cli: Cli,
    job: JobArgument,
    now: Annotated[bool, typer.Option("--now", help="Kill it; nothing is saved")] = False,
) -> None:
    """Stop a job for good. What its finished epochs saved stays."""
    _told(cli, cli.client.job(cli.job_id(job)).cancel("now" if now else "save"))


@command(app)
def pause(cli: Cli, job: JobArgument) -> None:
    """Free a job's slot until it is resumed."""
    _told(cli, cli.client.job(cli.job_id(job)).pause())


@command(app)
def resume(cli: Cli, job: JobArgument) -> None:
    """Let a paused job go on."""
    _told(cli, cli.client.job(cli.job_id(job)).resume())


@command(app)
def retry(
    cli: Cli,
    job: JobArgument,
    apply_suggestion: Annotated[
        bool, typer.Option("--apply-suggestion", help="With what its error suggests; it may begin anew")
    ] = False,
) -> None:
    """Try a failed or cancelled job again, from its last checkpoint."""
    _told(cli, cli.client.job(cli.job_id(job)).retry(apply_suggestion))


@command(app)
def extend(
    cli: Cli, job: JobArgument, epochs: Annotated[int, typer.Argument(min=1, help="How many epochs more")]
) -> None:
    """Train a job that has succeeded for more epochs."""
    _told(cli, cli.client.job(cli.job_id(job)).extend(epochs))


@command(app)
def delete(cli: Cli, job: JobArgument) -> None:
    """Delete a job that has ended, with all its files."""
    found = cli.client.job(cli.job_id(job))
    found.delete()
    if cli.screen.as_json:
        cli.screen.json({"deleted": found.id})
    else:
        cli.screen.line(found.id, "is deleted")


@command(app)
def checkpoints(cli: Cli, job: JobArgument) -> None:
    """List a job's checkpoints, oldest first."""
    found = cli.client.job(cli.job_id(job)).checkpoints()
    if cli.screen.as_json:
        cli.screen.json(found)
        return
    rows: list[list[Cell]] = [
        [
            str(each.epoch),
            number(each.metrics.test_accuracy if each.metrics.test_accuracy is not None else each.metrics.test_loss),
            size(each.bytes),
            " ".join(name for name, is_so in (("best", each.is_best), ("last", each.is_last)) if is_so),
            each.sha256[:12] if cli.screen.is_terminal else each.sha256,
        ]
        for each in found
    ]
    is_regression = all(each.metrics.test_accuracy is None for each in found)
    measure = "test_loss" if is_regression else "test_accuracy"
    cli.screen.table(("epoch", measure, "size", "", "sha256"), rows, right=("epoch", measure, "size"))


@command(app)
def download(
    cli: Cli,
    job: JobArgument,
    checkpoint: Annotated[str, typer.Argument(help="best, last, or the number of an epoch")] = "best",
    output: Annotated[Path, typer.Option("--output", "-o", help="File, or folder for a name of its own")] = Path(),
    format: Annotated[  # noqa: A002
        Literal["safetensors", "pt2", "onnx", "bundle"], typer.Option(help="As what")
    ] = "safetensors",
) -> None:
    """Download a checkpoint."""
    where = cli.client.job(cli.job_id(job)).download(checkpoint, output, format)
    if cli.screen.as_json:
        cli.screen.json({"file": str(where), "bytes": where.stat().st_size})
    else:
        cli.screen.line(str(where), *([size(where.stat().st_size)] if cli.screen.is_terminal else []))


def _told(cli: Cli, job: "Job") -> None:
    if cli.screen.as_json:
        cli.screen.json(job.body)
    else:
        cli.screen.line(job.id, status(job.status))


def _line(row: "JobSummary", *, is_short: bool) -> list[Cell]:
    return [
        short(row.id) if is_short else row.id,
        row.name or "",
        status(row.status),
        str(row.progress.epoch),
        ago(row.created_at) if is_short else moment(row.created_at),
        duration(_seconds(row)),
    ]


def _seconds(row: "JobSummary") -> float | None:
    if row.started_at is None or row.finished_at is None:
        return None
    return (row.finished_at - row.started_at).total_seconds()


def _facts(job: "JobBody") -> list[tuple[str, Cell]]:
    at = job.progress
    facts: list[tuple[str, Cell]] = [
        ("id", job.id),
        ("name", job.name or "-"),
        ("status", Styled(f"{job.status}: {job.phase}", status(job.status).style) if job.phase else status(job.status)),
        ("epoch", f"{at.epoch} of {job.spec['epochs']}"),
        ("made", moment(job.created_at)),
        ("started", moment(job.started_at)),
        ("ended", moment(job.finished_at)),
    ]
    facts += [(f"label {name}", value) for name, value in job.labels.items()]
    if job.sweep:
        facts.append(("sweep", f"{job.sweep}, trial {job.trial}"))
    if job.queue:
        facts.append(("queue", f"number {job.queue.position}. {job.queue.reason}"))
    if at.eta_seconds is not None and job.finished_at is None:
        facts.append(("left", duration(at.eta_seconds)))
    facts += [
        ("attempt", f"{each.number}: {each.outcome or 'runs'}" + (f" ({each.error.message})" if each.error else ""))
        for each in job.attempts
    ]
    facts += [("event", f"epoch {each.epoch}: {each.detail}") for each in job.events]
    if job.error:
        facts += [("error", Styled(clean(job.error.message), "red")), ("try", job.error.hint or "-")]
        if job.error.suggestion:
            facts.append(("suggestion", plain(job.error.suggestion)))
    return facts + [
        (f"spec {name}", plain(value)) for name, value in job.spec.items() if name not in ("name", "labels")
    ]
