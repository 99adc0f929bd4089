"""Sinks of a real epochd, read by TensorBoard's and MLflow's own readers: the numbers are those of `/metrics`."""

import csv
import os
import signal
import struct
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import prepare_tiny
from worker.jobs import sinks
from worker.jobs.db import Database
from worker.jobs.states import SinkKind

os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of these libraries, while they are loaded
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TAGS = {"train_loss": "loss/train", "test_loss": "loss/test", "test_accuracy": "accuracy/test", "test_f1": "f1/test"}
QUICK = {"threads": 1, "device": "cpu", "model": {"name": "mlp", "hidden": [8]}}
_SECONDS = 120.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Epochd]:
    data_dir = tmp_path_factory.mktemp("sinks")
    prepare_tiny(data_dir)
    with epochd(data_dir, {"EPOCHD_SINKS": "csv, tensorboard, mlflow", "EPOCHD_SLOTS": "1"}) as running:
        yield running


def wait_written(server: Epochd) -> None:
    """Until no sink is behind."""
    db = Database(f"sqlite:///{server.data_dir / 'epochd.db'}")
    deadline = time.monotonic() + _SECONDS
    while any(next(sinks.backlog(db, kind), None) for kind in SinkKind):
        assert time.monotonic() < deadline, server.log.read_text()[-2000:]
        time.sleep(0.05)
    db.close()


def all_metrics(server: Epochd, job: str) -> list[dict[str, Any]]:
    rows = server.metrics(job)
    assert len(rows) < 1000  # one page
    return rows


def assert_tables_agree(server: Epochd, job: str, rows: list[dict[str, Any]]) -> None:
    text = server.http.get(f"/jobs/{job}/metrics.csv").text
    assert (server.data_dir / "sinks" / "csv" / f"{job}.csv").read_text() == text
    found = list(csv.DictReader(text.splitlines()))
    assert [int(row["seq"]) for row in found] == [row["seq"] for row in rows]
    assert [float(row["train_loss"]) for row in found] == [row["train_loss"] for row in rows]


def assert_tensorboard_agrees(server: Epochd, job: str, rows: list[dict[str, Any]]) -> None:
    run = EventAccumulator(str(server.data_dir / "sinks" / "tensorboard" / job), size_guidance={"scalars": 0})
    run.Reload()
    for name, tag in TAGS.items():
        found = [(each.step, each.value, each.wall_time) for each in run.Scalars(tag)]
        single = [struct.unpack("f", struct.pack("f", row[name]))[0] for row in rows]
        times = [datetime.fromisoformat(row["recorded_at"]).timestamp() for row in rows]
        assert found == list(zip([row["epoch"] for row in rows], single, times, strict=True)), name


def run_of(server: Epochd, job: str) -> tuple[MlflowClient, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(f"sqlite:///{server.data_dir / 'sinks' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("epochd")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`epochd.job` = '{job}'")
    return client, run


def assert_mlflow_agrees(server: Epochd, job: str, rows: list[dict[str, Any]]) -> Any:
    client, run = run_of(server, job)
    for name in (*TAGS, "learning_rate", "samples_per_second", "gradient_norm"):
        history = client.get_metric_history(run.info.run_id, name)
        found = sorted((each.step, each.value, each.timestamp) for each in history)
        times = [round(datetime.fromisoformat(row["recorded_at"]).timestamp() * 1000) for row in rows]
        wanted = zip([row["epoch"] for row in rows], [row[name] for row in rows], times, strict=True)
        assert found == [each for each in wanted if each[1] is not None], name
    return run


def kill_sinks(server: Epochd) -> None:
    """In the middle of whatever they do; and waits for the next."""
    before = server.pid_of("service.sinks")
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + _SECONDS
    while not [pid for pid, command in server.processes().items() if "service.sinks" in command and pid != before]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_three_have_every_number_although_they_are_killed_and_the_job_goes_on(server: Epochd) -> None:
    job = server.submit(name="=<b>\u202e'shoes'", labels={"=1+1": "@x"}, epochs=80, **QUICK)
    for epoch in (20, 50):
        server.wait(job, lambda body, epoch=epoch: body["progress"]["epoch"] >= epoch)  # type: ignore[misc]
        kill_sinks(server)
    assert server.wait_terminal(job)["status"] == "succeeded"
    wait_written(server)
    rows = all_metrics(server, job)
    assert len(rows) == 80
    assert_tables_agree(server, job, rows)
    assert_tensorboard_agrees(server, job, rows)
    run = assert_mlflow_agrees(server, job, rows)
    assert (run.info.status, run.data.params["epochs"]) == ("FINISHED", "80")

    server.http.post(f"/jobs/{job}/extend", json={"epochs": 40}).raise_for_status()
    server.wait(job, lambda body: body["progress"]["epoch"] >= 95)
    os.kill(server.attempt_pids()[0], signal.SIGKILL)  # the training, too
    kill_sinks(server)
    assert server.wait_terminal(job)["status"] == "succeeded"
    wait_written(server)
    rows = all_metrics(server, job)
    assert len(rows) == 120
    assert_tables_agree(server, job, rows)
    assert_tensorboard_agrees(server, job, rows)
    run = assert_mlflow_agrees(server, job, rows)
    assert (run.info.status, run.data.tags["epochd.spec.epochs"]) == ("FINISHED", "120")
    assert "sink_failed" not in server.log.read_text()


def test_what_a_job_is_called_names_no_file_and_what_is_cancelled_is_there_too(server: Epochd) -> None:
    job = server.submit(name="../../x", epochs=10_000, **QUICK)
    server.wait(job, lambda body: body["progress"]["epoch"] > 1)
    server.http.post(f"/jobs/{job}/cancel").raise_for_status()
    server.wait_terminal(job)
    wait_written(server)
    folder = server.data_dir / "sinks"
    assert {path.stem for path in (folder / "csv").iterdir()} == {
        path.name for path in (folder / "tensorboard").iterdir()
    }
    _, run = run_of(server, job)
    assert (run.info.run_name, run.info.status) == ("../../x", "KILLED")


def test_the_process_of_the_sinks_is_small_logs_json_and_ends_with_the_others(server: Epochd) -> None:
    pid = server.pid_of("service.sinks")
    wait_written(server)
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "libtorch" not in maps
    assert server.resident_bytes("service.sinks") < 400 * 2**20
    open_files = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [path for path in open_files if "sinks/csv" in str(path) or "sinks/tensorboard" in str(path)]
    assert all(line.startswith("{") for line in server.log.read_text().splitlines())
    assert server.stop() == 0
    assert '"event": "sinks_stopped"' in server.log.read_text()
