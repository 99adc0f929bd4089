"""What the preloaded process does before it forks attempts: import the expensive parts, compute nothing.

A child forked from a process that has more than one thread, or that ever ran a parallel operation, can hang for
ever (pytorch/pytorch#17199), and one forked after CUDA was touched cannot use it. So this module imports, builds
one optimizer (which imports more), and refuses to be the parent of anything if a second thread appeared.
"""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from sqlalchemy.exc import DBAPIError

import worker.datasets.attempt
import worker.training.attempt  # noqa: F401
from worker.jobs import queue
from worker.jobs.db import Database
from worker.jobs.errors import NotFound
from worker.jobs.ids import new_id
from worker.jobs.processes import die_with_parent, thread_count


def warm_up() -> None:
    """Raises RuntimeError when this process must not fork."""
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    _ask_a_database()
    if (threads := thread_count("self")) != 1:
        raise RuntimeError(f"the preloaded process has {threads} threads: its children could hang")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise RuntimeError("the preloaded process has touched CUDA: its children could not use it")


def _ask_a_database() -> None:
    """SQLAlchemy takes 20 ms to prepare for the first question of a process; now each attempt inherits that."""
    with TemporaryDirectory() as folder:
        db = Database(f"sqlite:///{Path(folder, 'empty.db')}")
        with suppress(DBAPIError, NotFound):  # it has no tables
            queue.get(db, new_id())
        db.close()


die_with_parent()
warm_up()
