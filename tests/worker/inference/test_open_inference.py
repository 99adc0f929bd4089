"""Tensors of the Open Inference Protocol: what the network gives, to the bit, and hostile requests refused at once."""

import json
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.worker.inference.test_answers import CLASSES, save, save_network
from tests.worker.inference.test_models import saved_model
from worker.datasets.pictures import plain
from worker.inference.models import Models, Ready
from worker.inference.tensors import infer
from worker.jobs.errors import BodyTooLarge, InvalidRequest
from worker.jobs.spec import Spec
from worker.jobs.wire import InferRequest
from worker.networks.build import build

COUNT = 3
SHAPE = [COUNT, 1, 28, 28]
NUMBERS = COUNT * 28 * 28
HUGE = [2**63 - 1, 1, 28, 28]
BINARY: dict[str, Any] = {"parameters": {"binary_data_output": True}}


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    folder = tmp_path_factory.mktemp("tensors")
    saved = save(folder, 0)
    return Models(folder, 2**30).get(saved.path, saved.sha256)


@pytest.fixture(name="X")
def pictures() -> Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1))


class Answer(NamedTuple):
    head: dict[str, Any]
    binary: bytes

    def output(self, name: str) -> dict[str, Any]:
        (found,) = [each for each in self.head["outputs"] if each["name"] == name]
        return dict(found)

    def numbers(self, name: str) -> Tensor:
        """Of an output, whichever way it came."""
        wanted = self.output(name)
        assert wanted["datatype"] == "FP32"
        if "data" in wanted:
            return torch.tensor(wanted["data"]).reshape(wanted["shape"])
        start = 0
        for each in self.head["outputs"]:
            if each["name"] == name:
                break
            start += each.get("parameters", {}).get("binary_data_size", 0)
        contents = self.binary[start : start + wanted["parameters"]["binary_data_size"]]
        return torch.from_numpy(np.frombuffer(contents, "<f4").copy()).reshape(wanted["shape"])


def ask_raw(ready: Ready, head: bytes, binary: bytes = b"") -> Answer:
    request = InferRequest(path="", sha256="", json_bytes=len(head), model_name="shoes", model_version="3")
    answered = infer(ready, request, head + binary)
    (length,) = struct.unpack("!I", answered[:4])
    return Answer(json.loads(answered[4 : 4 + length]), answered[4 + length :])


def ask(ready: Ready, given: dict[str, Any], binary: bytes = b"", **more: Any) -> Answer:
    given = {"name": "pixels", "shape": SHAPE, "datatype": "FP32"} | given
    return ask_raw(ready, json.dumps({"inputs": [given]} | more).encode(), binary)


def ask_binary(ready: Ready, X: Tensor, datatype: str = "FP32", **more: Any) -> Answer:
    contents = X.numpy().tobytes()
    given = {"shape": list(X.shape), "datatype": datatype, "parameters": {"binary_data_size": len(contents)}}
    return ask(ready, given, contents, **more)


def refused(ready: Ready, given: dict[str, Any], binary: bytes = b"", **more: Any) -> str:
    with pytest.raises(InvalidRequest) as error:
        ask(ready, given, binary, **more)
    return error.value.detail


def test_outputs_are_the_networks_own_to_the_bit_whichever_way_they_go(ready: Ready, X: Tensor) -> None:
    expected = ready.outputs(X)
    flat, nested = X.flatten().tolist(), X.tolist()
    for answer in (
        ask(ready, {"data": flat}),
        ask(ready, {"data": nested}),
        ask_binary(ready, X),
        ask(ready, {"data": flat}, **BINARY),
        ask_binary(ready, X, **BINARY),
    ):
        assert torch.equal(answer.numbers("logits"), expected)
        assert torch.equal(answer.numbers("probabilities"), ready.probabilities(expected))


def test_the_answer_says_what_it_is(ready: Ready, X: Tensor) -> None:
    answer = ask_binary(ready, X, id="42", **BINARY)
    sizes = {"parameters": {"binary_data_size": 4 * COUNT * len(CLASSES)}}
    tensor = {"datatype": "FP32", "shape": [COUNT, len(CLASSES)]} | sizes
    assert answer.head == {
        "model_name": "shoes",
        "model_version": "3",
        "id": "42",
        "outputs": [{"name": "logits"} | tensor, {"name": "probabilities"} | tensor],
    }
    assert len(answer.binary) == 2 * 4 * COUNT * len(CLASSES)
    assert "id" not in ask_binary(ready, X).head


