"""What a process can tell about itself and its parent."""

import subprocess
import sys

import pytest

from worker.jobs.processes import set_niceness, thread_count

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@linux_only
def test_threads_are_counted() -> None:
    """In a fresh process: here threads of other tests come and go."""
    program = (
        "import os, threading; from worker.jobs.processes import thread_count; leave = threading.Event(); "
        "thread = threading.Thread(target=leave.wait); thread.start(); "
        "print(thread_count('self'), thread_count(os.getpid())); leave.set()"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "2 2\n"


def test_a_process_that_is_gone_counts_as_one_thread() -> None:
    assert thread_count(2**22 + 1) == 1


@linux_only
def test_a_process_has_a_name_and_a_niceness() -> None:
    program = (
        "import os; from worker.jobs.processes import name_process, set_niceness; "
        "name_process('predictor'); set_niceness(os.getpid(), 10); "
        "print(os.nice(0), open('/proc/self/comm').read().strip())"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert told.stdout == "10 predictor\n"


def test_the_niceness_of_a_process_that_is_gone_is_nobodys_business() -> None:
    set_niceness(2**22 + 1, 10)
