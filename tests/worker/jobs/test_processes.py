"""What a process can tell about itself and its parent."""

import os
import subprocess
import sys
import threading

import pytest

from worker.jobs.processes import thread_count

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")


@linux_only
def test_threads_are_counted() -> None:
    before = thread_count("self")
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    assert thread_count("self") == thread_count(os.getpid()) == before + 1
    leave.set()
    thread.join()


def test_a_process_that_is_gone_counts_as_one_thread() -> None:
    assert thread_count(2**22 + 1) == 1


@linux_only
def test_one_that_gives_way_is_nice_and_has_a_name() -> None:
    program = (
        "import os; from worker.jobs.processes import give_way, name_process; "
        "name_process('predictor'); give_way(10); print(os.nice(0), open('/proc/self/comm').read().strip())"
    )
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, start_new_session=True
    )
    assert told.stdout == "10 predictor\n"
