"""`python -m service.sinks`: how it starts, refuses to start, waits and leaves."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.sinks.sink import missing
from tests.end_to_end.serving import environment
from tests.service.test_imports import _SERVE_A_REQUEST, _SUPERVISE, loaded_by
from tests.worker.jobs.making import record, running
from worker.jobs.db import Database
from worker.jobs.states import SinkKind

SERVE = "sys.argv = ['epochd', 'serve']; from service.cli import main"
SINKS = "from service.sinks.__main__ import main"
_SECONDS = 60.0


def refusal(data_dir: Path, main: str, sinks: str, *without: str) -> str:
    """What is said by a process that does not start. `without`: modules that are not installed."""
    hidden = "; ".join(f"sys.modules[{name!r}] = None" for name in without) or "pass"
    code = f"import sys; {hidden}; {main}; main()"
    settings = {"EPOCHD_DATA_DIR": str(data_dir), "EPOCHD_SINKS": sinks, "EPOCHD_PORT": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment() | settings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("main", [SERVE, SINKS], ids=["serve", "sinks"])
def test_without_a_library_that_a_sink_needs_nothing_is_started(tmp_path: Path, main: str) -> None:
    said = refusal(tmp_path, main, "csv,tensorboard,mlflow", "tensorboardX", "mlflow")
    assert "EPOCHD_SINKS: tensorboard needs tensorboardX: pip install 'epochd[tensorboard]'" in said
    assert "EPOCHD_SINKS: mlflow needs mlflow: pip install 'epochd[mlflow]'" in said


def test_without_a_sink_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert "EPOCHD_SINKS names no sink" in refusal(tmp_path, SINKS, "")


def test_a_sink_that_there_is_not_is_refused(tmp_path: Path) -> None:
    assert "EPOCHD_SINKS" in refusal(tmp_path, SERVE, "csv,excel")


def test_a_folder_named_like_a_library_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorboardX").mkdir()
    monkeypatch.delitem(sys.modules, "tensorboardX", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert len(missing([SinkKind.CSV, SinkKind.TENSORBOARD])) == 1


def test_no_other_process_loads_what_sinks_need(tmp_path: Path) -> None:
    """MLflow brings OpenTelemetry's SDK, which FastAPI would be glad to find."""
    names = ("mlflow", "tensorboardX", "opentelemetry.sdk", "service.sinks.pump")
    check = f"assert not [name for name in sys.modules if name.startswith({names})]"
    assert "fastapi" in loaded_by(f"{_SERVE_A_REQUEST}\n{check}", str(tmp_path))
    assert "worker" in loaded_by(f"{_SUPERVISE}\n{check}")


class Process:
    def __init__(self, data_dir: Path, name: str, **settings: str) -> None:
        self.log = data_dir / f"{name}.log"
        env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)} | settings
        with self.log.open("wb") as output:
            self.process = subprocess.Popen([sys.executable, "-m", "service.sinks"], env=env, stderr=output)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for(self, event: str) -> dict[str, Any]:
        wait(lambda: any(line["event"] == event for line in self.lines()))
        return next(line for line in self.lines() if line["event"] == event)


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_hangs_holds_up_neither_another_sink_nor_the_end_and_the_next_process_takes_over(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    (tmp_path / "epochd.db").write_bytes(migrated_sqlite.read_bytes())
    db = Database(f"sqlite:///{tmp_path / 'epochd.db'}")
    job = running(db)
    record(db, job, 1)
    table = tmp_path / "sinks" / "csv" / f"{job.id}.csv"
    with socket.create_server(("127.0.0.1", 0)) as silent, ExitStack() as asked:
        port = silent.getsockname()[1]
        uri = f"http://someone:a-secret-of-mlflow@127.0.0.1:{port}"
        settings = {
            "EPOCHD_SINKS": "mlflow,csv",
            "EPOCHD_MLFLOW_TRACKING_URI": uri,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "600",
        }
        first = Process(tmp_path, "first", **settings, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        second: Process | None = None
        try:
            first.wait_for("sinks_started")
            silent.accept()[0].close()
            wait(table.exists)
            record(db, job, 2)
            wait(lambda: len(table.read_text().splitlines()) == 3)
            failed = first.wait_for("sink_failed")
            assert (failed["sink"], failed["process"]) == ("mlflow", "sinks")
            assert "a-secret-of-mlflow" not in first.log.read_text()
            second = Process(tmp_path, "second", EPOCHD_SINKS="csv")
            second.wait_for("sinks_wait")
            record(db, job, 3)
            asked.enter_context(silent.accept()[0])  # it asks again, and is not answered for ten minutes
            begun = time.monotonic()
            first.process.send_signal(signal.SIGTERM)
            assert first.process.wait(10) == 0
            assert time.monotonic() - begun < 9  # half a second, where nothing else runs
            second.wait_for("sinks_started")
            wait(lambda: len(table.read_text().splitlines()) == 4)
        finally:
            for each in filter(None, (first, second)):
                each.process.kill()
                each.process.wait()
    db.close()
