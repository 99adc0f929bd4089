"""The sink `mlflow`: one run a job, on a tracking server, or in a database that MLflow reads.

MLflow forgets no value of a metric and changes no parameter. So where a job has gone back to an older checkpoint its
run is thrown away (into MLflow's own bin) and another one takes its place; and a field of the spec that has changed
since, as `epochs` does when a job is extended, is told by a tag.

Of a run that this process has not begun itself, its history is read first: only what it lacks is written.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from worker.jobs import files
from worker.jobs.states import TERMINAL, Status
from worker.jobs.tables import Epoch, Job, SinkRow

from .flat import flattened

METRICS: Final = (
    *("train_loss", "test_loss", "test_accuracy", "test_top5_accuracy", "test_f1", "test_mae", "test_r2"),
    *("learning_rate", "gradient_norm", "samples_per_second", "train_seconds", "test_seconds"),
    *("peak_memory_bytes", "attempt"),
)
JOB_TAG: Final = "epochd.job"
_ERROR_TAG: Final = "epochd.error"
_ENDED: Final = {Status.SUCCEEDED: "FINISHED", Status.FAILED: "FAILED", Status.CANCELLED: "KILLED"}
_METRICS_AT_ONCE: Final = 1000  # more are refused
_PARAMS_AT_ONCE: Final = 100
_CHARACTERS: Final = 500  # of a parameter's value; older servers refuse more
_NOT_IN_A_NAME: Final = re.compile(r"[^\w\-. :]")
_GONE: Final = "RESOURCE_DOES_NOT_EXIST"


class _Value(NamedTuple):
    """One value of a metric, as MLflow keeps it."""

    key: str
    value: float
    timestamp: int  # in milliseconds
    step: int


class MlflowRuns:
    def __init__(self, uri: str, experiment: str) -> None:
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._name, self._experiment_id = experiment, ""  # until it is asked for
        self._folder: Path | None = None
        self._spare_bytes = 0

    @classmethod
    def local(cls, folder: Path, experiment: str, spare_bytes: int) -> "MlflowRuns":
        """In a SQLite database; MLflow has given up its folders of text files."""
        store = folder / "mlflow.db"
        if not store.exists():
            _make(store)
        runs = cls(_uri(store), experiment)
        runs._folder, runs._spare_bytes = folder, spare_bytes
        return runs

    def is_new(self) -> bool:
        return self._client.get_experiment_by_name(self._name) is None

    def begin(self, job: Job, pages: Iterator[Sequence[Epoch]], known: SinkRow | None) -> str:
        self._prepare()
        wanted = [value for rows in pages for row in rows for value in _values(row)]
        run = self._run(job, known) if known else None
        there = self._history(run) if run else []
        if run and not (len(there) == len(set(there)) and set(there) <= set(wanted)):
            self._client.delete_run(run.info.run_id)
            run, there = None, []
        if run is None:
            start = _milliseconds(job.started_at or job.created_at)
            run = self._client.create_run(self._experiment_id, start, {JOB_TAG: job.id}, job.name or job.id)
        run_id: str = run.info.run_id
        self._describe(job, run)
        already = set(there)
        self._log(run_id, [value for value in wanted if value not in already])
        if job.status not in TERMINAL and run.info.status != RunStatus.to_string(RunStatus.RUNNING):
            self._client.update_run(run_id, status="RUNNING")
        return run_id

    def add(self, job: Job, rows: Iterable[Epoch], run_id: str | None) -> None:  # noqa: ARG002
        assert run_id is not None
        self._prepare()
        self._log(run_id, [value for row in rows for value in _values(row)])

    def end(self, job: Job, run_id: str | None) -> None:
        assert run_id is not None
        self._client.log_batch(run_id, tags=_tags(job))
        status = _ENDED[Status(job.status)]
        self._client.set_terminated(run_id, status, _milliseconds(job.finished_at or job.created_at))

    def _prepare(self) -> None:
        """Raises DiskFull."""
        if self._folder is not None:
            files.require_space(self._folder, self._spare_bytes)
        if self._experiment_id:
            return
        found = self._client.get_experiment_by_name(self._name)
        if found is None:
            place = (self._folder / "artifacts").as_uri() if self._folder else None
            self._experiment_id = self._client.create_experiment(self._name, artifact_location=place)
            return
        if found.lifecycle_stage != "active":  # somebody has deleted it
            self._client.restore_experiment(found.experiment_id)
        self._experiment_id = found.experiment_id

    def _run(self, job: Job, known: SinkRow) -> Run | None:
        """The job's run: the one that was recorded, or one that a killed process had no time to record."""
        if known.run_id is not None:
            try:
                run = self._client.get_run(known.run_id)
            except MlflowException as error:
                if error.error_code != _GONE:
                    raise
            else:
                if run.info.lifecycle_stage == "active":
                    return run
        found = self._client.search_runs([self._experiment_id], f"tags.`{JOB_TAG}` = '{job.id}'", max_results=1)
        return found[0] if found else None

    def _history(self, run: Run) -> list[_Value]:
        """All values that it has of all metrics."""
        return [
            _Value(key, each.value, each.timestamp, each.step)
            for key in run.data.metrics
            for each in self._client.get_metric_history(run.info.run_id, key)
        ]

    def _describe(self, job: Job, run: Run) -> None:
        """Parameters that it has not, and tags."""
        told = {name: _text(value) for name, value in flattened(job.spec).items()}
        before = run.data.params
        params = [Param(name, value) for name, value in told.items() if name not in before]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(run.info.run_id, params=params[start : start + _PARAMS_AT_ONCE])
        changed = {name: value for name, value in told.items() if before.get(name, value) != value}
        tags = [*_tags(job), *(RunTag(f"epochd.spec.{name}", value) for name, value in changed.items())]
        if job.error is None and _ERROR_TAG in run.data.tags:  # it was tried again
            tags.append(RunTag(_ERROR_TAG, ""))
        for start in range(0, len(tags), _PARAMS_AT_ONCE):
            self._client.log_batch(run.info.run_id, tags=tags[start : start + _PARAMS_AT_ONCE])

    def _log(self, run_id: str, values: Sequence[_Value]) -> None:
        for start in range(0, len(values), _METRICS_AT_ONCE):
            batch = [Metric(*value) for value in values[start : start + _METRICS_AT_ONCE]]
            self._client.log_batch(run_id, metrics=batch)


