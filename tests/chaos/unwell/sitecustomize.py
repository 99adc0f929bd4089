"""For `test_poison.py`: an epochd whose trainings do what the name of their job says, behind their first batch."""

import ctypes
import time
from types import ModuleType
from typing import Any

from tests.chaos.patching import after_import


def _segfault(reporter: Any) -> None:
    ctypes.string_at(0)


def _hang(reporter: Any) -> None:
    while reporter._attempt == 1:
        time.sleep(1)


def _hang_with_lock(reporter: Any) -> None:
    with reporter._db.write() as session:
        session.connection()  # begins the transaction, and so takes the lock
        _hang(reporter)


_UNWELL = {"segfaults": _segfault, "hangs": _hang, "hangs with the database's lock": _hang_with_lock}


def _make_unwell(progress: ModuleType) -> None:
    between_batches = progress.Reporter._between_batches

    def and_then(reporter: Any) -> None:
        between_batches(reporter)
        from worker.jobs import queue

        name = queue.get(reporter._db, reporter._job_id).name
        if name in _UNWELL:
            _UNWELL[name](reporter)

    progress.Reporter._between_batches = and_then


after_import("worker.training.progress", _make_unwell)
