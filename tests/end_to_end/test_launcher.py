import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.jobs.db import Database
from worker.jobs.processes import thread_count
from worker.jobs.settings import Settings

ENV = {name: value for name, value in os.environ.items() if not name.startswith("EPOCHD_")}


def python(code: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Runs code in a fresh process: pytest's own has threads and torch."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=ENV | env, capture_output=True, text=True, timeout=120, check=False)


def test_the_preloaded_process_has_one_thread_and_has_not_touched_cuda() -> None:
    done = python(
        "import worker.launchers.preload, torch, sys;"
        "from worker.jobs.processes import thread_count;"
        "sys.exit(thread_count('self') != 1 or torch.cuda.is_initialized())",
        OPENBLAS_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr


def test_a_preloaded_process_that_ran_a_parallel_operation_refuses_to_be_a_parent() -> None:
    done = python(
        "import torch; torch.set_num_threads(2); torch.ones(10_000_000).add_(1).sum(); import worker.launchers.preload",
        OPENBLAS_NUM_THREADS="1",
    )
    assert done.returncode != 0
    assert "its children could hang" in done.stderr


# A worker in miniature: the launcher is used from an exec'd process with a main of its own, as in production.
MINIATURE = """
import os, sys, time
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from pathlib import Path
from worker.jobs import queue, submitting
from worker.jobs.db import Database
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.launchers.local import LocalLauncher, wait_any

settings = Settings(data_dir=Path(sys.argv[1]))
db = Database(settings.resolved_database_url)
submitting.enqueue(db, Spec(epochs=1000))
job = queue.claim(db, "worker", 30)
launcher = LocalLauncher(settings)
launcher.warm_up()
running = launcher.train(job.id, 1)
while not queue.get(db, job.id).batch:
    time.sleep(0.01)
sys.stdout.write(f"{running.pid} {os.getsid(running.pid)} {os.getppid()}\\n")
sys.stdout.flush()
"""


@pytest.fixture
def miniature(tmp_path: Path) -> Callable[[str], "subprocess.Popen[str]"]:
    from tests.tiny import ready_tiny

    db = Database(Settings(data_dir=tmp_path).resolved_database_url)
    db.migrate()
    ready_tiny(db, tmp_path)
    db.close()

    def start(then: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", MINIATURE + then, str(tmp_path)]
        return subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, text=True)

    return start


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


def test_an_attempt_leads_a_session_of_its_own_and_stops_when_asked(
    miniature: Callable[[str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    worker = miniature("running.stop(); wait_any([running], 30); sys.stdout.write(str(running.exit_code))")
    output, _ = worker.communicate(timeout=60)
    pid, session, _ = map(int, output.splitlines()[0].split())
    assert pid == session
    assert output.splitlines()[1] == "75"
    assert len(list(tmp_path.glob("jobs/*/attempt-1.log"))) == 1


def test_a_killed_attempt_reports_its_signal(miniature: Callable[[str], "subprocess.Popen[str]"]) -> None:
    worker = miniature("running.kill(); wait_any([running], 30); sys.stdout.write(str(running.exit_code))")
    output, _ = worker.communicate(timeout=60)
    assert output.splitlines()[1] == "-9"


def test_an_attempt_dies_with_its_worker(miniature: Callable[[str], "subprocess.Popen[str]"]) -> None:
    worker = miniature("time.sleep(60)")
    assert worker.stdout is not None
    pid = int(worker.stdout.readline().split()[0])
    assert alive(pid)
    assert thread_count(pid) >= 1
    worker.kill()
    worker.communicate()
    assert gone(pid)
