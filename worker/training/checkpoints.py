"""Checkpoints: the weights after an epoch, plus what is needed to go on.

Two files. The weights are safetensors that anyone can read, and explain themselves in their metadata; optimizer
state is in a second file that only we read. Each appears whole: written under a temporary name in the same folder,
flushed, renamed, the folder flushed; only then may a row name it.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor

from worker.datasets.looks import Looks
from worker.datasets.pictures import Preprocessing
from worker.jobs.errors import CheckpointCorrupt
from worker.jobs.files import write_durably
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.records import SavedCheckpoint, SavedSteps
from worker.jobs.spec import Spec

FORMAT = 2  # raised when an older epochd could not read a new checkpoint
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
    looks: Looks | None = None  # of the training pictures; checkpoints of before have none
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


@dataclass(frozen=True)
class Place:
    """Where the checkpoints of an attempt go."""

    data_dir: Path
    job_id: str
    attempt: int  # part of the names, so two attempts never share a file
    spare_bytes: int  # what has to stay free on the disk

    def write(self, name: str, contents: bytes) -> str:
        """Durably. Returns the path, relative to the data folder. Raises DiskFull."""
        path = checkpoints_folder(self.job_id) / name
        (self.data_dir / path).parent.mkdir(parents=True, exist_ok=True)
        write_durably(self.data_dir / path, contents, spare_bytes=self.spare_bytes)
        return str(path)


def save(place: Place, metadata: Metadata, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> SavedCheckpoint:
    """Writes both files durably. Raises DiskFull.

    `state`: what going on needs beside the weights; plain types and tensors, so that it can be read without trust.
    """
    stem = f"epoch-{metadata.epoch:06d}-attempt-{place.attempt}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    contents = safetensors.torch.save(tensors, {_METADATA_KEY: metadata.model_dump_json()})
    of_state = _packed(state)
    return SavedCheckpoint(
        state_path=place.write(f"{stem}.state.pt", of_state),
        state_sha256=_sha256(of_state),
        path=place.write(f"{stem}.safetensors", contents),
        sha256=_sha256(contents),
        bytes=len(contents),
        weights_sha256=digest(tensors),
    )


def save_steps(place: Place, epoch: int, batch: int, state: Mapping[str, Any]) -> SavedSteps:
    """A checkpoint inside an epoch, weights and all in one file that only we read. Raises DiskFull."""
    contents = _packed(state)
    path = place.write(f"epoch-{epoch:06d}-batch-{batch:06d}-attempt-{place.attempt}.steps.pt", contents)
    return SavedSteps(epoch, batch, path, _sha256(contents), len(contents))


def _packed(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    return buffer.getvalue()


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the weights alone, on the CPU: equal for equal trainings, whatever the job is called."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


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
    """What `save` kept beside the weights, or all that `save_steps` did. Raises CheckpointCorrupt."""
    contents = _read_verified(path, sha256)
    state: dict[str, Any] = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    if state.get("format", 1) > FORMAT:  # of a newer epochd
        raise CheckpointCorrupt
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
