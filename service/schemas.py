"""Bodies that leave. Times are RFC 3339 in UTC."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from worker.jobs.failures import Failure
from worker.jobs.records import KeptCheckpoint
from worker.jobs.tables import TERMINAL, Attempt, Epoch, Job, Outcome, Phase, Status, Transition
from worker.jobs.wire import Prediction


class FromRow(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class ProgressBody(FromRow):
    epoch: int = Field(description="The epoch at work, from 1; 0 before the first")
    batch: int = Field(description="Batches trained in this epoch")
    batches: int = Field(description="Batches of an epoch")
    samples_per_second: float | None
    eta_seconds: float | None = Field(description="Until the job is done, testing and saving included")


class AttemptBody(FromRow):
    number: int
    started_at: datetime
    first_batch_at: datetime | None
    ended_at: datetime | None
    outcome: Outcome | None = Field(description="How it ended; null while it runs")
    resumed_from: int | None = Field(description="The epoch whose checkpoint it went on from")
    error: Failure | None


class TransitionBody(FromRow):
    status: Status
    at: datetime
    reason: str | None


class JobSummary(FromRow):
    id: str
    name: str | None
    labels: dict[str, str]
    status: Status
    phase: Phase | None = Field(description="What a running job is doing")
    progress: ProgressBody
    attempt: int = Field(description="Number of the current or last attempt; 0 before the first")
    error: Failure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, job: Job, **more: Any) -> Self:
        fields = {name: getattr(job, name) for name in cls.model_fields if hasattr(job, name)}
        return cls.model_validate(fields | {"progress": ProgressBody.model_validate(job)} | more)


class JobBody(JobSummary):
    spec: dict[str, Any] = Field(description="The spec with every default filled in")
    attempts: list[AttemptBody]
    transitions: list[TransitionBody]
    provenance: dict[str, Any] | None = Field(
        description="What the result depends on: seed, versions, device, threads, dataset digest"
    )

    @classmethod
    def whole(cls, job: Job, attempts: list[Attempt], transitions: list[Transition]) -> Self:
        return cls.of(job, attempts=attempts, transitions=transitions)


class JobPage(BaseModel):
    data: list[JobSummary]
    has_more: bool
    next_cursor: str | None = Field(description="Give this as `after` to get the next page")


class MetricsRow(FromRow):
    seq: int = Field(description="Strictly increasing within the job, across attempts and restarts")
    epoch: int = Field(description="From 1")
    train_loss: float | None = Field(description="Average over samples; null when not finite")
    test_loss: float | None = Field(description="Average over samples; null when not finite")
    test_accuracy: float = Field(description="0 to 1")
    learning_rate: float
    samples_per_second: float = Field(description="Training only")
    train_seconds: float
    test_seconds: float
    attempt: int
    recorded_at: datetime
    non_finite: str | None = Field(description="What a null loss was: `nan`, `inf` or `-inf`")


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


class CheckpointBody(BaseModel):
    epoch: int
    sha256: str
    bytes: int
    is_best: bool = Field(description="Highest test accuracy; of equals, the earliest")
    is_last: bool
    metrics: MetricsRow
    url: str = Field(description="Where to download the weights as safetensors")
    created_at: datetime

    @classmethod
    def of(cls, kept: KeptCheckpoint) -> Self:
        row = kept.row
        return cls(
            epoch=row.epoch,
            sha256=row.sha256,
            bytes=row.bytes,
            is_best=kept.is_best,
            is_last=kept.is_last,
            metrics=MetricsRow.model_validate(kept.metrics),
            url=f"/jobs/{row.job_id}/checkpoints/{row.epoch}",
            created_at=row.created_at,
        )


class CheckpointList(BaseModel):
    data: list[CheckpointBody]


class AnsweredBy(BaseModel):
    epoch: int
    sha256: str


class PredictBody(BaseModel):
    job: str = Field(description="Which job answered")
    checkpoint: AnsweredBy
    predictions: list[Prediction] = Field(description="One a picture, in the order they were sent")


class Part(BaseModel):
    ready: bool
    detail: str


class Readiness(BaseModel):
    ready: bool
    parts: dict[str, Part]
