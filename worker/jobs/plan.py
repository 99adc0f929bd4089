"""What a job will be: the answer to `POST /jobs?dry_run=true`, computed where torch is."""

from pydantic import BaseModel, Field

from .spec import Spec


class Memory(BaseModel):
    """Bytes beyond what a training process takes anyway. An estimate: trainings took 0.7 to 1.7 times as much."""

    weights_bytes: int = Field(description="Weights and buffers, and their average where there is one")
    gradients_bytes: int
    optimizer_bytes: int = Field(description="What the optimizer remembers of each weight")
    activations_bytes: int = Field(description="What a micro-batch leaves between forward and backward")
    batch_bytes: int = Field(description="The pictures of a batch, as bytes and as the network sees them")
    peak_bytes: int = Field(description="All of it together")


class Plan(BaseModel):
    spec: Spec = Field(description="The spec with every default filled in")
    parameters: int = Field(description="Weights that are trained")
    steps_per_epoch: int
    steps: int = Field(description="Of the whole job")
    micro_batch: int = Field(description="Pictures that go through the network at once")
    checkpoint_bytes: int = Field(description="Of one checkpoint: weights, and what going on needs")
    memory: Memory
    available_bytes: int | None = Field(
        description="What the training may take: `memory_limit_mb`, or the memory of the machine; null on a GPU"
    )
    fitting_micro_batch: int | None = Field(
        description="How many pictures at once are expected to fit: when less than `micro_batch`, the training will "
        "find out and divide its batches; null when nobody knows what is available"
    )
