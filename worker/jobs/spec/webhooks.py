"""Who is told what about a job."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from worker.jobs.texts import printable

from .part import Part
from .training import Metric

Told = Literal["job.succeeded", "job.failed", "job.cancelled", "job.metric"]  # each a `WebhookEvent`


class Threshold(Part):
    """What a metric has to reach."""

    name: Metric = Field(description="Which metric to watch")
    above: float | None = Field(
        None, ge=-1e9, le=1e9, description="Tell of the first epoch in which it is at least this,"
    )
    below: float | None = Field(None, ge=-1e9, le=1e9, description="or at most this; one of the two")

    @model_validator(mode="after")
    def _has_one_side(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give one of `above` and `below`")
        return self


class Webhook(Part):
    """An address that is told how the job ends, or that a metric has got somewhere."""

    # Whether it may be called is for the service to say, by `addresses.py`: its answer has a code of its own.
    url: Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(printable)] = Field(
        description="Where to send a POST: https, on the public network",
        json_schema_extra={"format": "uri", "pattern": "^https://", "examples": ["https://hooks.example.com/epochd"]},
    )
    events: list[Told] = Field(
        ["job.succeeded", "job.failed", "job.cancelled"],
        max_length=4,
        description="What to tell of; `job.metric`, with `metric`, goes without saying",
    )
    metric: Threshold | None = Field(None, description="Tell too, once, when a metric has reached a threshold")

    @model_validator(mode="after")
    def _has_something_to_tell(self) -> Self:
        if "job.metric" in self.events and self.metric is None:
            raise ValueError("`job.metric` needs `metric`, which says what to watch")
        if not self.events and self.metric is None:
            raise ValueError("name an event, or leave `events` out")
        return self
