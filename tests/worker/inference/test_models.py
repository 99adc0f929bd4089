"""Networks as they are held for answering."""

from pathlib import Path

import pytest
import torch

from tests.worker.inference.test_answers import save
from worker.datasets.pictures import Preprocessing, plain
from worker.inference.models import Models, load_plain
from worker.jobs.errors import CheckpointCorrupt
from worker.jobs.records import SavedCheckpoint
from worker.jobs.spec import Spec
from worker.networks import whole
from worker.training import checkpoints
from worker.training.checkpoints import Metadata, Place

MODELS = [
    {"model": {"name": "mlp", "hidden": [16]}},
    {"model": {"name": "cnn", "channels": [4, 8]}, "normalization": "dataset"},
    {"model": {"name": "resnet18", "image_size": 40}},
    {"model": {"name": "swin_t"}},  # has buffers that it computes when it is built
    {"model": {"name": "vit_b_32"}},
    {"model": {"name": "mnasnet0_5"}},
    {"model": {"name": "mlp"}, "loss": {"name": "nll"}},
    {"model": {"name": "cnn", "channels": [4]}, "precision": "bf16"},
]


def saved_model(data_dir: Path, spec: Spec, shape: Preprocessing) -> SavedCheckpoint:
    torch.manual_seed(0)
    metadata = Metadata(
        job=f"{1:024x}",
        epoch=1,
        spec=spec,
        classes=["a", "b", "c"],
        preprocessing=shape,
        dataset_sha256="",
        metrics={},
    )
    network = whole.network(spec, shape, 3)
    return checkpoints.save(Place(data_dir, metadata.job, 1, 0), metadata, network.state_dict(), {})


@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: str(spec["model"]["name"]))
def test_a_network_answers_as_the_test_loop_computes(tmp_path: Path, spec: dict[str, object]) -> None:
    checked = Spec.model_validate(spec)
    shape = plain(3, 32, 32).model_copy(update={"mean": [0.4] * 3, "std": [0.2] * 3})
    size = {"resnet18": 40}.get(checked.model.name)
    saved = saved_model(tmp_path, checked, shape.model_copy(update={"image_size": size}))
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    plainly, metadata = load_plain(tmp_path, saved.path, saved.sha256)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = plainly(metadata.preprocessing.normalise(images))
    logits = ready.logits(images)
    tolerance = 5e-2 if checked.precision == "bf16" else 1e-4
    assert logits.dtype == torch.float32
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(ready.outputs(images.float() / 255), logits)
    assert not any(tensor.is_meta for tensor in (*plainly.parameters(), *plainly.buffers()))


def test_pictures_beyond_a_chunk_are_answered_too(tmp_path: Path) -> None:
    saved = saved_model(tmp_path, Spec.model_validate({"model": {"name": "mlp", "hidden": []}}), plain(3, 256, 256))
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    images = torch.randint(256, (2 * ready.at_once + 1, 3, 256, 256), dtype=torch.uint8)
    assert ready.at_once < len(images)
    logits = ready.logits(images)
    assert logits.shape == (len(images), 3)
    assert torch.allclose(logits[-1:], ready.logits(images[-1:]), rtol=1e-4, atol=1e-5)


def test_only_networks_with_work_enough_get_more_than_a_thread(tmp_path: Path) -> None:
    models = Models(tmp_path, 2**30)
    small = saved_model(tmp_path, Spec.model_validate({"model": {"name": "mlp"}}), plain(1, 28, 28))
    assert not models.get(small.path, small.sha256).is_large
    large = saved_model(tmp_path, Spec.model_validate({"model": {"name": "resnet18"}}), plain(3, 96, 96))
    assert models.get(large.path, large.sha256).is_large


def test_no_weights_are_drawn_for_a_network_that_is_loaded(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    before = torch.random.get_rng_state()
    load_plain(tmp_path, saved.path, saved.sha256)
    assert torch.equal(torch.random.get_rng_state(), before)


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
