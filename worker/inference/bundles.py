"""Bundles: written from a checkpoint, and taken in again once their own test pictures give the same outputs.

Nothing in one is ever unpickled, and none of its names becomes a path.
"""

import hashlib
import json
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator
from torch import Tensor

from worker.datasets.archive import DAMAGED
from worker.datasets.containers import Entry, entries
from worker.datasets.opening import open_prepared
from worker.datasets.pictures import Preprocessing
from worker.jobs import bundle as contents
from worker.jobs.bundle import BundleCard, File, Imported, Manifest, Vector, Vectors
from worker.jobs.errors import (
    ArchiveTooLarge,
    BadArchive,
    BadBundle,
    CheckpointCorrupt,
    EpochdError,
    NotExportable,
    UnsafePath,
)
from worker.jobs.files import fsync, require_space, told_when_full
from worker.jobs.processes import limit_memory
from worker.jobs.spec import Text
from worker.jobs.wire import ExportRequest, ImportRequest, OfDataset
from worker.training import checkpoints
from worker.training.checkpoints import Metadata

from .answers import look
from .errands import Place
from .models import Models, Ready
from .parity import TOLERANCES, png

NOT_FINITE: Final = "The network gives numbers that are not finite, so nothing can be compared with them."
_VECTORS: Final = 16
_MOST_ENTRIES: Final = 256
_MOST_BYTES: Final = 32 * 2**20  # of all files but the weights
_MOST_RATIO, _ANY_RATIO_BYTES = 100, 64 * 2**20  # trained weights hardly shrink
_MOST_PROVENANCE: Final = 64 * 2**10  # characters of JSON: lists of jobs have it, too
_MOST_MEMORY: Final = 8 * 2**30  # that a stranger's network may take while it is tried
_CHUNK: Final = 2**20
_TOLERANCE: Final = 1e-3  # of the largest output
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


class _Card(BundleCard):
    """One from elsewhere: what both databases can store, and every page can show."""

    job: Text
    name: Text | None = None
    labels: dict[Text, Text] = Field({}, max_length=64)

    @field_validator("provenance")
    @classmethod
    def _is_storable(cls, provenance: dict[str, Any] | None) -> dict[str, Any] | None:
        if len(json.dumps(provenance, allow_nan=False)) > _MOST_PROVENANCE:
            raise ValueError("is too long")
        return provenance


class _Labels(BaseModel):
    """Names of the outputs: one of both is empty."""

    classes: list[str]
    targets: list[str]


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
        contents.LABELS: _labels(metadata).model_dump_json(indent=1),
        contents.PREPROCESSING: metadata.preprocessing.model_dump_json(indent=1),
        contents.METRICS: card.metrics.model_dump_json(indent=1),
        contents.VECTORS: Vectors(vectors=vectors).model_dump_json(),
        contents.README: _README,
    }
    return files | {name: text.encode() for name, text in texts.items()}


def _labels(metadata: Metadata) -> _Labels:
    return _Labels(classes=metadata.classes, targets=metadata.targets)


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
        fsync(weights.parent)
        yield found.model_dump_json().encode()
    finally:
        scratch.unlink(missing_ok=True)


def _unpacked(place: Place, archive: Path, weights: Path) -> tuple[dict[str, bytes], Manifest]:
    """All files but the weights, which go to their own; each is what the manifest says."""
    files: dict[str, bytes] = {}
    digests: dict[str, str] = {}
    spent = 0
    most = min(place.settings.max_unpacked_bytes, max(_MOST_RATIO * archive.stat().st_size, _ANY_RATIO_BYTES))

    def count(number: int) -> None:
        nonlocal spent
        spent += number
        if spent > most:
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
    return files, _checked(_valid(Manifest, files, contents.MANIFEST), files, weights, digests)


def _checked(manifest: Manifest, files: dict[str, bytes], weights: Path, digests: dict[str, str]) -> Manifest:
    """Returns it, when the files are those that it names."""
    if manifest.format > contents.FORMAT:
        raise BadBundle("The bundle was made by a newer epochd.")
    if missing := sorted(contents.NAMES - digests.keys()):
        raise BadBundle(f"The bundle holds no {missing[0]}.")
    sizes = {name: len(file) for name, file in files.items()} | {contents.WEIGHTS: weights.stat().st_size}
    found = {name: File(sha256=digests[name], bytes=size) for name, size in sizes.items()}
    del found[contents.MANIFEST]
    if manifest.files != found:
        raise BadBundle("The bundle's files are not those that its manifest names: they were changed, or are missing.")
    return manifest


