"""What a job's attempts have logged."""

import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import typer

from .command import Cli, command
from .ending import Exit, Stop
from .following import patiently
from .naming import JobArgument

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
    """Until the job has ended, one attempt after the other; of one attempt, until that has."""
    cli.is_following = True
    try:
        page = patiently(cli, partial(job.logs_page, 0, attempt))
        while True:
            for line in page.data:
                cli.screen.json({"attempt": page.attempt, "line": line}) if cli.screen.as_json else cli.screen.line(
                    line
                )
            following = None
            if page.terminal or not page.attempt:  # 0: none has begun
                if attempt is not None:
                    return
                newest = patiently(cli, job.refresh)
                following = min((each.number for each in newest.attempts if each.number > page.attempt), default=None)
                if following is None and newest.finished_at is not None:
                    return
            if following is not None:
                page = patiently(cli, partial(job.logs_page, 0, following))
                continue
            if not page.data:
                time.sleep(_LOOK_SECONDS)
            if page.attempt:
                page = patiently(cli, partial(job.logs_page, page.next_since, page.attempt))
    except KeyboardInterrupt:
        raise Stop(Exit.INTERRUPTED, f"To come back: {cli.hint('logs -f', job.id)}") from None
