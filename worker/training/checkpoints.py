"""Checkpoints: the weights after an epoch, plus what is needed to go on.

Two files. The weights are safetensors that anyone can read, and explain themselves in their metadata; optimizer
state is in a second file that only we read. Each appears whole: written under a temporary name in the same folder,
flushed, renamed, the folder flushed; only then may a row name it.
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from worker.datasets.pictures import Preprocessing
from worker.jobs.errors import CheckpointCorrupt
from worker.jobs.files import fsync
from worker.jobs.records import SavedCheckpoint
from worker.jobs.spec import Spec

FORMAT = 1  # raised when an older epochd could not read a new checkpoint
_METADATA_KEY = "epochd"


class Metadata(BaseModel):
    """What a checkpoint says about itself; JSON under the key `epochd` of the safetensors header."""

    format: int = FORMAT
    job: str
    epoch: int
    spec: Spec
    classes: list[str]  # empty for regression
    targets: list[str] = []  # names of the numbers; empty for classification
    preprocessing: Preprocessing
    dataset_sha256: str
    metrics: dict[str, float | None]

    @property
    def outputs(self) -> int:
        """How many numbers the network gives for a picture."""
        return len(self.classes) or len(self.targets)


@dataclass(frozen=True)
class Loaded:
    metadata: Metadata
    weights: dict[str, Tensor]


def save(data_dir: Path, metadata: Metadata, attempt: int, model: nn.Module, optimizer: Optimizer) -> SavedCheckpoint:
    """Writes both files durably. The attempt is part of their names, so two attempts never share one."""
    folder = Path("jobs", metadata.job, "checkpoints")
    (data_dir / folder).mkdir(parents=True, exist_ok=True)
    stem = f"epoch-{metadata.epoch:06d}-attempt-{attempt}"
    weights = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        {_METADATA_KEY: metadata.model_dump_json()},
    )
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict()}, buffer)
    state = buffer.getvalue()
    path, state_path = folder / f"{stem}.safetensors", folder / f"{stem}.state.pt"
    _write_durably(data_dir / state_path, state)
    _write_durably(data_dir / path, weights)
    return SavedCheckpoint(
        path=str(path),
        sha256=_sha256(weights),
        bytes=len(weights),
        state_path=str(state_path),
        state_sha256=_sha256(state),
    )


def load(path: Path, sha256: str) -> Loaded:
    """Weights on the CPU, and what they are. Raises CheckpointCorrupt."""
    contents = _read_verified(path, sha256)
    try:
        length = int.from_bytes(contents[:8], "little")
        header = Metadata.model_validate_json(_metadata(contents[8 : 8 + length]))
        return Loaded(header, safetensors.torch.load(contents))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointCorrupt from error


def load_state(path: Path, sha256: str) -> dict[str, Any]:
    """What `save` kept beside the weights. Raises CheckpointCorrupt."""
    contents = _read_verified(path, sha256)
    state: dict[str, Any] = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    return state


def _metadata(header: bytes) -> str:
    # safetensors' own reader of metadata wants a file; its header is plain JSON.
    text = json.loads(header)["__metadata__"][_METADATA_KEY]
    assert isinstance(text, str)
    return text


def _read_verified(path: Path, sha256: str) -> bytes:
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise CheckpointCorrupt from error
    if _sha256(contents) != sha256:
        raise CheckpointCorrupt
    return contents


def _sha256(contents: bytes) -> str:
    return hashlib.sha256(contents).hexdigest()


def _write_durably(path: Path, contents: bytes) -> None:
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    fsync(path.parent)