def test_only_the_outputs_that_are_asked_for_are_told_each_as_it_is_wanted(ready: Ready, X: Tensor) -> None:
    expected = ready.outputs(X)
    as_bytes = {"name": "logits", "parameters": {"binary_data": True}}
    as_json = {"name": "probabilities", "parameters": {"binary_data": False}}
    answer = ask_binary(ready, X, outputs=[as_json, as_bytes], **BINARY)
    assert [each["name"] for each in answer.head["outputs"]] == ["probabilities", "logits"]
    assert "data" in answer.output("probabilities")
    assert answer.binary == expected.numpy().tobytes()
    assert torch.equal(answer.numbers("probabilities"), ready.probabilities(expected))
    alone = ask_binary(ready, X, outputs=[{"name": "probabilities"}], **BINARY)
    assert torch.equal(alone.numbers("probabilities"), ready.probabilities(expected))
    assert len(alone.head["outputs"]) == 1


def test_bytes_are_pixels_of_0_to_255(ready: Ready) -> None:
    images = torch.randint(256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    for answer in (ask_binary(ready, images, "UINT8"), ask(ready, {"datatype": "UINT8", "data": images.tolist()})):
        assert torch.equal(answer.numbers("logits"), ready.logits(images))


@pytest.mark.parametrize(("datatype", "dtype"), [("FP16", torch.float16), ("FP64", torch.float64)])
def test_other_floats_are_taken_too(ready: Ready, X: Tensor, datatype: str, dtype: torch.dtype) -> None:
    given = X.to(dtype)
    expected = ready.outputs(given.float())
    assert torch.equal(ask_binary(ready, given, datatype).numbers("logits"), expected)
    assert torch.equal(ask(ready, {"datatype": datatype, "data": given.tolist()}).numbers("logits"), expected)


def test_whole_numbers_are_floats_too(ready: Ready) -> None:
    data = [0, 1] * (28 * 14)
    answer = ask(ready, {"shape": [1, 1, 28, 28], "data": data})
    assert torch.equal(answer.numbers("logits"), ready.outputs(torch.tensor(data).float().reshape(1, 1, 28, 28)))


def test_what_normalises_and_scales_is_the_checkpoints_own(tmp_path: Path) -> None:
    shape = plain(3, 32, 32).model_copy(update={"mean": [0.4] * 3, "std": [0.2] * 3, "image_size": 40})
    saved = saved_model(tmp_path, Spec.model_validate({"model": {"name": "resnet18", "image_size": 40}}), shape)
    ready = Models(tmp_path, 2**30).get(saved.path, saved.sha256)
    X = torch.rand(2, 3, 32, 32)
    assert torch.equal(ask_binary(ready, X).numbers("logits"), ready.outputs(X))


def regression(folder: Path, weight: float) -> Ready:
    spec = Spec.model_validate({"loss": {"name": "mse"}, "model": {"hidden": []}})
    model = build(spec.model, channels=1, height=28, width=28, outputs=2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(weight)
    saved = save_network(folder, 0, spec, model, [], ["age", "ink"])
    return Models(folder, 2**30).get(saved.path, saved.sha256)


def test_numbers_to_predict_are_values(tmp_path: Path, X: Tensor) -> None:
    ready = regression(tmp_path, 0.5)
    answer = ask_binary(ready, X)
    assert [each["name"] for each in answer.head["outputs"]] == ["values"]
    assert torch.equal(answer.numbers("values"), ready.outputs(X))
    named: dict[str, Any] = {"outputs": [{"name": "values", "parameters": {"classification": 1}}]}
    assert "not classes" in refused(ready, {"data": X.tolist()}, **named)


def test_what_is_not_finite_is_null_as_json_and_itself_as_bytes(tmp_path: Path, X: Tensor) -> None:
    ready = regression(tmp_path, float("nan"))
    assert ask_binary(ready, X).output("values")["data"] == [None] * (2 * COUNT)
    assert ask_binary(ready, X, **BINARY).numbers("values").isnan().all()


def test_classes_are_named_likeliest_first(ready: Ready, X: Tensor) -> None:
    wanted = {"name": "probabilities", "parameters": {"classification": 2}}
    told = ask_binary(ready, X, outputs=[wanted]).output("probabilities")
    assert (told["datatype"], told["shape"]) == ("BYTES", [COUNT, 2])
    values, indices = ready.probabilities(ready.outputs(X)).topk(2)
    for text, value, index in zip(told["data"], values.flatten(), indices.flatten(), strict=True):
        number, class_index, label = text.split(":")
        assert (np.float32(number), int(class_index), label) == (value.numpy(), index, CLASSES[index])
    binary = ask_binary(ready, X, outputs=[wanted], **BINARY)
    texts = [text.encode() for text in told["data"]]
    assert binary.binary == b"".join(struct.pack("<I", len(text)) + text for text in texts)
    assert binary.output("probabilities")["parameters"] == {"binary_data_size": len(binary.binary)}
    wanted = {"name": "logits", "parameters": {"classification": 1000}}
    assert ask_binary(ready, X, outputs=[wanted]).output("logits")["shape"] == [COUNT, len(CLASSES)]


def test_what_a_client_adds_or_sends_as_null_does_no_harm(ready: Ready, X: Tensor) -> None:
    more: dict[str, Any] = {"id": None, "outputs": None, "parameters": {"priority": 1, "sequence_id": "a"}}
    answer = ask(ready, {"data": X.tolist(), "parameters": None, "extra": [1]}, model_name="shoes", **more)
    assert torch.equal(answer.numbers("logits"), ready.outputs(X))
    nulls: dict[str, Any] = {"outputs": [{"name": "logits", "parameters": None}], "parameters": None}
    assert torch.equal(ask(ready, {"data": X.tolist()}, **nulls).numbers("logits"), ready.outputs(X))


@pytest.mark.parametrize(
    "shape", [[], [28, 28], [1, 28, 28], [1, 3, 28, 28], [1, 1, 28, 29], [0, 1, 28, 28], [1, 1, 28, 28, 1], [1] * 9]
)
def test_another_shape_is_refused(ready: Ready, shape: list[int]) -> None:
    refused(ready, {"shape": shape, "data": [0.5] * 784})


def test_the_refusal_of_a_shape_says_which_one_it_must_be(ready: Ready) -> None:
    said = refused(ready, {"shape": [2, 3, 32, 32], "data": [0.5]})
    assert said == "`pixels` must have the shape [N, 1, 28, 28], with N from 1; it has [2, 3, 32, 32]."


@pytest.mark.parametrize(
    ("given", "binary"),
    [
        ({"name": "pictures", "data": [0.5] * NUMBERS}, b""),
        ({"datatype": "INT64", "data": [1] * NUMBERS}, b""),
        ({"datatype": "BYTES", "data": ["a"] * NUMBERS}, b""),
        ({}, b""),
        ({"data": None}, b""),
        ({"data": []}, b""),
        ({"data": [0.5]}, b""),
        ({"data": [0.5] * (NUMBERS + 1)}, b""),
        ({"data": [[0.5] * 784] * COUNT}, b""),
        ({"data": [[[[0.5] * 28] * 28]] * (COUNT - 1)}, b""),
        ({"data": [[[[0.5] * 28] * 27 + [[0.5] * 27]]] * COUNT}, b""),
        ({"data": [[[[0.5] * 28] * 28]] * (COUNT - 1) + [0.5]}, b""),
        ({"data": [True] * NUMBERS}, b""),
        ({"data": ["0.5"] * NUMBERS}, b""),
        ({"data": [None] * NUMBERS}, b""),
        ({"data": [{}] * NUMBERS}, b""),
        ({"data": [float("nan")] * NUMBERS}, b""),
        ({"data": [float("inf")] * NUMBERS}, b""),
        ({"data": [1e39] * NUMBERS}, b""),
        ({"data": [10**400] * NUMBERS}, b""),
        ({"datatype": "FP16", "data": [1e6] * NUMBERS}, b""),
        ({"datatype": "UINT8", "data": [256] * NUMBERS}, b""),
        ({"datatype": "UINT8", "data": [-1] * NUMBERS}, b""),
        ({"datatype": "UINT8", "data": [0.5] * NUMBERS}, b""),
        ({"data": "text"}, b""),
        ({"data": {"0": 1}}, b""),
        ({"shape": HUGE, "data": [0.5]}, b""),
        ({"shape": HUGE, "parameters": {"binary_data_size": 4}}, b"\0" * 4),
        ({"shape": [-3, 1, 28, 28], "data": [0.5]}, b""),
        ({"shape": [-3, -1, 28, 28], "data": [0.5] * NUMBERS}, b""),
        ({"shape": [10**30, 1, 28, 28], "data": [0.5]}, b""),
        ({"shape": [1.5, 1, 28, 28], "data": [0.5]}, b""),
        ({"shape": "3", "data": [0.5]}, b""),
        ({"parameters": {"binary_data_size": 4 * NUMBERS}}, b""),
        ({"parameters": {"binary_data_size": 4 * NUMBERS}}, b"\0" * (4 * NUMBERS - 1)),
        ({"parameters": {"binary_data_size": 4 * NUMBERS}}, b"\0" * (4 * NUMBERS + 1)),
        ({"parameters": {"binary_data_size": NUMBERS}}, b"\0" * NUMBERS),
        ({"parameters": {"binary_data_size": 10**30}}, b"\0" * 4),
        ({"parameters": {"binary_data_size": -4}}, b"\0" * 4),
        ({"parameters": {"binary_data_size": "4"}}, b"\0" * 4),
        ({"parameters": {}}, b"\0" * (4 * NUMBERS)),
        ({"parameters": {"binary_data_size": 3}}, b"\0" * 3),
        ({"parameters": {"binary_data_size": 4 * NUMBERS}}, b"\xff" * (4 * NUMBERS)),
        ({"parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 4}}, b""),
        ({"data": [0.5] * NUMBERS, "parameters": {"binary_data_size": 4}}, b"\0" * 4),
    ],
)
def test_hostile_tensors_are_refused(ready: Ready, given: dict[str, Any], binary: bytes) -> None:
    assert len(refused(ready, given, binary)) < 300


def test_a_refusal_costs_no_more_memory_than_the_request(ready: Ready) -> None:
    long = {"data": ["a" * 100_000] + ["b"] * 50_000}  # numpy would make room for 20 GB
    tracemalloc.start()
    try:
        for given in (long, {"shape": HUGE, "data": [0.5]}, {"shape": [4000, 1, 28, 28], "data": [0.5]}):
            refused(ready, given)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * 2**20


def nested(depth: int) -> bytes:
    return b'{"inputs": [{"name": "pixels", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": %b0.5%b}]}' % (
        b"[" * depth,
        b"]" * depth,
    )


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"inputs": []}',
        b'{"inputs": null}',
        b'{"inputs": [7]}',
        b'{"inputs": [{}, {}]}',
        b'{"inputs": {"name": "pixels"}}',
        b'{"inputs": [{"name": "pixels", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [NaN]}]}',
        b'{"inputs": [{"name": "pixels", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.5',
        b'{"inputs": [{"name": "\xff"}]}',
        b'{"id": "\\ud800", "inputs": []}',
        b'{"id": 7, "inputs": []}',
        b'{"outputs": [%b], "inputs": []}' % b",".join([b'{"name":"logits"}'] * 100_000),
        b'{"inputs": [%b]}' % b",".join([b'{"name":"pixels"}'] * 100_000),
        b'{"inputs": [{"name": "pixels", "shape": [%b]}]}' % b",".join([b"1"] * 100_000),
        nested(10),
        nested(100),
        nested(100_000),
        b'{"parameters": ' * 50_000,
        b'{"inputs": [{"shape": [' + b"9" * 5000 + b"]}]}",
    ],
    ids=lambda head: head[:40].decode("latin-1"),
)
def test_what_is_not_the_protocols_json_is_refused(ready: Ready, head: bytes) -> None:
    with pytest.raises(InvalidRequest) as error:
        ask_raw(ready, head)
    assert len(error.value.detail) < 300


def test_json_of_many_bytes_is_refused_before_it_is_read(ready: Ready) -> None:
    with pytest.raises(BodyTooLarge, match="binary"):
        ask_raw(ready, nested(1) + b" " * (8 * 2**20))


@pytest.mark.parametrize(
    "outputs",
    [
        [{"name": "values"}],
        [{"name": "logits"}, {"name": "logits"}],
        [{"name": "logits", "parameters": {"classification": -1}}],
        [{"name": "logits", "parameters": {"classification": "two"}}],
        [{"name": "logits", "parameters": {"binary_data": 7}}],
        [{"name": None}],
        [{}],
        "logits",
    ],
)
def test_outputs_that_cannot_be_are_refused(ready: Ready, outputs: Sequence[Any]) -> None:
    refused(ready, {"data": [0.5] * NUMBERS}, outputs=outputs)


def test_more_pictures_than_go_through_the_network_in_a_moment_are_refused(ready: Ready) -> None:
    most = 32 * 2**20 // (4 * 784)
    answer = ask_binary(ready, torch.zeros(most, 1, 28, 28, dtype=torch.uint8), "UINT8", **BINARY)
    assert answer.numbers("logits").shape == (most, len(CLASSES))
    with pytest.raises(InvalidRequest, match=f"Up to {most} pictures"):
        ask_binary(ready, torch.zeros(most + 1, 1, 28, 28, dtype=torch.uint8), "UINT8")
