import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from torch import nn

from tests.tiny import prepare_tiny
from tests.worker.inference.making import answers
from worker.datasets.pictures import Preprocessing
from worker.inference.answers import look
from worker.inference.models import Models, Ready
from worker.jobs.errors import BadImage
from worker.jobs.records import SavedCheckpoint
from worker.jobs.spec import MLP, Spec
from worker.jobs.wire import ClassPrediction, NumberPrediction, Prediction
from worker.networks import whole
from worker.networks.build import build
from worker.training import checkpoints
from worker.training.checkpoints import Metadata, Place

CLASSES = [f"class {index}" for index in range(10)]


def save(data_dir: Path, seed: int, classes: Sequence[str] = CLASSES, targets: Sequence[str] = ()) -> SavedCheckpoint:
    """A checkpoint of an untrained network with dropout, which only `eval()` makes repeatable."""
    torch.manual_seed(seed)
    spec = Spec(model=MLP(hidden=[8], dropout=0.5))
    model = build(spec.model, channels=1, height=28, width=28, outputs=len(classes) or len(targets))
    return save_network(data_dir, seed, spec, model, classes, targets)


def save_network(
    data_dir: Path, number: int, spec: Spec, model: nn.Module, classes: Sequence[str], targets: Sequence[str]
) -> SavedCheckpoint:
    metadata = Metadata(
        job=f"{number:024x}",
        epoch=1,
        spec=spec,
        classes=list(classes),
        targets=list(targets),
        preprocessing=Preprocessing(channels=1, height=28, width=28, mean=[0.3], std=[0.4]),
        dataset_sha256="",
        metrics={},
    )
    return checkpoints.save(Place(data_dir, metadata.job, 1, 0), metadata, model.state_dict(), {})


def predict(ready: Ready, image: bytes, top_k: int, *, max_pixels: int) -> Prediction:
    """What is written by hand must be what the wire's model describes, to the field."""
    (written,) = answers(ready, [look(ready, image, max_pixels, auto_fix=False)], top_k)
    found: Prediction = TypeAdapter[Prediction](Prediction).validate_json(written, strict=True)
    assert json.loads(written) == found.model_dump(mode="json")
    return found


