"""Bodies that leave. Times are RFC 3339 in UTC."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from worker.jobs import versions
from worker.jobs.built_in import BUILT_IN
from worker.jobs.card import Card, Task
from worker.jobs.failures import Failure
from worker.jobs.records import KeptCheckpoint
from worker.jobs.states import TERMINAL, EventKind, Outcome, Phase, Status
from worker.jobs.tables import Attempt, Dataset, Epoch, Event, Job, Transition
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


class EventBody(FromRow):
    seq: int = Field(description="From 1, within the job")
    at: datetime
    attempt: int
    epoch: int = Field(description="The epoch at work, from 1")
    kind: EventKind = Field(
        description="`micro_batch`: a batch did not fit into memory and goes through the network in parts; "
        "`stopped_early`: the metric got no better; `diverged`: the loss was no finite number any more"
    )
    detail: str = Field(description="A sentence for people")


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


class QueueBody(BaseModel):
    reason: str = Field(description="What the job waits for")


class JobBody(JobSummary):
    spec: dict[str, Any] = Field(description="The spec with every default filled in")
    queue: QueueBody | None = Field(description="Why it has not begun; null once it is not queued any more")
    threads: int | None = Field(description="Processor threads; decided when the job first starts, and kept")
    attempts: list[AttemptBody]
    transitions: list[TransitionBody]
    events: list[EventBody] = Field(description="What the training did by itself, oldest first")
    provenance: dict[str, Any] | None = Field(
        description="What the result depends on: seed, versions, device, threads, dataset digest"
    )

    @classmethod
    def whole(
        cls,
        job: Job,
        attempts: list[Attempt],
        transitions: list[Transition],
        events: list[Event],
        reason: str | None,
    ) -> Self:
        queue = QueueBody(reason=reason) if reason else None
        return cls.of(job, attempts=attempts, transitions=transitions, events=events, queue=queue)


class JobPage(BaseModel):
    data: list[JobSummary]
    has_more: bool
    next_cursor: str | None = Field(description="Give this as `after` to get the next page")


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


class CheckpointBody(BaseModel):
    epoch: int
    sha256: str = Field(description="Of the file")
    weights_sha256: str | None = Field(
        description="Of the weights alone: equal for equal trainings, whichever job they are of"
    )
    bytes: int
    is_best: bool = Field(
        description="By the metric `checkpoints.best_by` of the spec: unset, highest test accuracy, or for regression "
        "lowest test loss; of equals, the earliest"
    )
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
            weights_sha256=row.weights_sha256,
            bytes=row.bytes,
            is_best=kept.is_best,
            is_last=kept.is_last,
            metrics=MetricsRow.model_validate(kept.metrics),
            url=f"/jobs/{row.job_id}/checkpoints/{row.epoch}",
            created_at=row.created_at,
        )


class CheckpointList(BaseModel):
    data: list[CheckpointBody]


class PreparingBody(BaseModel):
    step: str = Field(description="fetching, unpacking, decoding or writing")
    done: int = Field(description="Files or pictures done in this step")
    total: int = Field(description="Of how many; 0 when nobody knows yet")


class DatasetSummary(BaseModel):
    name: str
    version: int | None = Field(description="From 1; null for a built-in dataset that nobody has asked for yet")
    built_in: bool
    description: str | None = Field(description="Of a built-in dataset")
    status: Literal["available", "uploaded", "preparing", "ready", "invalid"] = Field(
        description="`available`: built in, and prepared when first asked for"
    )
    progress: PreparingBody | None = Field(description="While it is being prepared")
    task: Task
    classes: list[str] | None = Field(description="Label of each class index; null for regression")
    channels: int | None = Field(description="1 for grey, 3 for colour")
    height: int | None
    width: int | None
    train_count: int | None
    test_count: int | None
    sha256: str | None = Field(description="Digest of the contents")
    error: Failure | None = Field(description="Why it is invalid")
    created_at: datetime | None
    finished_at: datetime | None = Field(description="When it became ready or invalid")
    url: str

    @classmethod
    def of(cls, dataset: Dataset, **more: Any) -> Self:
        card = dataset.card or {}
        is_preparing = dataset.step is not None
        return cls.model_validate(
            {
                "name": dataset.name,
                "version": dataset.version,
                "built_in": dataset.form is None,
                "description": BUILT_IN.get(dataset.name),
                "status": dataset.status,
                "progress": {name: getattr(dataset, name) for name in PreparingBody.model_fields}
                if is_preparing
                else None,
                "task": versions.task(dataset),
                "classes": card.get("classes") or None,
                **{
                    name: card.get(name)
                    for name in ("channels", "height", "width", "train_count", "test_count", "sha256")
                },
                "error": dataset.error,
                "created_at": dataset.created_at,
                "finished_at": dataset.finished_at,
                "url": f"/datasets/{dataset.name}?version={dataset.version}",
                **more,
            }
        )

    @classmethod
    def of_unused(cls, name: str, **more: Any) -> Self:
        """A built-in dataset that nobody has asked for yet."""
        unknown = dict.fromkeys(cls.model_fields)
        known = {"name": name, "built_in": True, "description": BUILT_IN[name], "status": "available"}
        return cls.model_validate(unknown | known | {"task": Task.CLASSIFICATION, "url": f"/datasets/{name}"} | more)


class DatasetBody(DatasetSummary):
    form: dict[str, Any] | None = Field(description="What came with the upload, every default filled in")
    card: Card | None = Field(description="What it holds and what was found; also of an invalid one that was read")
    versions: list[int] = Field(description="All of this name that are not deleted, newest first")

    @classmethod
    def whole(cls, dataset: Dataset, versions: list[int]) -> Self:
        card = dataset.card and dataset.card | {"findings": dataset.findings or []}
        return cls.of(dataset, form=dataset.form, card=card, versions=versions)


class DatasetList(BaseModel):
    data: list[DatasetSummary]


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
