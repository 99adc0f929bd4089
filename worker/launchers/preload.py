"""What the preloaded process does before it forks attempts: import the expensive parts, compute nothing.

A child forked from a process that has more than one thread, or that ever ran a parallel operation, can hang for
ever (pytorch/pytorch#17199), and one forked after CUDA was touched cannot use it. So this module imports, builds
one optimizer (which imports more), and refuses to be the parent of anything if a second thread appeared.
"""

import torch

import worker.datasets.attempt
import worker.training.attempt  # noqa: F401
from worker.jobs.processes import die_with_parent, thread_count


def warm_up() -> None:
    """Raises RuntimeError when this process must not fork."""
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters(), lr=0.1)
    if (threads := thread_count("self")) != 1:
        raise RuntimeError(f"the preloaded process has {threads} threads: its children could hang")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise RuntimeError("the preloaded process has touched CUDA: its children could not use it")


die_with_parent()
warm_up()
