"""Bundles: written from a checkpoint, and taken in again once their own test pictures give the same outputs.

Nothing in one is ever unpickled, and none of its names becomes a path.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from worker.datasets.archive import DAMAGED
from worker.datasets.containers import Entry, entries
from worker.datasets.opening import open_prepared
from worker.jobs import bundle as contents
from worker.jobs.bundle import BundleCard, File, Imported, Manifest, Vector, Vectors
from worker.jobs.errors import ArchiveTooLarge, BadArchive, BadBundle, EpochdError, UnsafePath
from worker.jobs.files import require_space
from worker.jobs.processes import limit_memory
from worker.jobs.wire import ExportRequest, ImportRequest, OfDataset
from worker.training import checkpoints
from worker.training.checkpoints import Metadata

from .answers import look
from .errands import Place
from .models import Models, Ready
from .parity import TOLERANCES, png

_VECTORS: Final = 16
_MOST_ENTRIES: Final = 256
_MOST_BYTES: Final = 32 * 2**20  # of all files but the weights
_MOST_MEMORY: Final = 8 * 2**30  # that a stranger's network may take while it is tried
_CHUNK: Final = 2**20
_OF_A_VECTOR: Final = re.compile(r"vectors/[0-9]{3}\.png")
_README: Final = """# A model made by epochd

`model.safetensors` holds the weights (https://huggingface.co/docs/safetensors); the key `epochd` of its header's
metadata holds the spec, from which the network is built. `preprocessing.json` says how a picture becomes its input:
scaled until it covers height x width and cut to its centre, divided by 255, `mean` subtracted and divided by `std` per
channel, then scaled to `image_size` if that is set. `labels.json` names the outputs. `vectors.json` has outputs for the
pictures in `vectors/`, to check yourself by.

Another epochd takes this file: curl -F bundle=@bundle.zip <address>/models/import
"""
M = TypeVar("M", bound=BaseModel)


def bundle(place: Place, request: ExportRequest, path: Path) -> None:
    """Raises CheckpointCorrupt, DatasetMissing and DatasetChanged."""
    ready = place.models.get(request.path, request.sha256)
    metadata = ready.metadata
    pictures = _pictures(place, metadata, request.dataset)
    files = {f"vectors/{number:03}.png": png(picture) for number, picture in enumerate(pictures)}
    seen = [look(ready, file, place.settings.max_pixels, auto_fix=False).pixels for file in files.values()]
    outputs = ready.logits(torch.stack(seen)).tolist()
    vectors = [Vector(file=name, outputs=row) for name, row in zip(files, outputs, strict=True)]
    card = BundleCard.model_validate(request.about)
    texts = {
        contents.CARD: card.model_dump_json(indent=1),
        contents.LABELS: json.dumps({"classes": metadata.classes, "targets": metadata.targets}, indent=1),
        contents.PREPROCESSING: metadata.preprocessing.model_dump_json(indent=1),
        contents.METRICS: card.metrics.model_dump_json(indent=1),
        contents.VECTORS: Vectors(vectors=vectors).model_dump_json(),
        contents.README: _README,
    }
    files |= {name: text.encode() for name, text in texts.items()}
    weights = place.data_dir / request.path
    known = {name: File(sha256=hashlib.sha256(file).hexdigest(), bytes=len(file)) for name, file in files.items()}
    known[contents.WEIGHTS] = File(sha256=request.sha256, bytes=weights.stat().st_size)
    manifest = Manifest(format=contents.FORMAT, files=known)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as made:
        made.writestr(contents.MANIFEST, manifest.model_dump_json(indent=1))
        for name, file in files.items():
            made.writestr(name, file)
        made.write(weights, contents.WEIGHTS)


def _pictures(place: Place, metadata: Metadata, dataset: OfDataset | None) -> Tensor:
    """Of the dataset's test pictures some, evenly spaced; where it is not here any more, noise from a fixed seed."""
    if dataset is not None:
        images = open_prepared(place.data_dir / dataset.folder, dataset.sha256).test.images
        return images[torch.linspace(0, len(images) - 1, min(len(images), _VECTORS)).round().long()]
    shape = metadata.preprocessing
    generator = torch.Generator().manual_seed(0)
    size = (_VECTORS, shape.channels, shape.height, shape.width)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator)


def import_(place: Place, request: ImportRequest) -> Iterator[bytes]:
    """An `Imported` as JSON, once everything in the bundle is as it says. Then the weights are in their place.

    Raises BadBundle and DiskFull.
    """
    weights = place.data_dir / request.to
    weights.parent.mkdir(parents=True, exist_ok=True)
    scratch = weights.with_name(f".{weights.name}.writing")
    try:
        files, manifest = _unpacked(place, place.data_dir / request.archive, scratch)
        found = _tried(place, scratch, files, manifest)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.rename(weights)
        yield found.model_dump_json().encode()
    finally:
        scratch.unlink(missing_ok=True)


