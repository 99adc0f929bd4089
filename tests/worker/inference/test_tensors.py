"""The Open Inference Protocol's numbers: exactly the network's, as JSON and as bytes; what does not fit is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.worker.inference.making import checkpoint, place, tiny
from worker.inference.models import Ready
from worker.inference.tensors import JSON_LENGTH, infer
from worker.jobs.errors import InvalidRequest
from worker.jobs.wire import InferRequest


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    card, _ = tiny(tmp_path)
    saved = checkpoint(tmp_path, card, model={"name": "mlp", "hidden": [16]}, normalization="dataset")
    return place(tmp_path).models.get(saved.path, saved.sha256)


def asked(ready: Ready, request: dict[str, Any], binary: bytes = b"") -> tuple[dict[str, Any], bytes]:
    text = json.dumps(request).encode()
    head = InferRequest(path="x", sha256=ready.sha256, json_bytes=len(text), model_name="shoes", model_version="3")
    answer = infer(ready, head, text + binary)
    (length,) = JSON_LENGTH.unpack_from(answer)
    told: dict[str, Any] = json.loads(answer[JSON_LENGTH.size : JSON_LENGTH.size + length])
    return told, answer[JSON_LENGTH.size + length :]


def pixels(**changed: Any) -> dict[str, Any]:
    return {"name": "pixels", "shape": [2, 1, 28, 28], "datatype": "FP32", "data": [0.5] * (2 * 784)} | changed


def test_json_in_gives_the_networks_own_numbers(ready: Ready) -> None:
    X = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    told, binary = asked(ready, {"id": "a", "inputs": [pixels(data=X.tolist())]})
    assert (told["id"], told["model_name"], told["model_version"], binary) == ("a", "shoes", "3", b"")
    logits, probabilities = told["outputs"]
    assert (logits["name"], logits["shape"], logits["datatype"]) == ("logits", [2, 10], "FP32")
    assert torch.equal(torch.tensor(logits["data"]).view(2, 10), ready.outputs(X))
    assert torch.allclose(torch.tensor(probabilities["data"]).view(2, 10), ready.outputs(X).softmax(1))


@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16", "UINT8"])
def test_binary_tensors_go_in_and_come_out(ready: Ready, datatype: str) -> None:
    kinds = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "UINT8": np.uint8}
    values = np.random.default_rng(0).random((2, 1, 28, 28)) * (255 if datatype == "UINT8" else 1)
    contents = values.astype(kinds[datatype])
    given = pixels(datatype=datatype, parameters={"binary_data_size": contents.nbytes})
    del given["data"]
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    told, binary = asked(ready, {"inputs": [given], "outputs": outputs}, contents.tobytes())
    X = torch.from_numpy(contents).float() / (255 if datatype == "UINT8" else 1)
    assert told["outputs"][0]["parameters"] == {"binary_data_size": 2 * 10 * 4}
    assert np.array_equal(np.frombuffer(binary, "<f4").reshape(2, 10), ready.outputs(X).numpy())


def test_all_outputs_may_be_asked_for_as_bytes(ready: Ready) -> None:
    told, binary = asked(ready, {"inputs": [pixels()], "parameters": {"binary_data_output": True}})
    assert len(binary) == 2 * 2 * 10 * 4
    assert all("data" not in output for output in told["outputs"])


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "one input"),
        ({"inputs": [pixels(name="x")]}, "one input"),
        ({"inputs": [pixels(shape=[2, 28, 28])]}, "shape"),
        ({"inputs": [pixels(shape=[0, 1, 28, 28], data=[])]}, "shape"),
        ({"inputs": [pixels(shape=[-2, 1, 28, 28])]}, "shape"),
        ({"inputs": [pixels(shape=[10**12, 1, 28, 28])]}, "answered at once"),
        ({"inputs": [pixels(datatype="BYTES")]}, "datatype"),
        ({"inputs": [pixels(data=[0.5] * 7)]}, "numbers"),
        ({"inputs": [pixels(data=["a"] * 1568)]}, "must hold numbers"),
        ({"inputs": [pixels(data=[[1.0], [1.0, 2.0]])]}, "must hold numbers"),
        ({"inputs": [pixels(data=[float("nan")] * 1568)]}, "finite"),
        ({"inputs": [pixels(data=[1e39] * 1568)]}, "finite"),
        ({"inputs": [pixels(datatype="UINT8", data=[256] * 1568)]}, "0 to 255"),
        ({"inputs": [pixels(data=None)]}, "binary_data_size"),
        ({"inputs": [pixels(data=None, parameters={"binary_data_size": 3})]}, "binary_data_size"),
        ({"inputs": [pixels()], "outputs": [{"name": "x"}]}, "no such output"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(ready: Ready, request_: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        asked(ready, request_)


def test_what_is_no_json_is_refused(ready: Ready) -> None:
    head = InferRequest(path="x", sha256=ready.sha256, json_bytes=3, model_name="a", model_version="1")
    with pytest.raises(InvalidRequest):
        infer(ready, head, b"{{{")