def _make(store: Path) -> None:
    """Its tables are made in many steps, and a store that has not got them all can never be used."""
    store.parent.mkdir(parents=True, exist_ok=True)
    unfinished = store.with_name(".unfinished.db")
    for left in store.parent.glob(f"{unfinished.name}*"):
        left.unlink()
    MlflowClient(_uri(unfinished))
    unfinished.rename(store)


def _uri(store: Path) -> str:
    return f"sqlite:///{store}"


def _values(row: Epoch) -> Iterator[_Value]:
    """What is null, because it was not finite or is not measured, is left out."""
    for name in METRICS:
        value = getattr(row, name)
        if value is not None:
            yield _Value(name, float(value), _milliseconds(row.recorded_at), row.epoch)


def _tags(job: Job) -> list[RunTag]:
    tags = {f"label.{_NOT_IN_A_NAME.sub('_', name)}": value for name, value in job.labels.items()}
    tags |= {"epochd.owner": job.owner, "epochd.status": str(job.status), "epochd.attempt": str(job.attempt)}
    if job.error is not None:
        tags[_ERROR_TAG] = str(job.error.get("code"))
    return [RunTag(name, value) for name, value in tags.items()]


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:_CHARACTERS]


def _milliseconds(at: datetime) -> int:
    return round(at.timestamp() * 1000)
