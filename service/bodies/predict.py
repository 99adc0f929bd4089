"""Answers to pictures."""

from pydantic import BaseModel, Field
from worker.jobs.wire import Prediction


class AnsweredBy(BaseModel):
    epoch: int
    sha256: str


class EpochBody(BaseModel):
    checkpoint: AnsweredBy
    predictions: list[Prediction] = Field(description="One a picture, in the order they were sent")


class PredictBody(EpochBody):
    job: str = Field(description="Which job answered")


class EpochsBody(BaseModel):
    job: str = Field(description="Which job answered")
    epochs: list[EpochBody] = Field(description="What each checkpoint says, oldest first")
