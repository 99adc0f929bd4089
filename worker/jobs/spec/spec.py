"""The spec: the request body of a job. `{}` is valid and means the tutorial's values."""

from typing import Literal, Self

from pydantic import Field, model_validator

from . import fitting
from .models import MLP, Model
from .part import Name, Part, Text
from .training import (
    EMA,
    SGD,
    Augmentation,
    Checkpoints,
    Constant,
    CrossEntropy,
    EarlyStopping,
    Loss,
    Optimizer,
    Schedule,
)
from .webhooks import Webhook


class Dataset(Part):
    """A version of a dataset, built in or uploaded."""

    name: Name = Field("fashion-mnist", description="Which pictures to train and test on; `GET /datasets` lists them")
    version: int | None = Field(None, ge=1, lt=2**31, description="Unset: the newest; the job keeps which one that was")


class Spec(Part):
    """What to train, on what, and how."""

    name: Text | None = Field(None, description="A name for people; need not be unique")
    priority: int = Field(
        0, ge=-100, le=100, description="Among your own jobs: the highest is trained first, of equals the oldest"
    )
    labels: dict[Text, Text] = Field(
        default_factory=dict, max_length=32, description="Your own key-value pairs, kept with the job"
    )
    dataset: Dataset = Field(Dataset(), description="What to train on")
    normalization: Literal["none", "dataset", "imagenet"] = Field(
        "none",
        description="Pixels are scaled to 0..1; then `dataset` or `imagenet` brings each channel to mean 0 and "
        "deviation 1 by the statistics of the training pictures, or of ImageNet",
    )
    augmentation: Augmentation = Field(Augmentation(), description="Random changes of the training pictures")
    model: Model = Field(MLP(), description="The network")
    loss: Loss = Field(CrossEntropy(), description="What training minimises")
    optimizer: Optimizer = Field(SGD(), description="How a gradient becomes a step")
    schedule: Schedule = Field(Constant(), description="How the learning rate changes")
    batch_size: int = Field(64, ge=1, le=65_536, description="Pictures per step")
    accumulation: int = Field(
        1,
        ge=1,
        le=65_536,
        description="In how many parts, at most, a batch goes through the network; the gradients are added up, so the "
        "step stays the same and memory gets less. Batch norm sees the parts",
    )
    epochs: int = Field(5, ge=1, le=100_000, description="Passes over the training pictures")
    shuffle: bool = Field(True, description="Whether each epoch has an order of its own, derived from the seed")
    seed: int = Field(0, ge=0, lt=2**63, description="Where all randomness of the job comes from")
    clip_gradient: float | None = Field(
        None, gt=0.0, le=1e6, description="Longest gradient (L2 norm over all weights); a longer one is shortened"
    )
    ema: EMA | None = Field(None, description="Average the weights over steps")
    early_stopping: EarlyStopping | None = Field(None, description="End when it no longer gets better")
    checkpoints: Checkpoints = Field(Checkpoints(), description="Which checkpoints stay, and which is the best")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = Field(
        "fp32",
        description="Number format of the arithmetic: weights are always fp32; bf16 and fp16 are mixed precision, fp16 "
        "with loss scaling; tf32 rounds the factors of products on a GPU, and is fp32 on a CPU",
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$",
        description="`auto` takes a GPU when there is one; `cpu`, `cuda` or `cuda:<n>` insist",
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Processor threads, as far as there are cores; they are part of the result's last digits. Unset: "
        "all cores for a job alone, fewer when more jobs wait. Decided when the job first starts, and kept",
    )
    memory_limit_mb: int | None = Field(
        None,
        ge=16,
        le=2**24,
        description="Most memory that the training may take, in MiB (of the GPU, where it runs on one). What does not "
        "fit goes through the network in smaller parts",
    )
    webhooks: list[Webhook] = Field(
        [], max_length=5, description="Who is told how the job ends; only where the service sends webhooks"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        fitting.check(self)
        return self
