"""While a training runs, what answers requests has a lower priority than it.

The threads of a training wait for each other, thousands of times a second: one that is kept from its core stops them
all. Under a load of predictions an epoch took 20 to 50 times as long without this, and 1.5 times with it.
"""

import asyncio
import os
from typing import Final

import structlog
from starlette.concurrency import run_in_threadpool
from worker.jobs import queue
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.processes import set_niceness

from .predictor import Predictor

_NICENESS: Final = 10
_LOOK_SECONDS: Final = 1.0
_log = structlog.get_logger()


async def give_way(db: Database, predictor: Predictor) -> None:
    """Sets the priority of this process and of the predictors, as trainings come and go. Until cancelled."""
    ours = [os.getpid()] if os.getsid(0) == os.getpid() else []  # else others would be made to wait too
    set_to: dict[int, int] = {}
    while True:
        try:
            niceness = _NICENESS if await run_in_threadpool(queue.is_any_owned, db) else 0
            now = dict.fromkeys((*ours, *predictor.pids), niceness)
            for pid in now:
                if set_to.get(pid, 0) != niceness:
                    set_niceness(pid, niceness)
            set_to = now
        except DATABASE_AWAY:
            _log.warning("priority_unknown")
        await asyncio.sleep(_LOOK_SECONDS)
