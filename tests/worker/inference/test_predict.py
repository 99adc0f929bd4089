import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny import prepare_tiny
from worker.datasets.pictures import Preprocessing
from worker.inference.models import Models
from worker.inference.predict import predict
from worker.jobs.errors import BadImage, CheckpointCorrupt
from worker.jobs.records import SavedCheckpoint
from worker.jobs.spec import MLP, Spec
from worker.networks.build import build
from worker.training import checkpoints
from worker.training.checkpoints import Metadata

CLASSES = [f"class {index}" for index in range(10)]


def save(data_dir: Path, seed: int) -> SavedCheckpoint:
    """A checkpoint of an untrained network with dropout, which only `eval()` makes repeatable."""
    torch.manual_seed(seed)
    spec = Spec(model=MLP(hidden=[8], dropout=0.5))
    model = build(spec.model, channels=1, height=28, width=28, classes=10)
    metadata = Metadata(
        job=f"{seed:024x}",
        epoch=1,
        spec=spec,
        classes=CLASSES,
        preprocessing=Preprocessing(channels=1, height=28, width=28, mean=[0.3], std=[0.4]),
        dataset_sha256="",
        metrics={},
    )
    return checkpoints.save(data_dir, metadata, 1, model, torch.optim.SGD(model.parameters(), lr=0.1))


def png(pixels: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_uploaded_test_picture_gets_the_test_loops_own_probabilities(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    images = prepare_tiny(tmp_path).test.images[:5]
    expected = ready.model(ready.metadata.preprocessing.normalise(images)).softmax(1)
    for image, row in zip(images, expected, strict=True):
        answer = predict(ready, png(image[0]), 10, max_pixels=10_000)
        assert [guess.probability for guess in answer.top] == pytest.approx(sorted(row.tolist(), reverse=True))
        assert answer.class_index == int(row.argmax())
        assert answer.label == CLASSES[answer.class_index]
        assert answer.probability == answer.top[0].probability


def test_top_k_is_cut_to_the_number_of_classes(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    picture = png(torch.zeros(28, 28, dtype=torch.uint8))
    assert len(predict(ready, picture, 3, max_pixels=10_000).top) == 3
    whole = predict(ready, picture, 1000, max_pixels=10_000)
    assert len(whole.top) == 10
    assert sum(guess.probability for guess in whole.top) == pytest.approx(1)


def test_a_hostile_picture_is_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    with pytest.raises(BadImage):
        predict(ready, b"nonsense", 1, max_pixels=10_000)


def test_a_checkpoint_is_loaded_once_and_the_least_recently_used_one_leaves(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    models = Models(tmp_path, max_bytes=40_000)  # one network of 25 kB fits, two do not
    ready = models.get(first.path, first.sha256)
    assert models.get(first.path, first.sha256) is ready
    models.get(second.path, second.sha256)
    assert models.get(first.path, first.sha256) is not ready


def test_a_checkpoint_whose_file_changed_is_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 1)
    (tmp_path / saved.path).write_bytes(b"something else")
    with pytest.raises(CheckpointCorrupt):
        Models(tmp_path, 2**30).get(saved.path, saved.sha256)
