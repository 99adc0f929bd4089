"""A process that is killed, at whatever step, leaves sinks that a reader finds right, and the next one goes on."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from service.sinks import durable
from service.sinks.csv_files import CsvFiles
from service.sinks.pump import Pump
from service.sinks.sink import Sink
from tests.service.test_sinks import CSV, rewind, table, turn, wanted
from tests.worker.jobs.making import finish, record, running
from worker.jobs import files, queue, sinks
from worker.jobs.db import Database
from worker.jobs.states import Outcome, SinkKind
from worker.jobs.tables import Job


class Killed(BaseException):
    """The process ends here."""


class Patches:
    """Counts what a sink does that a kill may come before, and kills before one of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int, steps: Iterable[tuple[Any, str]]) -> None:
        self._at, self.steps = at, 0
        for owner, name in (*steps, (sinks, "begin"), (sinks, "record")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self.steps += 1
            if self.steps == self._at:
                raise Killed
            return call(*arguments, **more)

        return counted


ON_DISK = ((os, "fsync"), (Path, "rename"), (Path, "unlink"), (durable, "append"), (files, "fsync"))


def kill_everywhere(
    db: Database,
    make: Callable[[], Sink],
    check: Callable[[Job, bool], None],
    kind: SinkKind = CSV,
    steps: Iterable[tuple[Any, str]] = ON_DISK,
) -> int:
    """Kills at each step of a job that is begun, goes on, goes back, and ends. `check` is told whether it was killed
    just now. Returns how often it was killed.
    """
    kills = 0
    for later in (begin, record_two, go_back, end):
        at = 0
        while True:
            at += 1
            job = running(db, epochs=9)
            for epoch in (1, 2, 3):
                record(db, job, epoch)
            sink = make()
            kept = Pump(kind, db, lambda sink=sink: sink)  # type: ignore[misc]
            if later is not begin:
                kept.turn(Event())
            later(db, job)
            with pytest.MonkeyPatch.context() as monkeypatch:
                patches = Patches(monkeypatch, at, steps)
                try:
                    kept.turn(Event())
                except Killed:
                    kills += 1
            check(job, patches.steps >= at)
            turn(db, make(), kind)
            check(job, False)
            if later is not end:
                finish(db, queue.get(db, job.id), Outcome.SUCCEEDED)
            turn(db, make(), kind)
            if patches.steps < at:
                break
    return kills


def begin(db: Database, job: Job) -> None:
    """The sink has not heard of it."""


def record_two(db: Database, job: Job) -> None:
    record(db, job, 4)
    record(db, job, 5)


def go_back(db: Database, job: Job) -> None:
    record(db, rewind(db, job, 1), 2, train_loss=9.0)


def end(db: Database, job: Job) -> None:
    record(db, job, 4)
    finish(db, job, Outcome.SUCCEEDED)


def test_a_kill_at_any_step_loses_and_doubles_nothing(db: Database, tmp_path: Path) -> None:
    folder = tmp_path / "csv"

    def check(job: Job, was_killed: bool) -> None:
        if was_killed and not (folder / f"{job.id}.csv").exists():
            return
        text = table(folder, job)
        if not was_killed:
            assert text == wanted(db, job)
            assert not list(folder.glob(".*"))
        epochs = [line.split(",")[1] for line in text.splitlines()[1:]]
        assert len(epochs) == len(set(epochs)) >= 2 - was_killed

    assert kill_everywhere(db, lambda: CsvFiles(folder, 0), check) > 8
