"""Checkpoints: the weights after an epoch, plus what is needed to go on.

Two files. The weights are safetensors that anyone can read, and explain themselves in their metadata; optimizer
state is in a second file that only we read. Each appears whole: written under a temporary name in the same folder,
flushed, renamed, the folder flushed; only then may a row name it.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from pydantic import BaseModel
from safetensors import SafetensorError
from torch import Tensor

from worker.datasets.pictures import Preprocessing
from worker.jobs.errors import CheckpointCorrupt
from worker.jobs.files import fsync
from worker.jobs.records import SavedCheckpoint
from worker.jobs.spec import Spec

FORMAT = 2  # raised when an older epochd could not read a new checkpoint
_ATTEMPT: Final = re.compile(r"-attempt-(\d+)\.")
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


def save(
    data_dir: Path, metadata: Metadata, attempt: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]
) -> SavedCheckpoint:
    """Writes both files durably. The attempt is part of their names, so two attempts never share one.

    `state`: what going on needs beside the weights; plain types and tensors, so that it can be read without trust.
    """
    folder = _folder(metadata.job)
    (data_dir / folder).mkdir(parents=True, exist_ok=True)
    stem = f"epoch-{metadata.epoch:06d}-attempt-{attempt}"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    contents = safetensors.torch.save(tensors, {_METADATA_KEY: metadata.model_dump_json()})
    buffer = io.BytesIO()
    torch.save({**state, "format": FORMAT}, buffer)
    path, state_path = folder / f"{stem}.safetensors", folder / f"{stem}.state.pt"
    _write_durably(data_dir / state_path, buffer.getvalue())
    _write_durably(data_dir / path, contents)
    return SavedCheckpoint(
        path=str(path),
        sha256=_sha256(contents),
        bytes=len(contents),
        weights_sha256=digest(tensors),
        state_path=str(state_path),
        state_sha256=_sha256(buffer.getvalue()),
    )


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the weights alone, on the CPU: equal for equal trainings, whatever the job is called."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def remove_others(data_dir: Path, job_id: str, attempt: int, kept: Collection[str]) -> None:
    """Removes the files of a job's checkpoints that no row names any more; those of its dead attempts too.

    Not those of later attempts: this one may have been frozen since it learned what is kept.
    """
    for path in (data_dir / _folder(job_id)).iterdir():
        made_by = _ATTEMPT.search(path.name)
        if made_by and int(made_by[1]) <= attempt and str(path.relative_to(data_dir)) not in kept:
            path.unlink(missing_ok=True)


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
    if state.get("format", 1) > FORMAT:  # of a newer epochd
        raise CheckpointCorrupt
    return state


def _folder(job_id: str) -> Path:
    """Relative to the data folder."""
    return Path("jobs", job_id, "checkpoints")


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
