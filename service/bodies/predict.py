"""Answers to pictures."""

from pydantic import BaseModel, Field
from worker.jobs.wire import Prediction


class AnsweredBy(BaseModel):
    epoch: int
    sha256: str


class PredictBody(BaseModel):
    job: str = Field(description="Which job answered")
    checkpoint: AnsweredBy
    predictions: list[Prediction] = Field(description="One a picture, in the order they were sent")
