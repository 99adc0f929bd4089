"""Checkpoints held ready for answering: loaded once, the least recently used leave first."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from worker.networks.whole import network
from worker.training import checkpoints
from worker.training.checkpoints import Metadata


@dataclass(frozen=True)
class Ready:
    model: nn.Module  # in eval mode
    metadata: Metadata
    bytes: int


class Models:
    def __init__(self, data_dir: Path, max_bytes: int) -> None:
        self._data_dir, self._max_bytes = data_dir, max_bytes
        self._ready: OrderedDict[str, Ready] = OrderedDict()

    def get(self, path: str, sha256: str) -> Ready:
        """The network of a checkpoint, by its digest. Raises CheckpointCorrupt."""
        if sha256 in self._ready:
            self._ready.move_to_end(sha256)
            return self._ready[sha256]
        ready = _load(self._data_dir / path, sha256)
        self._ready[sha256] = ready
        while len(self._ready) > 1 and sum(each.bytes for each in self._ready.values()) > self._max_bytes:
            self._ready.popitem(last=False)
        return ready


def _load(path: Path, sha256: str) -> Ready:
    loaded = checkpoints.load(path, sha256)
    metadata, preprocessing = loaded.metadata, loaded.metadata.preprocessing
    model = network(metadata.spec, preprocessing, metadata.outputs)
    model.load_state_dict(loaded.weights)
    return Ready(model.eval(), metadata, sum(each.nbytes for each in loaded.weights.values()))
