"""New jobs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import specs
from .command import Cli, command
from .ending import Exit, Stop
from .following import follow
from .naming import JobArgument, label
from .specs import SetOption
from .text import number, size

if TYPE_CHECKING:
    from worker.jobs.plan import Plan

    from service.client import Job

app = typer.Typer()

NameOption = Annotated[str | None, typer.Option(help="A name for people")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be repeated")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Stay, and show how it gets on, until it has ended")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Submit nothing; say what the job would be")]


@command(app)
def submit(
    cli: Cli,
    spec: Annotated[
        str | None,
        typer.Argument(help="A file of YAML or JSON, - for standard input, or a name of `epochd specs`; none: {}"),
    ] = None,
    settings: SetOption = None,
    name: NameOption = None,
    labels: LabelOption = None,
    dry_run: DryRunOption = False,
    follow_it: FollowOption = False,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Your name for this request: sent again, it is the same job")
    ] = None,
) -> None:
    """Launch a training. In a pipe the answer is the job's id."""
    body = _labelled(specs.changed(specs.read(spec), settings), name, labels)
    _submit(cli, body, dry_run=dry_run, follow_it=follow_it, idempotency_key=idempotency_key)


@command(app)
def clone(
    cli: Cli,
    job: JobArgument,
    settings: SetOption = None,
    name: NameOption = None,
    labels: LabelOption = None,
    dry_run: DryRunOption = False,
    follow_it: FollowOption = False,
) -> None:
    """Launch a training with another job's spec, but for what you --set.

    A part that gets another name, as by --set model.name=cnn, begins with that one's defaults.
    """
    from service.client.of_jobs import begun_anew

    was = cli.client.job(cli.job_id(job)).refresh().spec
    renamed = specs.changed({}, [each for each in settings or [] if each.partition("=")[0].strip().endswith(".name")])
    body = _labelled(specs.changed(begun_anew(was, renamed), settings), name, labels)
    _submit(cli, body, dry_run=dry_run, follow_it=follow_it)


def _submit(
    cli: Cli, body: dict[str, Any], *, dry_run: bool, follow_it: bool, idempotency_key: str | None = None
) -> None:
    if dry_run:
        _show_plan(cli, cli.client.plan(body))
        return
    try:
        job = cli.client.submit(body, idempotency_key=idempotency_key)
    except ValueError as error:
        raise Stop(Exit.USAGE, f"--idempotency-key: {error}") from error
    cli.is_following = follow_it
    if cli.screen.as_json:
        cli.screen.json(job.body)
    elif not cli.screen.is_terminal:
        cli.screen.line(job.id)
    else:
        cli.screen.line(f"Submitted {job.id}" + (f" ({job.name})" if job.name else ""))
    if follow_it:
        follow(cli, job)
    elif cli.screen.is_terminal:
        _say_where_it_stands(cli, job)


def _say_where_it_stands(cli: Cli, job: "Job") -> None:
    queue = getattr(job.body, "queue", None)
    if queue is not None:
        cli.screen.line(f"Number {queue.position} in the queue. {queue.reason}")
    cli.screen.line(f"To see how it gets on: {cli.hint('watch', job.id)}")


def _labelled(spec: dict[str, Any], name: str | None, labels: list[str] | None) -> dict[str, Any]:
    if name is not None:
        spec["name"] = name
    for key, value in map(label, labels or []):
        spec["labels"] = {**(spec.get("labels") or {}), key: value}
    return spec


def _show_plan(cli: Cli, plan: "Plan") -> None:
    if cli.screen.as_json:
        cli.screen.json(plan)
        return
    facts = [
        ("dataset", plan.spec.dataset.name),
        ("model", f"{plan.spec.model.name}, {plan.parameters:,} weights"),
        ("steps", f"{plan.steps:,} ({plan.spec.epochs} epochs of {plan.steps_per_epoch:,})"),
        ("pictures at once", number(plan.micro_batch)),
        ("memory", f"about {size(plan.memory.peak_bytes)} of {size(plan.available_bytes)}"),
        ("a checkpoint", size(plan.checkpoint_bytes)),
    ]
    if plan.fitting_micro_batch is not None and plan.fitting_micro_batch < plan.micro_batch:
        facts.append(("expected to fit", f"{plan.fitting_micro_batch} pictures at once; batches will be divided"))
    cli.screen.facts(facts)
