"""A sweep, as it is shown."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, JsonValue
from worker.jobs.standings import Overview, Whole
from worker.jobs.states import Status
from worker.jobs.sweeps import Planned

from .row import FromRow


class TrialBody(FromRow):
    trial: int = Field(description="Its number, from 1")
    job: str = Field(description="The id of its job, which can be looked at, cancelled, asked and deleted as any other")
    status: Status
    parameters: dict[str, JsonValue] = Field(description="What varies, by path, as it is in the job's spec")
    epoch: int = Field(description="The last epoch that is done; 0 before the first")
    epochs: int = Field(description="How many it is to have, as things stand")
    value: float | None = Field(description="The best value of the metric so far; null without one that is finite")
    last: float | None = Field(description="The value after its last epoch")
    progress: float = Field(description="0 to 1, of `epochs`")


class SweepSummary(BaseModel):
    id: str
    owner: str = Field(description="The id of the key whose it is; empty: it belongs to no key")
    name: str | None
    status: Literal["running", "finished", "cancelled"] = Field(
        description="`finished`: nothing more was to be trained. A trial that is retried or extended after that is a "
        "job by itself"
    )
    search: str = Field(description="How trials are chosen: grid, random or halving")
    metric: str = Field(description="What is compared")
    rung: int = Field(description="Of halving: how often the best have been chosen and trained on")
    counts: dict[Status, int] = Field(description="How many of its trials have which status")
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, found: Overview, **more: Any) -> Self:
        row = found.row
        fields = {name: getattr(row, name) for name in cls.model_fields if hasattr(row, name)}
        told = {"status": found.status, "counts": found.counts, "metric": row.form["metric"]}
        return cls.model_validate(fields | told | {"search": row.form["search"]["name"]} | more)


class SweepBody(SweepSummary):
    form: dict[str, Any] = Field(description="What was asked for, with every default filled in")
    best: TrialBody | None = Field(
        description="The trial with the best value, whatever became of it; of equals, the one with the lower number"
    )
    trials: list[TrialBody] = Field(description="By their numbers; without those whose jobs were deleted")

    @classmethod
    def whole(cls, found: Whole) -> Self:
        return cls.of(found, best=found.best, trials=found.trials)


class SweepPage(BaseModel):
    data: list[SweepSummary]
    has_more: bool
    next_cursor: str | None = Field(description="Give this as `after` to get the next page")


class PlannedTrial(BaseModel):
    trial: int = Field(description="Its number, from 1")
    parameters: dict[str, JsonValue] = Field(description="What it would be tried with, by path")


class RungBody(FromRow):
    trials: int = Field(description="How many get there, at most")
    epochs: int = Field(description="How many they are trained for by then")


class SweepPlan(BaseModel):
    trials: list[PlannedTrial]
    rungs: list[RungBody] = Field(description="Of halving: who is left, and how long they are trained; else empty")

    @classmethod
    def of(cls, found: Planned) -> Self:
        planned = [PlannedTrial(trial=each.number, parameters=each.parameters) for each in found.trials]
        return cls(trials=planned, rungs=[RungBody.model_validate(each) for each in found.rungs])
