"""Aliases: names that point at a checkpoint."""

from datetime import datetime
from typing import Self

from pydantic import BaseModel, Field
from worker.jobs.aliases import Pointed


class TargetBody(BaseModel):
    epoch: int
    sha256: str | None = Field(
        description="Of the file. Null when it is gone: it was damaged, and the job has not trained the epoch again yet"
    )


class PreviousBody(BaseModel):
    job: str
    epoch: int


class AliasBody(BaseModel):
    name: str
    owner: str = Field("", description="The id of the key whose it is; empty: it belongs to no key")
    job: str = Field(description="Which job it points at")
    checkpoint: TargetBody
    version: int = Field(description="From 1; grows whenever it is pointed at something else")
    previous: PreviousBody | None = Field(description="What `rollback` goes back to")
    created_at: datetime
    updated_at: datetime = Field(description="Since when it points at this")
    url: str

    @classmethod
    def of(cls, pointed: Pointed) -> Self:
        alias, checkpoint = pointed.alias, pointed.checkpoint
        previous = None
        if alias.previous_job_id is not None and alias.previous_epoch is not None:
            previous = PreviousBody(job=alias.previous_job_id, epoch=alias.previous_epoch)
        return cls(
            name=alias.name,
            owner=alias.owner,
            job=alias.job_id,
            checkpoint=TargetBody(epoch=alias.epoch, sha256=checkpoint.sha256 if checkpoint else None),
            version=alias.version,
            previous=previous,
            created_at=alias.created_at,
            updated_at=alias.updated_at,
            url=f"/models/{alias.name}",
        )


class AliasList(BaseModel):
    data: list[AliasBody]
