"""What is served: a network that a real job trained, its checkpoint as it was downloaded, and pictures to ask about."""

import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from tests.end_to_end.pictures import png, zip_files
from tests.end_to_end.serving import Epochd, epochd

from .asking import Picture

_PICTURES: Final = 16  # that are sent in turn
_PHOTO_SIZE: Final = (500, 376)  # even edges beside 376 x 376, so that every server cuts out the same pixels
_PHOTO_BYTES: Final = 40_000
_CUT: Final = (564, 424)  # of a photograph of 640 x 427, which becomes one of _PHOTO_SIZE
_SIDE: Final = 224
_PHOTOGRAPHS: Final = {"temple": "china.jpg", "flower": "flower.jpg"}  # in scikit-learn's package

Photographs = dict[str, Image.Image]


@dataclass(frozen=True)
class Subject:
    network: str
    data_dir: Path
    job_id: str
    checkpoint: Path
    pictures: list[Picture]


def mlp(root: Path, photos: int) -> Subject:
    """The tutorial's network on FashionMNIST, one epoch."""
    data_dir = root / "mlp"
    with epochd(data_dir) as server:
        job_id, checkpoint = _trained(server, root / "mlp.safetensors", epochs=1)
    images = np.load(data_dir / "datasets" / "fashion-mnist-v1" / "test_images.npy", mmap_mode="r")
    pictures = [Picture(f"{number}.png", png(np.array(images[number, 0]))) for number in range(_PICTURES)]
    return Subject("mlp", data_dir, job_id, checkpoint, pictures)


def resnet18(root: Path, photos: int) -> Subject:
    """At 224 x 224 on cuttings of two photographs, one epoch: it need not be good, only be the same for everybody."""
    data_dir, chance = root / "resnet18", random.Random(0)
    photographs = {name: Image.open(_folder() / file).convert("RGB") for name, file in _PHOTOGRAPHS.items()}
    archive = zip_files(root / "photos.zip", _dataset(photographs, photos, chance))
    with epochd(data_dir) as server:
        server.upload(archive, name="photos")
        dataset = server.wait_dataset("photos")
        assert dataset["status"] == "ready", dataset["error"]
        job_id, checkpoint = _trained(
            server,
            root / "resnet18.safetensors",
            dataset={"name": "photos"},
            model={"name": "resnet18", "image_size": _SIDE},
            optimizer={"lr": 0.01, "momentum": 0.9},
            batch_size=8,
            epochs=1,
        )
    pictures = list(_photos(photographs, chance))
    return Subject("resnet18", data_dir, job_id, checkpoint, pictures)


SUBJECTS: Final[dict[str, Callable[[Path, int], Subject]]] = {"mlp": mlp, "resnet18": resnet18}


def has_photographs() -> bool:
    return find_spec("sklearn") is not None


def _folder() -> Path:
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "datasets" / "images"


def _trained(server: Epochd, checkpoint: Path, **spec: Any) -> tuple[str, Path]:
    job_id = server.submit(**spec)
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    while server.http.get(f"/jobs/{job_id}/parity").json().get("code") == "not_ready":
        time.sleep(0.1)  # its certificate is being made, which would go on when the server is measured
    checkpoint.write_bytes(server.http.get(f"/jobs/{job_id}/checkpoints/last").raise_for_status().content)
    return job_id, checkpoint


def _dataset(photographs: Photographs, count: int, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """So many for training, a quarter of that for testing."""
    for split, pictures in (("train", count), ("test", count // 4)):
        for number in range(pictures):
            name = list(photographs)[number % len(photographs)]
            photograph = photographs[name]
            side = chance.randint(_SIDE, photograph.height)
            cut = _cut(photograph, (side, side), chance).resize((_SIDE, _SIDE))
            yield f"{split}/{name}/{number:04d}.jpg", _jpeg(cut, 90)


def _photos(photographs: Photographs, chance: random.Random) -> Iterator[Picture]:
    for number in range(_PICTURES):
        photograph = list(photographs.values())[number % len(photographs)]
        photo = _cut(photograph, _CUT, chance).resize(_PHOTO_SIZE)
        files = [_jpeg(photo, quality) for quality in range(50, 99, 2)]
        yield Picture(f"{number}.jpg", min(files, key=lambda file: abs(len(file) - _PHOTO_BYTES)))


def _cut(photograph: Image.Image, size: tuple[int, int], chance: random.Random) -> Image.Image:
    width, height = size
    left, top = chance.randint(0, photograph.width - width), chance.randint(0, photograph.height - height)
    return photograph.crop((left, top, left + width, top + height))


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
