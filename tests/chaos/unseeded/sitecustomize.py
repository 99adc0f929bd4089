"""For the negative control of `test_sigkill.py`: an epochd whose seeds depend on what ran before in the process.

Uninterrupted trainings still repeat themselves; a training that goes on in another process does not.
"""

import itertools
from types import ModuleType

from tests.chaos.patching import after_import

_drawn = itertools.count(1)


def _count(order: ModuleType) -> None:
    order.derived_seed = lambda _seed, _epoch, _purpose: next(_drawn)  # type: ignore[attr-defined]


after_import("worker.training.order", _count)
