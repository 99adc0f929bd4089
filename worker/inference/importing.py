"""Taking in a bundle of somebody else's, once its own test pictures give the outputs that it promises.

Nothing in one is ever unpickled, and none of its names becomes a path.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from pydantic import BaseModel, Field, ValidationError, field_validator

from worker.datasets.archive import DAMAGED
from worker.datasets.containers import Entry, entries
from worker.datasets.pictures import Preprocessing
from worker.jobs import bundle as contents
from worker.jobs.bundle import BundleCard, File, Imported, Labels, Manifest, Vectors
from worker.jobs.errors import ArchiveTooLarge, BadArchive, BadBundle, EpochdError, UnsafePath
from worker.jobs.files import fsync, require_space, told_when_full
from worker.jobs.processes import limit_memory
from worker.jobs.spec import Text
from worker.jobs.texts import looks_like_key
from worker.jobs.wire import ImportRequest
from worker.training import checkpoints
from worker.training.checkpoints import Metadata

from .answers import look
from .errands import Place
from .models import Models, Ready
from .parity import TOLERANCES

_MOST_ENTRIES: Final = 256
_MOST_BYTES: Final = 32 * 2**20  # of all files but the weights
_MOST_RATIO, _ANY_RATIO_BYTES = 100, 64 * 2**20  # trained weights hardly shrink
_MOST_PROVENANCE: Final = 64 * 2**10  # characters of JSON: lists of jobs have it, too
_MOST_MEMORY: Final = 8 * 2**30  # that a stranger's network may take while it is tried
_CHUNK: Final = 2**20
_TOLERANCE: Final = 1e-3  # of the largest output
_OF_A_VECTOR: Final = re.compile(r"vectors/[0-9]{3}\.png")
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
    if _valid(Labels, files, contents.LABELS) != Labels(classes=metadata.classes, targets=metadata.targets):
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
    if looks_like_key(files.get(name, b"").decode("latin-1")):
        raise BadBundle(f"The bundle's {name} holds an API key.")
    try:
        return kind.model_validate_json(files.get(name, b""))
    except ValidationError as error:
        raise BadBundle(f"The bundle's {name} is missing or not as it should be.") from error