def png(pixels: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_an_uploaded_test_picture_gets_the_test_loops_own_probabilities(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    images = prepare_tiny(tmp_path).test.images[:5]
    expected = ready.network(ready.metadata.preprocessing.normalise(images)).softmax(1)
    for image, row in zip(images, expected, strict=True):
        answer = predict(ready, png(image[0]), 10, max_pixels=10_000)
        assert isinstance(answer, ClassPrediction)
        assert [guess.probability for guess in answer.top] == pytest.approx(sorted(row.tolist(), reverse=True))
        assert answer.class_index == int(row.argmax())
        assert answer.label == CLASSES[answer.class_index]
        assert answer.probability == answer.top[0].probability


def test_outputs_of_one_hot_targets_become_shares(tmp_path: Path) -> None:
    """They are estimates of probabilities already, so a softmax would level them."""
    spec = Spec.model_validate({"loss": {"name": "mse"}, "model": {"hidden": []}})
    model = build(spec.model, channels=1, height=28, width=28, outputs=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.parameters())[-1].copy_(torch.tensor([0.6, -0.1, 0.2]))
    saved = save_network(tmp_path, 0, spec, model, ["a", "b", "c"], [])
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    answer = predict(ready, png(torch.zeros(28, 28, dtype=torch.uint8)), 3, max_pixels=10_000)
    assert isinstance(answer, ClassPrediction)
    assert [guess.label for guess in answer.top] == ["a", "c", "b"]
    assert [guess.probability for guess in answer.top] == pytest.approx([0.75, 0.25, 0.0], abs=1e-6)


def test_log_probabilities_give_the_probabilities_of_the_logits(tmp_path: Path) -> None:
    spec = Spec.model_validate({"loss": {"name": "nll"}, "model": {"hidden": []}})
    preprocessing = Preprocessing(channels=1, height=28, width=28, mean=[0.3], std=[0.4])
    model = whole.network(spec, preprocessing, 3)
    saved = save_network(tmp_path, 0, spec, model, ["a", "b", "c"], [])
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    pixels = torch.randint(256, (28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answer = predict(ready, png(pixels), 3, max_pixels=10_000)
    assert isinstance(answer, ClassPrediction)
    logits = model[0](preprocessing.normalise(pixels[None, None]))[0]  # type: ignore[index]
    assert [guess.probability for guess in answer.top] == pytest.approx(sorted(logits.softmax(0).tolist())[::-1])


def test_top_k_is_cut_to_the_number_of_classes(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    picture = png(torch.zeros(28, 28, dtype=torch.uint8))
    three, whole = (predict(ready, picture, top_k, max_pixels=10_000) for top_k in (3, 1000))
    assert isinstance(three, ClassPrediction)
    assert isinstance(whole, ClassPrediction)
    assert len(three.top) == 3
    assert len(whole.top) == 10
    assert sum(guess.probability for guess in whole.top) == pytest.approx(1)


@pytest.mark.parametrize("targets", [["ink"], ["ink", "width", "height"]])
def test_a_network_for_numbers_answers_with_the_test_loops_own_numbers(tmp_path: Path, targets: list[str]) -> None:
    saved = save(tmp_path, 0, classes=[], targets=targets)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    images = prepare_tiny(tmp_path).test.images[:5]
    expected = ready.network(ready.metadata.preprocessing.normalise(images))
    for image, row in zip(images, expected, strict=True):
        answer = predict(ready, png(image[0]), 10, max_pixels=10_000)
        assert isinstance(answer, NumberPrediction)
        assert answer.values == pytest.approx(dict(zip(targets, row.tolist(), strict=True)), rel=1e-4, abs=1e-6)
        assert answer.value == (answer.values["ink"] if len(targets) == 1 else None)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("targets", [["ink"], ["ink", "width"]])
def test_a_number_that_is_not_finite_is_null(tmp_path: Path, number: float, targets: list[str]) -> None:
    spec = Spec(model=MLP(hidden=[]))
    model = build(spec.model, channels=1, height=28, width=28, outputs=len(targets))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        list(model.parameters())[-1][0] = number  # the bias of the first target
    saved = save_network(tmp_path, 0, spec, model, [], targets)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    answer = predict(ready, png(torch.zeros(28, 28, dtype=torch.uint8)), 1, max_pixels=10_000)
    assert isinstance(answer, NumberPrediction)
    assert answer.values == {name: None if name == "ink" else 0.0 for name in targets}
    assert answer.value is None


def test_pictures_of_one_batch_are_answered_as_alone(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    seen = [look(ready, png(image[0]), 10_000, auto_fix=False) for image in prepare_tiny(tmp_path).test.images[:9]]
    seen[3] = seen[3]._replace(warnings=['It is "odd".'], fixed=["Turned."])
    together = [json.loads(each) for each in answers(ready, seen, 3)]
    alone = [json.loads(answers(ready, [each], 3)[0]) for each in seen]
    for one, other in zip(together, alone, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-5)
        assert [each["class_index"] for each in one["top"]] == [each["class_index"] for each in other["top"]]
    assert (together[3]["warnings"], together[3]["fixed"]) == (['It is "odd".'], ["Turned."])
    assert together[4]["warnings"] == []


def test_labels_may_hold_anything_a_folder_is_called(tmp_path: Path) -> None:
    names = ['"quoted"', "ü\n", "", "\U0001f45f", "a\\b"]
    saved = save(tmp_path, 0, classes=names)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    answer = predict(ready, png(torch.zeros(28, 28, dtype=torch.uint8)), 5, max_pixels=10_000)
    assert isinstance(answer, ClassPrediction)
    assert sorted(guess.label for guess in answer.top) == sorted(names)


def test_a_hostile_picture_is_refused(tmp_path: Path) -> None:
    saved = save(tmp_path, 0)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    with pytest.raises(BadImage):
        predict(ready, b"nonsense", 1, max_pixels=10_000)
