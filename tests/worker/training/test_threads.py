"""Threads of a training, each seen from inside a fresh process: another one has its own already."""

import json
import subprocess
import sys
from typing import Any

import pytest

from worker.jobs.processes import cores

PROGRAM = """
import json, os, sys, torch
from worker.training import threads
threads.use(int(sys.argv[1]))
torch.zeros(2**20).add_(1)
cores = [sorted(os.sched_getaffinity(int(each))) for each in os.listdir("/proc/self/task")]
print(json.dumps({"threads": torch.get_num_threads(), "cores": cores}))
"""


def using(threads: int) -> dict[str, Any]:
    told = subprocess.run([sys.executable, "-c", PROGRAM, str(threads)], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.skipif(cores() < 2, reason="there is one core")
def test_the_threads_of_a_training_that_has_all_cores_get_one_each() -> None:
    found = using(cores())
    assert found["threads"] == cores()
    alone = [each[0] for each in found["cores"] if len(each) == 1]
    assert len(alone) == len(set(alone)) == cores()


def test_one_thread_may_run_anywhere() -> None:
    found = using(1)
    assert found["threads"] == 1
    assert all(len(each) == cores() for each in found["cores"])
