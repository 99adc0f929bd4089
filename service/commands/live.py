"""A job on a terminal: its epochs one below the other, and a bar."""

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from .following import BACK, LOST, aligned, heading
from .screen import STYLES, Screen
from .text import clean, duration, short

if TYPE_CHECKING:
    from service.bodies.jobs import JobBody
    from service.bodies.metrics import MetricsRow
    from service.client import StatusChange


class _Left(ProgressColumn):
    """How long it will take, as far as can be told from how long it took."""

    max_refresh = 1.0

    def render(self, task: Task) -> Text:
        left = task.time_remaining
        return Text(f"{duration(left)} left" if left is not None and not task.finished else "")


class Live:
    def __init__(self, screen: Screen, job: "JobBody") -> None:
        self._epochs = int(job.spec["epochs"])
        self._is_titled = False
        self._name = clean(job.name or short(job.id))
        self._console: Console = screen.console
        columns: Any = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[at]}", markup=False),
            _Left(),
        )
        self._progress = Progress(*columns, console=self._console, transient=True, expand=True)
        # How many batches there are is known when the first is done.
        self._task = self._progress.add_task(self._title(job.status, None), total=None, at="", start=False)
        self._progress.start()

    def row(self, row: "MetricsRow") -> None:
        if not self._is_titled:
            self._console.print(Text(heading(row), style="bold"), soft_wrap=True)
            self._is_titled = True
        self._console.print(Text(aligned(row)), soft_wrap=True)

    def change(self, change: "StatusChange") -> None:
        at, batches = change.progress, change.progress.batches
        description = self._title(change.status, change.phase)
        if not batches:
            self._progress.update(self._task, description=description)
            return
        done = max(at.epoch - 1, 0) * batches + at.batch
        total = self._epochs * batches
        if not self._progress.tasks[0].started:
            self._progress.start_task(self._task)
            self._progress.reset(self._task, total=total, completed=done)
        self._progress.update(
            self._task,
            description=description,
            total=total,
            completed=min(done, total),
            at=f"epoch {at.epoch}/{self._epochs}  batch {at.batch}/{batches}",
        )

    def lost(self) -> None:
        self._progress.update(self._task, description=f"{self._name}  waiting for the service")
        self._console.print(Text(LOST, style="yellow"), soft_wrap=True)

    def back(self) -> None:
        self._console.print(Text(BACK, style="green"), soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()

    def _title(self, status: str, phase: str | None) -> str:
        return f"{self._name}  {phase or status}" if status in STYLES or status == "queued" else self._name
