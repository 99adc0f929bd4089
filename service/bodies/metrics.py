"""Metrics, one row an epoch."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final, Self

from pydantic import BaseModel, Field
from worker.jobs.states import TERMINAL, Status
from worker.jobs.tables import Epoch, Job

from .row import FromRow


class MetricsRow(FromRow):
    seq: int = Field(description="Strictly increasing within the job, across attempts and restarts")
    epoch: int = Field(description="From 1")
    train_loss: float | None = Field(description="Average over samples; null when not finite")
    test_loss: float | None = Field(description="Average over samples; null when not finite")
    test_accuracy: float | None = Field(description="0 to 1; null for regression")
    test_top5_accuracy: float | None = Field(
        description="Share of pictures whose class is among the five likeliest; null where there are up to 5 classes"
    )
    test_f1: float | None = Field(description="F1 score, averaged over classes; null for regression")
    test_mae: float | None = Field(description="Mean absolute error, averaged over targets; null for classes")
    test_r2: float | None = Field(
        description="Share of the variance explained, averaged over targets: 1 is perfect; null for classes"
    )
    learning_rate: float
    samples_per_second: float = Field(description="Training only")
    train_seconds: float
    test_seconds: float
    gradient_norm: float | None = Field(description="L2 norm over all weights, averaged over some steps of the epoch")
    peak_memory_bytes: int | None = Field(
        description="Most memory of the training process, or of the GPU where it trains on one, in this epoch"
    )
    attempt: int
    recorded_at: datetime
    non_finite: str | None = Field(description="What a null that should be a number was: `nan`, `inf` or `-inf`")


class MetricsPage(BaseModel):
    data: list[MetricsRow]
    next_since: int = Field(description="Give this as `since` to get only what is new")
    status: Status
    terminal: bool = Field(description="Whether nothing more will come")

    @classmethod
    def of(cls, job: Job, rows: list[Epoch], since: int, *, whole: bool) -> Self:
        return cls(
            data=[MetricsRow.model_validate(row) for row in rows],
            next_since=rows[-1].seq if rows else since,
            status=Status(job.status),
            terminal=job.status in TERMINAL and whole,
        )


COLUMNS: Final = tuple(MetricsRow.model_fields)  # of a table of metrics
CSV_HEADER: Final = ",".join(COLUMNS) + "\n"
_ODD: Final = frozenset({"nan", "inf", "-inf"})


def csv_lines(rows: Iterable[Epoch]) -> str:
    """Lines of a table with those columns: the values of `MetricsRow`, numbers to their last digit, null as nothing."""
    return "".join(",".join(_cell(getattr(row, name)) for name in COLUMNS) + "\n" for row in rows)


def _cell(value: float | datetime | str | None) -> str:
    """Numbers, times, and the three words that there are for what is no number: nothing that a spreadsheet computes."""
    match value:
        case None:
            return ""
        case datetime():
            return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case str():
            return value if value in _ODD else ""
        case _:
            return repr(value)
