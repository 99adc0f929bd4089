"""A client of the Open Inference Protocol that is not ours, against a real epochd."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent.monkey  # type: ignore[import-untyped]
import numpy as np
import pytest
import tritonclient.http as triton  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]

from tests.end_to_end.pictures import png
from tests.end_to_end.serving import Epochd

COUNT = 8


@pytest.fixture(scope="module")
def pictures(prepared: Path) -> NDArray[np.uint8]:
    return np.array(np.load(prepared / "test_images.npy", mmap_mode="r")[:COUNT])


@pytest.fixture
def client(server: Epochd) -> Iterator[Any]:
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as client:
        yield client


def tensor(numbers: NDArray[Any], datatype: str = "FP32", *, binary: bool = True) -> Any:
    made = triton.InferInput("pixels", list(numbers.shape), datatype)
    made.set_data_from_numpy(numbers, binary_data=binary)
    return made


def unit(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pictures.astype(np.float32) / np.float32(255)


@pytest.fixture
def expected(server: Epochd, trained: str, pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The probabilities that the same pictures get as files."""
    files = [("image", ("x.png", png(each[0]), "image/png")) for each in pictures]
    answer = server.http.post("/predict", params={"job": trained, "top_k": 10}, files=files).raise_for_status().json()
    rows = np.zeros((COUNT, 10))
    for row, prediction in zip(rows, answer["predictions"], strict=True):
        for guess in prediction["top"]:
            row[guess["class_index"]] = guess["probability"]
    return rows


def test_the_client_patches_nothing() -> None:
    assert not gevent.monkey.is_module_patched("socket")
    assert socket.socket.__module__ == "socket"


def test_it_sees_a_server_and_its_models(client: Any, trained: str) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(trained)
    assert client.is_model_ready(trained, "1")
    assert not client.is_model_ready(trained, "7")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "epochd"
    assert client.get_model_metadata(trained) == {
        "name": trained,
        "versions": ["1", "2"],
        "platform": "pytorch",
        "inputs": [{"name": "pixels", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        ],
    }


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("binary_in", [True, False])
def test_tensors_are_answered_as_the_same_pictures_are(
    client: Any,
    trained: str,
    pictures: NDArray[np.uint8],
    expected: NDArray[np.float64],
    binary_in: bool,
    binary_out: bool | None,
    packed: str | None,
) -> None:
    wanted = None
    if binary_out is not None:
        wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "logits")]
    answer = client.infer(
        trained,
        [tensor(unit(pictures), binary=binary_in)],
        outputs=wanted,
        request_id="42",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", trained, "2")
    probabilities, logits = answer.as_numpy("probabilities"), answer.as_numpy("logits")
    assert probabilities.dtype == logits.dtype == np.float32
    assert np.abs(probabilities - expected).max() < 1e-5
    exponents = np.exp(logits.astype(np.float64))
    assert np.abs(exponents / exponents.sum(axis=1, keepdims=True) - expected).max() < 1e-5


def test_bytes_and_half_floats_are_answered_too(
    client: Any, trained: str, pictures: NDArray[np.uint8], expected: NDArray[np.float64]
) -> None:
    as_bytes = client.infer(trained, [tensor(pictures, "UINT8")]).as_numpy("probabilities")
    assert np.abs(as_bytes - expected).max() < 1e-5
    halves = client.infer(trained, [tensor(unit(pictures).astype(np.float16), "FP16")]).as_numpy("probabilities")
    assert np.abs(halves - expected).max() < 1e-2


def test_classes_are_named(
    client: Any, server: Epochd, trained: str, pictures: NDArray[np.uint8], expected: NDArray[np.float64]
) -> None:
    query: dict[str, str | int] = {"job": trained, "top_k": 3}
    answer = server.http.post("/predict", params=query, files={"image": png(pictures[0, 0])}).raise_for_status()
    (prediction,) = answer.json()["predictions"]
    for binary in (True, False):
        wanted = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=3)
        texts = client.infer(trained, [tensor(unit(pictures))], outputs=[wanted]).as_numpy("probabilities")
        assert texts.shape == (COUNT, 3)
        row = [text.decode() if isinstance(text, bytes) else text for text in texts[0]]
        for text, guess in zip(row, prediction["top"], strict=True):
            probability, class_index, label = text.split(":")
            assert (int(class_index), label) == (guess["class_index"], guess["label"])
            assert float(probability) == pytest.approx(guess["probability"], abs=1e-5)


def test_an_alias_and_its_versions_answer(
    client: Any, server: Epochd, trained: str, pictures: NDArray[np.uint8]
) -> None:
    server.http.put("/models/tensors", json={"job": trained, "checkpoint": 1}).raise_for_status()
    assert client.is_model_ready("tensors")
    inputs = [tensor(unit(pictures))]
    own, second, first = (
        client.infer("tensors", inputs),
        client.infer("tensors", inputs, model_version="2"),
        client.infer(trained, inputs, model_version="1"),
    )
    assert [each.get_response()["model_version"] for each in (own, second, first)] == ["1", "2", "1"]
    assert np.array_equal(own.as_numpy("logits"), first.as_numpy("logits"))
    assert not np.array_equal(own.as_numpy("logits"), second.as_numpy("logits"))
    server.http.delete("/models/tensors").raise_for_status()


def test_many_requests_at_once_are_each_answered(
    server: Epochd, trained: str, pictures: NDArray[np.uint8], expected: NDArray[np.float64]
) -> None:
    with triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=8) as client:
        waiting = [client.async_infer(trained, [tensor(unit(pictures[[i % COUNT]]))]) for i in range(64)]
        for i, each in enumerate(waiting):
            assert np.abs(each.get_result().as_numpy("probabilities") - expected[i % COUNT]).max() < 1e-5


def test_what_is_wrong_is_said_in_a_sentence(client: Any, trained: str, pictures: NDArray[np.uint8]) -> None:
    def said(name: str, *inputs: Any, **more: Any) -> tuple[str, str]:
        with pytest.raises(InferenceServerException) as error:
            client.infer(name, list(inputs), **more)
        return error.value.status(), error.value.message()

    right = tensor(unit(pictures))
    shape = "`pixels` must have the shape [N, 1, 28, 28], with N from 1; it has [8, 28, 28]."
    assert said(trained, tensor(unit(pictures)[:, 0])) == ("400", shape)
    assert said(trained, tensor(pictures.astype(np.int64), "INT64")) == (
        "400",
        "The datatype must be one of FP32, FP64, FP16, UINT8.",
    )
    assert said(trained, right, outputs=[triton.InferRequestedOutput("classes")]) == (
        "400",
        "There is no such output; there are: logits, probabilities.",
    )
    status, sentence = said("nobody", right)
    assert (status, "No alias and no job" in sentence) == ("404", True)
    status, sentence = said(trained, right, model_version="best")
    assert (status, "integer" in sentence) == ("422", True)
