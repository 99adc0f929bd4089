"""What is in a model's bundle: a zip by which a checkpoint goes from one epochd to another."""

from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BaseModel, Field

FORMAT: Final = 1  # raised when an older epochd could not read a new bundle
MANIFEST, WEIGHTS, CARD = "manifest.json", "model.safetensors", "card.json"
LABELS, PREPROCESSING, METRICS, README = "labels.json", "preprocessing.json", "metrics.json", "README.md"
VECTORS: Final = "vectors.json"
NAMES: Final = frozenset({MANIFEST, WEIGHTS, CARD, LABELS, PREPROCESSING, METRICS, README, VECTORS})

_Text = Annotated[str, Field(max_length=200)]


class File(BaseModel, extra="forbid"):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(BaseModel, extra="forbid"):
    format: int
    files: dict[_Text, File] = Field(max_length=200, description="All others")


class Metrics(BaseModel):
    """Of the checkpoint's epoch. Finite, or null."""

    train_loss: float | None = Field(None, allow_inf_nan=False)
    test_loss: float | None = Field(None, allow_inf_nan=False)
    test_accuracy: float | None = Field(None, ge=0, le=1)
    test_top5_accuracy: float | None = Field(None, ge=0, le=1)
    test_f1: float | None = Field(None, ge=0, le=1)
    test_mae: float | None = Field(None, allow_inf_nan=False)
    test_r2: float | None = Field(None, allow_inf_nan=False)
    learning_rate: float = Field(0.0, allow_inf_nan=False)
    samples_per_second: float = Field(0.0, allow_inf_nan=False)
    train_seconds: float = Field(0.0, allow_inf_nan=False)
    test_seconds: float = Field(0.0, allow_inf_nan=False)
    gradient_norm: float | None = Field(None, allow_inf_nan=False)
    peak_memory_bytes: int | None = Field(None, ge=0, lt=2**63)


class BundleCard(BaseModel):
    """What the database that it comes from knew."""

    job: str = Field(max_length=64)
    name: str | None = Field(None, max_length=100)
    labels: dict[_Text, _Text] = Field({}, max_length=64)
    created_at: datetime
    provenance: dict[str, Any] | None = None
    metrics: Metrics


class Labels(BaseModel):
    """Names of the outputs: one of both is empty."""

    classes: list[str]
    targets: list[str]


class Vector(BaseModel, extra="forbid"):
    file: str = Field(pattern="^vectors/[0-9]{3}[.]png$")
    outputs: list[float] = Field(min_length=1, max_length=100_000)


class Vectors(BaseModel, extra="forbid"):
    """Pictures, and what the network gave for them."""

    vectors: list[Vector] = Field(min_length=1, max_length=128)


class Imported(BaseModel):
    """What was found in a bundle whose vectors were right."""

    card: BundleCard
    spec: dict[str, Any]
    epoch: int
    sha256: str
    bytes: int
    weights_sha256: str
    largest_difference: float
