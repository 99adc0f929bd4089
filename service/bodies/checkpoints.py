"""A job's checkpoints."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field
from worker.jobs.records import KeptCheckpoint

from .metrics import MetricsRow


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
