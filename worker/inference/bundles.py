"""Bundles: a checkpoint with all that another epochd needs to take it, see `importing.py`."""

import hashlib
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from worker.datasets.opening import open_prepared
from worker.jobs import bundle as contents
from worker.jobs.bundle import BundleCard, File, Labels, Manifest, Vector, Vectors
from worker.jobs.errors import (
    CheckpointCorrupt,
    NotExportable,
)
from worker.jobs.files import require_space
from worker.jobs.wire import ExportRequest, OfDataset
from worker.training.checkpoints import Metadata

from .answers import look
from .errands import Place
from .models import Ready
from .parity import png

NOT_FINITE: Final = "The network gives numbers that are not finite, so nothing can be compared with them."
_VECTORS: Final = 16
_CHUNK: Final = 2**20
_README: Final = """# A model made by epochd

`model.safetensors` holds the weights (https://huggingface.co/docs/safetensors); the key `epochd` of its header's
metadata holds the spec, from which the network is built. `preprocessing.json` says how a picture becomes its input:
scaled until it covers height x width and cut to its centre, divided by 255, `mean` subtracted and divided by `std` per
channel, then scaled to `image_size` if that is set. `labels.json` names the outputs. `vectors.json` has outputs for the
pictures in `vectors/`, to check yourself by.

Another epochd takes this file: curl -F bundle=@bundle.zip <address>/models/import
"""


def bundle(place: Place, request: ExportRequest, path: Path) -> None:
    """Raises CheckpointCorrupt, DatasetMissing, DatasetChanged and NotExportable."""
    try:
        weights = (place.data_dir / request.path).open("rb")  # from now on it may be deleted
    except OSError as error:
        raise CheckpointCorrupt from error
    with weights:
        ready = place.models.get(request.path, request.sha256)
        files = _files(place, request, ready)
        size = os.fstat(weights.fileno()).st_size
        require_space(path.parent, place.settings.min_free_bytes, size)
        known = {name: File(sha256=hashlib.sha256(file).hexdigest(), bytes=len(file)) for name, file in files.items()}
        known[contents.WEIGHTS] = File(sha256=request.sha256, bytes=size)
        manifest = Manifest(format=contents.FORMAT, files=known)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
            made.writestr(_info(contents.MANIFEST), manifest.model_dump_json(indent=1))
            for name, file in files.items():
                made.writestr(_info(name), file)
            with made.open(_info(contents.WEIGHTS, size), "w") as target:
                shutil.copyfileobj(weights, target, _CHUNK)


def _files(place: Place, request: ExportRequest, ready: Ready) -> dict[str, bytes]:
    """All but the weights and the manifest."""
    metadata = ready.metadata
    pictures = _pictures(place, metadata, request.dataset)
    files = {f"vectors/{number:03}.png": png(picture) for number, picture in enumerate(pictures)}
    seen = [look(ready, file, place.settings.max_pixels, auto_fix=False).pixels for file in files.values()]
    outputs = ready.logits(torch.stack(seen))
    if not outputs.isfinite().all():
        raise NotExportable(NOT_FINITE)
    vectors = [Vector(file=name, outputs=row) for name, row in zip(files, outputs.tolist(), strict=True)]
    card = BundleCard.model_validate(request.about)
    texts = {
        contents.CARD: card.model_dump_json(indent=1),
        contents.LABELS: Labels(classes=metadata.classes, targets=metadata.targets).model_dump_json(indent=1),
        contents.PREPROCESSING: metadata.preprocessing.model_dump_json(indent=1),
        contents.METRICS: card.metrics.model_dump_json(indent=1),
        contents.VECTORS: Vectors(vectors=vectors).model_dump_json(),
        contents.README: _README,
    }
    return files | {name: text.encode() for name, text in texts.items()}


def _info(name: str, size: int = 0) -> zipfile.ZipInfo:
    """Without the time of day: a checkpoint's bundle has the same bytes whenever it is asked for."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size
    return info


def _pictures(place: Place, metadata: Metadata, dataset: OfDataset | None) -> Tensor:
    """Of the dataset's test pictures some, evenly spaced; where it is not here any more, noise from a fixed seed."""
    if dataset is not None:
        images = open_prepared(place.data_dir / dataset.folder, dataset.sha256).test.images
        return images[torch.linspace(0, len(images) - 1, min(len(images), _VECTORS)).round().long()]
    shape = metadata.preprocessing
    generator = torch.Generator().manual_seed(0)
    size = (_VECTORS, shape.channels, shape.height, shape.width)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator)