def _unpacked(place: Place, archive: Path, weights: Path) -> tuple[dict[str, bytes], Manifest]:
    """All files but the weights, which go to their own; each is what the manifest says."""
    files: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    spent = 0

    def count(number: int) -> None:
        nonlocal spent
        spent += number
        if spent > place.settings.max_unpacked_bytes:
            raise ArchiveTooLarge

    try:
        with entries(archive, _MOST_ENTRIES, count) as (found, _):
            for entry in found:
                if entry.name in digests or not (entry.name in contents.NAMES or _OF_A_VECTOR.fullmatch(entry.name)):
                    raise BadBundle(f"The bundle holds {entry.name[:80]!r}, which does not belong there.")
                if entry.name == contents.WEIGHTS:
                    digests[entry.name] = _copied(place, entry, weights)
                else:
                    room = _MOST_BYTES - sum(map(len, files.values()))
                    with entry.open() as source:
                        files[entry.name] = source.read(room + 1)
                    if len(files[entry.name]) > room:
                        raise ArchiveTooLarge
                    digests[entry.name] = hashlib.sha256(files[entry.name]).hexdigest()
    except (BadArchive, ArchiveTooLarge, UnsafePath) as error:
        raise BadBundle(f"The bundle cannot be read. {error.detail}") from error
    except DAMAGED as error:
        raise BadBundle("The bundle is damaged, or was cut off.") from error
    manifest = _valid(Manifest, files, contents.MANIFEST)
    if manifest.format > contents.FORMAT:
        raise BadBundle("The bundle was made by a newer epochd.")
    said = {name: file.sha256 for name, file in manifest.files.items()}
    if said != {name: digest for name, digest in digests.items() if name != contents.MANIFEST}:
        raise BadBundle("The bundle's files are not those that its manifest names: they were changed, or are missing.")
    if contents.WEIGHTS not in said:
        raise BadBundle("The bundle holds no weights.")
    return files, manifest


def _copied(place: Place, entry: Entry, to: Path) -> str:
    """Returns the digest. Raises DiskFull."""
    digest = hashlib.sha256()
    with entry.open() as source, to.open("wb") as file:
        while chunk := source.read(_CHUNK):
            require_space(to.parent, place.settings.min_free_bytes, len(chunk))
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _tried(place: Place, weights: Path, files: dict[str, bytes], manifest: Manifest) -> Imported:
    card, vectors = _valid(BundleCard, files, contents.CARD), _valid(Vectors, files, contents.VECTORS)
    sha256 = manifest.files[contents.WEIGHTS].sha256
    limit_memory(_MOST_MEMORY)
    try:
        _check_sizes(checkpoints.load(weights, sha256).metadata, place)
        ready = Models(place.data_dir, 0).get(str(weights.relative_to(place.data_dir)), sha256)
        difference = _difference(place, ready, files, vectors)
        digest = checkpoints.digest(checkpoints.load(weights, sha256).weights)
    except BadBundle:
        raise
    except EpochdError as error:
        raise BadBundle(f"The bundle's network cannot be used. {error.detail}") from error
    except Exception as error:  # torch raises what it likes on weights that do not fit
        raise BadBundle("The bundle's weights do not fit its network.") from error
    metadata = ready.metadata
    return Imported(
        card=card,
        spec=metadata.spec.model_dump(mode="json"),
        epoch=metadata.epoch,
        sha256=sha256,
        bytes=weights.stat().st_size,
        weights_sha256=digest,
        largest_difference=difference,
    )


def _check_sizes(metadata: Metadata, place: Place) -> None:
    """A few bytes of JSON must not make a network that takes all memory."""
    shape = metadata.preprocessing
    height, width = shape.input_size
    pixels = max(shape.height * shape.width, height * width)
    if not (1 <= pixels <= place.settings.max_pixels and shape.channels in (1, 3) and metadata.outputs >= 1):
        raise BadBundle("The bundle's network is for pictures of a size that is not accepted here.")


def _difference(place: Place, ready: Ready, files: dict[str, bytes], vectors: Vectors) -> float:
    """The largest, of any output of any vector."""
    largest = 0.0
    for vector in vectors.vectors:
        seen = look(ready, files.get(vector.file, b""), place.settings.max_pixels, auto_fix=False)
        (found,) = ready.logits(seen.pixels[None])
        expected = torch.tensor(vector.outputs)
        if found.shape != expected.shape:
            raise BadBundle("The bundle's test vectors are not of its network.")
        tolerance = max(1e-3, TOLERANCES[ready.metadata.spec.precision]) * expected.abs().max()
        difference = (found - expected).abs().max()
        if not difference <= tolerance:
            raise BadBundle(f"The network gives other outputs for {vector.file} than the bundle says.")
        largest = max(largest, float(difference))
    return largest


def _valid(kind: type[M], files: dict[str, bytes], name: str) -> M:
    try:
        return kind.model_validate_json(files.get(name, b""))
    except ValidationError as error:
        raise BadBundle(f"The bundle's {name} is missing or not as it should be.") from error
