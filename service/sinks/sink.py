"""What a sink is, which there are, and what each takes."""

import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

from worker.jobs.settings import Settings
from worker.jobs.states import SinkKind
from worker.jobs.tables import Epoch, Job, SinkRow

_LIBRARIES: Final = {SinkKind.TENSORBOARD: "tensorboardX", SinkKind.MLFLOW: "mlflow"}  # their modules
# Nothing is told to anybody, our log stays JSON, and a server that hangs is left: we try again ourselves.
_OF_MLFLOW: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_CONFIGURE_LOGGING": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_IF_UNSET: Final = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


class Sink(Protocol):
    """Where the metrics of jobs are written to. Each call may raise anything, and is made again later then.

    `run_id` is what the sink calls the job, if it has a name of its own for it.
    """

    def is_new(self) -> bool:
        """Whether it was not there before, and so holds nothing of any job."""

    def begin(self, job: Job, pages: Iterator[Sequence[Epoch]], known: SinkRow | None) -> str | None:
        """From now on it has these rows of the job and no others, whatever was there. Returns its `run_id`."""

    def add(self, job: Job, rows: Iterable[Epoch], run_id: str | None) -> None:
        """Rows behind those that it has of a job that this process has begun."""

    def end(self, job: Job, run_id: str | None) -> None:
        """The job has ended. It may go on one day: then it is begun again."""


def missing(kinds: Iterable[SinkKind]) -> list[str]:
    """A sentence for each library that is not installed."""
    return [
        f"EPOCHD_SINKS: {kind} needs {_LIBRARIES[kind]}: pip install 'epochd[{kind}]'"
        for kind in kinds
        if kind in _LIBRARIES and not _is_installed(_LIBRARIES[kind])
    ]


def opened(kind: SinkKind, settings: Settings) -> Sink:
    """The sink, its library loaded; that takes seconds. Raises whatever goes wrong with either."""
    folder, spare = settings.resolved_sinks_dir / kind, settings.min_free_bytes
    match kind:
        case SinkKind.CSV:
            from .csv_files import CsvFiles

            return CsvFiles(folder, spare)
        case SinkKind.TENSORBOARD:
            from .event_files import EventFiles

            return EventFiles(folder, spare)
        case SinkKind.MLFLOW:
            return _mlflow(settings, folder)


def _mlflow(settings: Settings, folder: Path) -> Sink:
    os.environ.update(_OF_MLFLOW)
    for name, value in _IF_UNSET.items():
        os.environ.setdefault(name, value)
    from .mlflow_runs import MlflowRuns

    if settings.mlflow_tracking_uri is not None:
        return MlflowRuns(settings.mlflow_tracking_uri, settings.mlflow_experiment)
    return MlflowRuns.local(folder, settings.mlflow_experiment, settings.min_free_bytes)


def _is_installed(module: str) -> bool:
    found = importlib.util.find_spec(module)
    return found is not None and found.origin is not None  # a folder of that name is none
