"""Staying with a job until it has ended: on a terminal with a bar, in a pipe line by line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import typer

from .command import Cli, command
from .ending import Exit, Stop
from .naming import JobArgument
from .screen import Screen, Styled, status
from .text import clean, duration, number

if TYPE_CHECKING:
    from service.bodies.jobs import JobBody
    from service.bodies.metrics import MetricsRow
    from service.client import Job, StatusChange

app = typer.Typer()
T = TypeVar("T")

SHOWN: Final = (
    "train_loss",
    "test_loss",
    "test_accuracy",
    "test_mae",
    "test_r2",
    "learning_rate",
    "samples_per_second",
)
_WIDTHS: Final = {"learning_rate": 13, "samples_per_second": 10}
_TITLES: Final = {"samples_per_second": "pictures/s"}
_AWAY: Final = frozenset({502, 503, 504})
_AGAIN_SECONDS: Final = 1.0
LOST: Final = "The service does not answer. The job does not mind; trying again until it does."
BACK: Final = "The service is back. Nothing was missed."


@command(app)
def watch(cli: Cli, job: JobArgument) -> None:
    """Show how a job gets on, until it has ended. Ctrl-C leaves it alone."""
    follow(cli, cli.client.job(cli.job_id(job)))


class View(Protocol):
    def row(self, row: "MetricsRow") -> None: ...

    def change(self, change: "StatusChange") -> None: ...

    def lost(self) -> None: ...

    def back(self) -> None: ...

    def close(self) -> None: ...


def follow(cli: Cli, job: "Job") -> None:
    """Raises Stop when it has not succeeded, and on Ctrl-C."""
    cli.is_following = True
    try:
        with _viewed(cli, job) as view:
            _show_events(job, view)
        ended = patiently(cli, job.refresh)
    except KeyboardInterrupt:
        sentence = f"The job goes on without you. To come back: {cli.hint('watch', job.id)}"
        raise Stop(Exit.INTERRUPTED, sentence) from None
    _conclude(cli, ended)


def _show_events(job: "Job", view: View) -> None:
    from service.client import Back, Lost, StatusChange

    for event in job.events():
        if isinstance(event, StatusChange):
            view.change(event)
        elif isinstance(event, Lost):
            view.lost()
        elif isinstance(event, Back):
            view.back()
        else:
            view.row(event)


@contextmanager
def _viewed(cli: Cli, job: "Job") -> Iterator[View]:
    view: View
    if cli.screen.as_json:
        view = _Json(cli.screen)
    elif cli.screen.is_terminal:
        from .live import Live

        view = Live(cli.screen, patiently(cli, job.refresh))
    else:
        view = _Plain(cli.screen)
    try:
        yield view
    finally:
        view.close()


def _conclude(cli: Cli, job: "JobBody") -> None:
    """How it has ended. Raises Stop unless it has succeeded."""
    if cli.screen.as_json:
        cli.screen.json(job)
    else:
        took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
        cli.screen.line(status(job.status), *([f"after {duration(took)}"] if took is not None else []))
    if job.status == "failed":
        why = f"{job.error.message} {job.error.hint or ''}".strip() if job.error else "It does not say why."
        suggested = job.error is not None and job.error.suggestion
        more = f"\nTo try what it suggests: {cli.hint('retry', job.id)} --apply-suggestion" if suggested else ""
        raise Stop(Exit.REFUSED, f"The job has failed. {clean(why)}{more}")
    if job.status == "cancelled":
        raise Stop(Exit.CANCELLED, "The job was cancelled.")


def patiently(cli: Cli, ask: Callable[[], T]) -> T:
    """What the service says, however long it is away; says so, once."""
    from service.client import ApiError, ConnectionLost, NoServer

    is_away = False
    while True:
        try:
            answer = ask()
        except (NoServer, ConnectionLost, ApiError) as error:
            if isinstance(error, ApiError) and error.status not in _AWAY:
                raise
            if not is_away:
                cli.screen.note(LOST)
            is_away = True
            time.sleep(_AGAIN_SECONDS)
        else:
            if is_away:
                cli.screen.note(BACK)
            return answer


def values(row: "MetricsRow") -> dict[str, Any]:
    """What is shown of an epoch: what there is for its kind of job."""
    found = {name: getattr(row, name) for name in SHOWN}
    always = ("train_loss", "test_loss")
    return {name: value for name, value in found.items() if value is not None or name in always}


def written(name: str, value: Any) -> str:
    if name == "samples_per_second":
        return f"{value:.0f}"
    return f"{value:.4g}" if name == "learning_rate" else number(value)


def heading(row: "MetricsRow") -> str:
    columns = [f"{_TITLES.get(name, name):>{_width(name)}}" for name in values(row)]
    return "  ".join([f"{'epoch':>5}", *columns])


def aligned(row: "MetricsRow") -> str:
    columns = [f"{written(name, value):>{_width(name)}}" for name, value in values(row).items()]
    return "  ".join([f"{row.epoch:>5}", *columns])


def _width(name: str) -> int:
    return max(_WIDTHS.get(name, 0), len(_TITLES.get(name, name)))


class _Json:
    """A line for each row; the job, whole, is the first (when it was submitted) and the last."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def row(self, row: "MetricsRow") -> None:
        self._screen.json(row)

    def change(self, change: "StatusChange") -> None:
        pass

    def lost(self) -> None:
        pass

    def back(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Plain:
    """A line for each row and for each status."""

    def __init__(self, screen: Screen) -> None:
        self._screen, self._status = screen, ""

    def row(self, row: "MetricsRow") -> None:
        parts = [f"{name} {written(name, value)}" for name, value in values(row).items()]
        self._screen.line("  ".join([f"epoch {row.epoch}", *parts]))

    def change(self, change: "StatusChange") -> None:
        told = f"{change.status} (attempt {change.attempt})" if change.attempt > 1 else change.status
        if told != self._status and change.status not in ("succeeded", "failed", "cancelled"):
            self._status = told
            self._screen.line(Styled(told, ""))

    def lost(self) -> None:
        self._screen.note(LOST)

    def back(self) -> None:
        self._screen.note(BACK)

    def close(self) -> None:
        pass
