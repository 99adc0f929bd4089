"""Longer work that is asked for over the wire, each in a process of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.jobs.settings import Settings
from worker.jobs.wire import BatchRequest, ExportRequest, ImportRequest, ParityRequest

from .models import Models

Errand = BatchRequest | ExportRequest | ParityRequest | ImportRequest


@dataclass(frozen=True)
class Place:
    """Where an errand works, and what it may take from strangers."""

    models: Models
    settings: Settings  # its data folder, and the limits

    @property
    def data_dir(self) -> Path:
        return self.settings.data_dir


def run(place: Place, request: Errand) -> Iterator[bytes]:
    """The parts of the answer, as they are done. Raises the EpochdErrors of the errand."""
    # Imported here: an exporter takes a second to import, and a predictor that answers pictures never needs it.
    match request:
        case BatchRequest():
            from .batch import batch

            return batch(place, request)
        case ParityRequest():
            from .parity import parity

            return parity(place, request)
        case ExportRequest():
            from .exporting import export

            return export(place, request)
        case ImportRequest():
            from .importing import import_

            return import_(place, request)
