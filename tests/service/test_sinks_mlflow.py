"""The sink `mlflow`, read by MLflow's own client."""

import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from service.sinks.sink import opened
from tests.service.test_sinks import rewind, turn
from tests.service.test_sinks_kills import kill_everywhere
from tests.worker.jobs.making import claim, finish, record, running
from worker.jobs import control, queue, records
from worker.jobs.db import Database
from worker.jobs.settings import Settings
from worker.jobs.states import Outcome, SinkKind
from worker.jobs.tables import Job

MLFLOW = SinkKind.MLFLOW


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """MLflow as the process of the sinks loads it, with a store whose schema is made once."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("mlflow"))
    folder = settings.resolved_sinks_dir / "mlflow"
    folder.mkdir(parents=True)
    for name in (".unfinished.db", ".unfinished.db-journal"):
        (folder / name).write_bytes(b"of a process that was killed")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(os, "environ", os.environ.copy())
        if "torch" not in sys.modules:
            patch.setitem(sys.modules, "torch", None)
        warnings.simplefilter("ignore")  # it and what it imports
        opened(MLFLOW, settings)
        yield settings


@pytest.fixture
def sink(loaded: Settings, request: pytest.FixtureRequest) -> Any:
    """In an experiment of its own."""
    return opened(MLFLOW, loaded.model_copy(update={"mlflow_experiment": request.node.name}))


def runs(sink: Any, job: Job | None = None) -> list[Any]:
    """That are not in MLflow's bin; of all jobs, or one."""
    found = sink._client.get_experiment_by_name(sink._name)
    which = f"tags.`epochd.job` = '{job.id}'" if job else ""
    return list(sink._client.search_runs([found.experiment_id], which)) if found else []


def told(sink: Any, run: Any) -> dict[str, list[tuple[int, float, int]]]:
    history = {key: sink._client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: sorted((each.step, each.value, each.timestamp) for each in values) for key, values in history.items()}


def wanted(db: Database, job: Job) -> dict[str, list[tuple[int, float, int]]]:
    from service.sinks.mlflow_runs import METRICS

    rows = records.epochs(db, job.id)
    found = {
        name: [
            (row.epoch, getattr(row, name), round(row.recorded_at.timestamp() * 1000))
            for row in rows
            if getattr(row, name) is not None
        ]
        for name in METRICS
    }
    return {name: values for name, values in found.items() if values}


def only(sink: Any) -> Any:
    (run,) = runs(sink)
    return run


def test_a_run_follows_its_job(db: Database, sink: Any) -> None:
    job = running(
        db,
        name="<b>shoes</b> \u202e",
        labels={"team": "a", "../é/x=1": "b"},
        optimizer={"name": "adam", "lr": 0.5},
        epochs=3,
    )
    kept = turn(db, sink, MLFLOW)
    run = only(sink)
    assert (run.info.status, run.info.run_name, run.info.artifact_uri[:5]) == ("RUNNING", job.name, "file:")
    for epoch in (1, 2, 3):
        record(db, job, epoch, train_loss=1 / 3 / epoch if epoch != 2 else float("nan"))
        kept.turn(Event())
        assert told(sink, only(sink)) == wanted(db, job)
    finish(db, job, Outcome.SUCCEEDED)
    kept.turn(Event())
    run = only(sink)
    assert run.info.status == "FINISHED"
    assert run.info.end_time == round(queue.get(db, job.id).finished_at.timestamp() * 1000)  # type: ignore[union-attr]
    assert (run.data.params["optimizer.name"], run.data.params["optimizer.lr"]) == ("adam", "0.5")
    assert run.data.params["model.hidden"] == "[512, 512]"
    tags = run.data.tags
    assert (tags["epochd.job"], tags["epochd.status"], tags["epochd.owner"]) == (job.id, "succeeded", "")
    assert (tags["label.team"], tags["label..._é_x_1"]) == ("a", "b")


def test_how_a_job_ends_is_how_its_run_ends_and_it_may_go_on(db: Database, sink: Any) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    kept = turn(db, sink, MLFLOW)
    control.extend(db, job.id, 4)
    record(db, claim(db), 2)
    kept.turn(Event())
    run = only(sink)
    assert (run.info.status, told(sink, run)) == ("RUNNING", wanted(db, job))
    assert (run.data.params["epochs"], run.data.tags["epochd.spec.epochs"]) == ("1", "5")
    finish(db, queue.get(db, job.id), Outcome.FAILED)
    kept.turn(Event())
    run = only(sink)
    assert (run.info.status, run.data.tags["epochd.error"]) == ("FAILED", "killed")
    control.retry(db, job.id)
    record(db, claim(db), 3)
    kept.turn(Event())
    run = only(sink)
    assert (run.info.status, run.data.tags["epochd.error"]) == ("RUNNING", "")
    cancelled = running(db)
    control.cancel(db, cancelled.id)
    finish(db, cancelled, Outcome.RELEASED)
    kept.turn(Event())
    assert {run.info.status for run in runs(sink)} == {"RUNNING", "KILLED"}


