"""What a job's attempts have logged."""

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .command import Cli, Exit, JobArgument, Stop, command
from .following import patiently

if TYPE_CHECKING:
    from service.client import Job

app = typer.Typer()

_LOOK_SECONDS: Final = 1.0


@command(app)
def logs(
    cli: Cli,
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay for what is yet to come")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; unset: the newest")] = None,
) -> None:
    """Show what a job's attempt has logged."""
    found = cli.client.job(cli.job_id(job))
    if not follow:
        lines = found.logs(attempt)
        if cli.screen.as_json:
            cli.screen.json(lines)
        for line in lines if not cli.screen.as_json else ():
            cli.screen.line(line)
        return
    _follow_logs(cli, found, attempt)


def _follow_logs(cli: Cli, job: "Job", attempt: int | None) -> None:
    """Until the job has ended; of one attempt, until that has."""
    since, shown = 0, attempt
    try:
        while True:
            page = patiently(cli, partial(job.logs_page, since, shown))
            if shown is None and page.attempt:
                shown = page.attempt
            for line in page.data:
                cli.screen.json({"attempt": page.attempt, "line": line}) if cli.screen.as_json else cli.screen.line(
                    line
                )
            since = page.next_since
            if page.data:
                continue
            if page.terminal:
                newest = patiently(cli, job.refresh)
                if attempt is not None or newest.finished_at is not None:
                    return
                if newest.attempt != shown:
                    since, shown = 0, newest.attempt
                    continue
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        raise Stop(Exit.INTERRUPTED, f"To come back: {cli.hint('logs -f', job.id)}") from None
