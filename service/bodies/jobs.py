"""A job, as it is shown."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, Field
from worker.jobs.failures import Failure
from worker.jobs.states import EventKind, Outcome, Phase, Resume, Status
from worker.jobs.tables import Attempt, Event, Job, Transition

from .row import FromRow


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
    resumed_from: int | None = Field(description="The last epoch that was done when it went on; null if it began anew")
    resumed_batch: int | None = Field(description="How many batches of the next epoch were done too")
    resume: Resume | None = Field(
        description="`exact`: to the same bits as without interruption; `approximate`: something else computes now"
    )
    resume_reason: str | None = Field(description="What it is that is not the same")
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
        "`stopped_early`: the metric got no better; `diverged`: the loss was no finite number any more; "
        "`checkpoint_corrupt`: a checkpoint was damaged, so the training went on from an older one"
    )
    detail: str = Field(description="A sentence for people")


class JobSummary(FromRow):
    id: str
    owner: str = Field(description="The id of the key whose it is; empty: it belongs to no key")
    name: str | None
    labels: dict[str, str]
    priority: int
    sweep: str | None = Field(description="The id of the sweep that it is a trial of")
    trial: int | None = Field(description="Which one, from 1")
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
        progress = ProgressBody.model_validate(job)
        return cls.model_validate(fields | {"sweep": job.sweep_id, "progress": progress} | more)


class QueueBody(BaseModel):
    position: int = Field(
        description="1: it is next. Owners take turns, so jobs of others that come later may go first"
    )
    ahead: int = Field(description="How many queued jobs begin before it, if none comes and none ends meanwhile")
    reason: str = Field(description="What the job waits for")


class JobBody(JobSummary):
    spec: dict[str, Any] = Field(description="The spec with every default filled in")
    queue: QueueBody | None = Field(description="Why it has not begun; null once it is not queued any more")
    threads: int | None = Field(description="Processor threads; decided when the job first starts, and kept")
    resume: Resume | None = Field(
        description="Whether the training, where it was interrupted, went on to the same bits (`exact`) or not "
        "(`approximate`, if only once); null if it never was"
    )
    resume_reason: str | None = Field(description="Why it is approximate")
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
        queue: QueueBody | None,
    ) -> Self:
        # "approximate" sorts before "exact": one attempt that is not the same makes the job so.
        resume, why = min(
            ((each.resume, each.resume_reason) for each in attempts if each.resume),
            key=lambda pair: str(pair[0]),
            default=(None, None),
        )
        return cls.of(
            job,
            attempts=attempts,
            transitions=transitions,
            events=events,
            queue=queue,
            resume=resume,
            resume_reason=why,
        )


class JobPage(BaseModel):
    data: list[JobSummary]
    has_more: bool
    next_cursor: str | None = Field(description="Give this as `after` to get the next page")
