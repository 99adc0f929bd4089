"""What the service and the predictor say to each other: frames of a JSON head and a raw body over a socket.

A frame is two unsigned 32-bit lengths (network order), then the head as JSON, then the body as it is.
"""

import struct
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from .card import Card
from .plan import Plan
from .spec import Spec

LENGTHS = struct.Struct("!II")


class PredictRequest(BaseModel):
    """The head of a request; the body is the picture's file as it was uploaded."""

    kind: Literal["predict"] = "predict"
    id: int
    path: str  # of the weights, relative to the data folder
    sha256: str
    top_k: int


class PlanRequest(BaseModel):
    """The head of a question for the plan of a job; its body is empty."""

    kind: Literal["plan"] = "plan"
    id: int
    spec: Spec
    card: Card


AnyRequest = TypeAdapter[PredictRequest | PlanRequest](
    Annotated[PredictRequest | PlanRequest, Field(discriminator="kind")]
)


class Guess(BaseModel):
    class_index: int
    label: str
    probability: float


class ClassPrediction(Guess):
    """What a network for classes says."""

    top: list[Guess]
    warnings: list[str] = []


class NumberPrediction(BaseModel):
    """What a network for numbers says (regression)."""

    value: float | None = Field(description="The number; null when there are several, or when it is not finite")
    values: dict[str, float | None] = Field(description="Each target's number by its name; null when not finite")
    warnings: list[str] = []


Prediction = ClassPrediction | NumberPrediction


HELLO = 0  # the id of the frame that a predictor sends once, when it can answer; requests count from 1


class Answer(BaseModel):
    """The head of an answer; its body is empty. Either what was asked for, or `code` and `detail` are there."""

    id: int
    prediction: Prediction | None = None
    plan: Plan | None = None
    code: str | None = None
    detail: str | None = None
    pointer: str | None = None  # of a spec that is refused


def pack(head: BaseModel, body: bytes = b"") -> bytes:
    encoded = head.model_dump_json().encode()
    return LENGTHS.pack(len(encoded), len(body)) + encoded + body
