"""The sink `csv`: one table a job, as `GET /jobs/{id}/metrics.csv` gives it."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from worker.jobs.tables import Epoch, Job, SinkRow

from service.bodies.metrics import CSV_HEADER, csv_lines

from .durable import append, replaced


class CsvFiles:
    def __init__(self, folder: Path, spare_bytes: int) -> None:
        self._folder, self._spare_bytes = folder, spare_bytes

    def is_new(self) -> bool:
        return not self._folder.exists()

    def begin(self, job: Job, pages: Iterator[Sequence[Epoch]], known: SinkRow | None) -> None:  # noqa: ARG002
        self._folder.mkdir(parents=True, exist_ok=True)
        with replaced(self._path(job), self._spare_bytes) as file:
            file.write(CSV_HEADER.encode())
            for rows in pages:
                file.write(csv_lines(rows).encode())

    def add(self, job: Job, rows: Iterable[Epoch], run_id: str | None) -> None:  # noqa: ARG002
        append(self._path(job), csv_lines(rows).encode(), self._spare_bytes)

    def end(self, job: Job, run_id: str | None) -> None:
        """A table does not say how its job ended."""

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.id}.csv"