def _copied(place: Place, entry: Entry, to: Path) -> str:
    """Returns the digest. Raises DiskFull."""
    digest = hashlib.sha256()
    with told_when_full(), entry.open() as source, to.open("wb") as file:
        while chunk := source.read(_CHUNK):
            require_space(to.parent, place.settings.min_free_bytes, len(chunk))
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def _tried(place: Place, weights: Path, files: dict[str, bytes], manifest: Manifest) -> Imported:
    card, vectors = _valid(_Card, files, contents.CARD), _valid(Vectors, files, contents.VECTORS)
    sha256 = manifest.files[contents.WEIGHTS].sha256
    limit_memory(_MOST_MEMORY)
    try:
        metadata = checkpoints.load(weights, sha256).metadata
        _check_metadata(metadata, place, files)
        ready = Models(place.data_dir, 0).get(str(weights.relative_to(place.data_dir)), sha256)
        difference = _difference(place, ready, files, vectors)
        digest = checkpoints.digest(checkpoints.load(weights, sha256).weights)
    except BadBundle:
        raise
    except EpochdError as error:
        raise BadBundle(f"The bundle's network cannot be used. {error.detail}") from error
    except Exception as error:  # torch raises what it likes on weights that do not fit
        raise BadBundle("The bundle's weights do not fit its network.") from error
    return Imported(
        card=card,
        spec=metadata.spec.model_dump(mode="json"),
        epoch=metadata.epoch,
        sha256=sha256,
        bytes=weights.stat().st_size,
        weights_sha256=digest,
        largest_difference=difference,
    )


def _check_metadata(metadata: Metadata, place: Place, files: dict[str, bytes]) -> None:
    """A few bytes of JSON must not make a network that takes all memory, nor say otherwise than the files beside."""
    if metadata.format > checkpoints.FORMAT:
        raise BadBundle("The bundle was made by a newer epochd.")
    if not 1 <= metadata.epoch <= metadata.spec.epochs:
        raise BadBundle(f"The bundle's epoch cannot be: {metadata.epoch} of {metadata.spec.epochs}.")
    shape = metadata.preprocessing
    height, width = shape.input_size
    pixels = max(shape.height * shape.width, height * width)
    if not (1 <= pixels <= place.settings.max_pixels and shape.channels in (1, 3) and metadata.outputs >= 1):
        raise BadBundle("The bundle's network is for pictures of a size that is not accepted here.")
    if _valid(Preprocessing, files, contents.PREPROCESSING) != shape:
        raise BadBundle(f"The bundle's {contents.PREPROCESSING} is not that of its network.")
    if _valid(_Labels, files, contents.LABELS) != _labels(metadata):
        raise BadBundle(f"The bundle's {contents.LABELS} is not that of its network.")


def _difference(place: Place, ready: Ready, files: dict[str, bytes], vectors: Vectors) -> float:
    """The largest, of any output of any vector."""
    largest, rounding = 0.0, TOLERANCES[ready.metadata.spec.precision]
    for vector in vectors.vectors:
        seen = look(ready, files.get(vector.file, b""), place.settings.max_pixels, auto_fix=False)
        (found,) = ready.logits(seen.pixels[None])
        expected = torch.tensor(vector.outputs)
        if found.shape != expected.shape:
            raise BadBundle("The bundle's test vectors are not of its network.")
        difference, scale = (found - expected).abs().max(), expected.abs().max()
        is_near = expected.isfinite().all() and difference <= max(_TOLERANCE, rounding) * scale
        # Classes that are as good as equal may change places by rounding.
        is_other = ready.metadata.classes and expected.max() - expected[found.argmax()] > rounding * scale
        if not is_near or is_other:
            raise BadBundle(f"The network gives other outputs for {vector.file} than the bundle says.")
        largest = max(largest, float(difference))
    return largest


def _valid(kind: type[M], files: dict[str, bytes], name: str) -> M:
    try:
        return kind.model_validate_json(files.get(name, b""))
    except ValidationError as error:
        raise BadBundle(f"The bundle's {name} is missing or not as it should be.") from error