def test_epochs_that_are_recorded_again_are_of_a_new_run(db: Database, sink: Any) -> None:
    """A value that MLflow has been told stays in its history."""
    job = running(db, epochs=9)
    for epoch in (1, 2, 3):
        record(db, job, epoch)
    kept = turn(db, sink, MLFLOW)
    before = only(sink).info.run_id
    record(db, rewind(db, job, 1), 2, train_loss=9.0)
    kept.turn(Event())
    assert told(sink, only(sink)) == wanted(db, job)
    assert only(sink).info.run_id != before
    assert sink._client.get_run(before).info.lifecycle_stage == "deleted"


def test_another_attempt_goes_on_with_the_run(db: Database, sink: Any) -> None:
    job = running(db, epochs=9)
    record(db, job, 1)
    kept = turn(db, sink, MLFLOW)
    before = only(sink).info.run_id
    finish(db, job, Outcome.RELEASED)
    record(db, claim(db), 2)
    kept.turn(Event())
    run = only(sink)
    assert (run.info.run_id, run.data.tags["epochd.attempt"]) == (before, "2")
    assert told(sink, run) == wanted(db, job)


def test_another_process_goes_on_with_the_run_and_tells_nothing_twice(
    db: Database, sink: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = running(db, epochs=9)
    record(db, job, 1)
    turn(db, sink, MLFLOW)
    before = only(sink).info.run_id
    record(db, job, 2)
    sent: list[int] = []
    log_batch = sink._client.log_batch

    def counted(run_id: str, metrics: Any = (), **more: Any) -> None:
        sent.extend(metric.step for metric in metrics)
        log_batch(run_id, metrics=metrics, **more)

    monkeypatch.setattr(sink._client, "log_batch", counted)
    turn(db, sink, MLFLOW)
    assert set(sent) == {2}
    assert only(sink).info.run_id == before
    assert told(sink, only(sink)) == wanted(db, job)
    sink._client.delete_run(before)  # somebody wants it gone, but the job goes on
    record(db, job, 3)
    turn(db, sink, MLFLOW)
    assert told(sink, only(sink)) == wanted(db, job)


def test_a_kill_at_any_step_makes_no_second_run_and_loses_nothing(db: Database, sink: Any) -> None:
    """Before each call of MLflow, and before each of ours."""
    client = type(sink._client)
    calls = ("create_run", "log_batch", "set_terminated", "update_run", "delete_run")

    def check(job: Job, was_killed: bool) -> None:
        found = runs(sink, job)
        assert len(found) <= 1
        if not was_killed:
            assert told(sink, found[0]) == wanted(db, job)
            assert found[0].info.status == {"running": "RUNNING"}.get(queue.get(db, job.id).status, "FINISHED")

    steps = [(client, name) for name in calls]
    assert kill_everywhere(db, lambda: sink, check, MLFLOW, steps) > 15


def test_a_new_experiment_gets_everything(db: Database, sink: Any, loaded: Settings) -> None:
    job = running(db, epochs=1)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    turn(db, sink, MLFLOW)
    other = opened(MLFLOW, loaded.model_copy(update={"mlflow_experiment": "another one"}))
    turn(db, other, MLFLOW)
    assert told(other, only(other)) == wanted(db, job)


def test_a_job_of_many_epochs_is_told_in_parts(db: Database, sink: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import service.sinks.mlflow_runs

    monkeypatch.setattr(service.sinks.mlflow_runs, "_METRICS_AT_ONCE", 7)
    monkeypatch.setattr(service.sinks.mlflow_runs, "_PARAMS_AT_ONCE", 3)
    job = running(db, epochs=9)
    for epoch in range(1, 9):
        record(db, job, epoch)
    turn(db, sink, MLFLOW)
    assert told(sink, only(sink)) == wanted(db, job)
    assert len(only(sink).data.params) > 20


def test_nothing_is_told_to_its_makers(sink: Any) -> None:
    assert (os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["DO_NOT_TRACK"]) == ("true", "true")
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_the_store_lies_in_the_folder_of_the_sinks(sink: Any, loaded: Settings) -> None:
    folder: Path = loaded.resolved_sinks_dir / "mlflow"
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
