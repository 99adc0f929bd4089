"""What the service and its predictor processes say to each other: frames over a socket.

A frame is its kind, the id of the request that it belongs to, and two lengths (network order), then a JSON head, then
a body as it is. A request has a head that says what is wanted. An answer has none: its body is what was asked for.
"""

import struct
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from .card import Card
from .spec import Spec

FRAME = struct.Struct("!BQII")  # kind, id, bytes of the head, bytes of the body


class FrameKind(IntEnum):
    HELLO = 0  # a process is ready; the body is its pid
    REQUEST = 1
    ANSWER = 2  # all of it
    PART = 3  # of an answer that is a stream
    END = 4  # of a stream
    PROBLEM = 5  # the body is a `WireProblem`


class OfCheckpoint(BaseModel):
    path: str  # of the weights, relative to the data folder
    sha256: str


class OfDataset(BaseModel):
    folder: str  # of the prepared arrays, relative to the data folder
    sha256: str  # of their contents


class PredictRequest(OfCheckpoint):
    """The body is a picture's file as it was uploaded; the answer is a `Prediction` as JSON."""

    kind: Literal["predict"] = "predict"
    top_k: int
    auto_fix: bool = False
    threads: int = 1  # of the processor's; a running job keeps its cores


class InferRequest(OfCheckpoint):
    """The body is a request of the Open Inference Protocol: JSON of `json_bytes`, then binary tensors.

    So is the answer, behind the length of its JSON as an unsigned 32-bit number (network order).
    """

    kind: Literal["infer"] = "infer"
    json_bytes: int
    model_name: str
    model_version: str
    threads: int = 1


class WarmRequest(OfCheckpoint):
    """Have a checkpoint loaded; the answer is empty."""

    kind: Literal["warm"] = "warm"


class PlanRequest(BaseModel):
    """Asks for the `Plan` of a job, as JSON."""

    kind: Literal["plan"] = "plan"
    spec: Spec
    card: Card


class BatchRequest(OfCheckpoint):
    """Asks for a prediction of each picture of an archive or of a split of a dataset: a stream of lines."""

    kind: Literal["batch"] = "batch"
    format: Literal["csv", "ndjson"]
    top_k: int
    auto_fix: bool = False
    archive: str | None = None  # relative to the data folder; or
    dataset: OfDataset | None = None
    split: Literal["train", "test"] = "test"
    threads: int = 1


class ExportRequest(OfCheckpoint):
    """Has a checkpoint written as a file of another kind; the answer is empty."""

    kind: Literal["export"] = "export"
    format: Literal["pt2", "onnx", "bundle"]
    to: str  # relative to the data folder
    about: dict[str, object] = {}  # of a bundle: what the database knows of the job
    dataset: OfDataset | None = None  # of a bundle: where its test vectors come from


class ParityRequest(OfCheckpoint):
    """Asks how the answers to a dataset's test pictures differ from what the test loop computes: `Parity` as JSON."""

    kind: Literal["parity"] = "parity"
    dataset: OfDataset


class ImportRequest(BaseModel):
    """Has a bundle checked and its weights unpacked; the answer says what is in it, as JSON."""

    kind: Literal["import"] = "import"
    archive: str  # relative to the data folder
    to: str  # the weights, relative to the data folder


Errand = PlanRequest | BatchRequest | ExportRequest | ParityRequest | ImportRequest
AnyRequest = PredictRequest | InferRequest | WarmRequest | Errand
ANY_REQUEST = TypeAdapter[AnyRequest](Annotated[AnyRequest, Field(discriminator="kind")])


class WireProblem(BaseModel):
    code: str
    detail: str
    pointer: str | None = None  # of a spec that is refused


class Guess(BaseModel):
    class_index: int
    label: str
    probability: float


class ClassPrediction(Guess):
    """What a network for classes says."""

    top: list[Guess]
    warnings: list[str] = Field([], description="How the picture is unlike those that the network was trained on")
    fixed: list[str] = Field([], description="With `auto_fix`: what was done about it")


class NumberPrediction(BaseModel):
    """What a network for numbers says (regression)."""

    value: float | None = Field(description="The number; null when there are several, or when it is not finite")
    values: dict[str, float | None] = Field(description="Each target's number by its name; null when not finite")
    warnings: list[str] = Field([], description="How the picture is unlike those that the network was trained on")
    fixed: list[str] = Field([], description="With `auto_fix`: what was done about it")


Prediction = ClassPrediction | NumberPrediction


def pack(kind: FrameKind, request_id: int, head: bytes = b"", body: bytes = b"") -> bytes:
    return FRAME.pack(kind, request_id, len(head), len(body)) + head + body
