"""The Open Inference Protocol's `infer` (https://github.com/open-inference/open-inference-protocol), with Triton's
extension for binary tensors: numbers go in as they are, numbers come out.
"""

import json
import math
import struct
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from worker.jobs.errors import InvalidRequest
from worker.jobs.open_inference import INPUT, LOGITS, PROBABILITIES, VALUES
from worker.jobs.wire import InferRequest

from .models import Ready

JSON_LENGTH: Final = struct.Struct("!I")
_DTYPES: Final = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "UINT8": np.uint8}
_MOST_DIMENSIONS: Final = 8


class _Input(BaseModel):
    name: str
    shape: list[int] = Field(min_length=1, max_length=_MOST_DIMENSIONS)
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class _Request(BaseModel):
    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[_Input]
    outputs: list[_Output] = []


def infer(ready: Ready, request: InferRequest, body: bytes) -> bytes:
    """The answer, as `InferRequest` says. Raises InvalidRequest."""
    asked = _parsed(body[: request.json_bytes])
    X = _pictures(ready, asked, memoryview(body)[request.json_bytes :])
    logits = ready.outputs(X)
    found: dict[str, Tensor] = {VALUES: logits}
    if ready.metadata.classes:
        found = {LOGITS: logits, PROBABILITIES: ready.probabilities(logits)}
    told, binary = _told(found, asked)
    about = {"model_name": request.model_name, "model_version": request.model_version, "outputs": told}
    head = json.dumps(about if asked.id is None else about | {"id": asked.id}).encode()
    return JSON_LENGTH.pack(len(head)) + head + binary


def _parsed(text: bytes) -> _Request:
    try:
        return _Request.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "/".join(map(str, first["loc"]))
        raise InvalidRequest(f"The request's JSON is not as the protocol says: {where}: {first['msg']}.") from error


def _pictures(ready: Ready, asked: _Request, binary: memoryview) -> Tensor:
    """float32 N x C x H x W in 0..1."""
    if len(asked.inputs) != 1 or asked.inputs[0].name != INPUT:
        raise InvalidRequest(f"There is one input, and it is called `{INPUT}`.")
    given, shape = asked.inputs[0], ready.preprocessing
    wanted = [shape.channels, shape.height, shape.width]
    if given.shape[1:] != wanted or given.shape[0] < 1:
        expected = ", ".join(map(str, wanted))
        raise InvalidRequest(f"`{INPUT}` must have the shape [N, {expected}], with N from 1; it has {given.shape}.")
    dtype = _DTYPES.get(given.datatype)
    if dtype is None:
        raise InvalidRequest(f"The datatype must be one of {', '.join(_DTYPES)}.")
    numbers = _binary(given, binary, dtype) if given.data is None else _listed(given.data, dtype)
    if numbers.size != math.prod(given.shape):
        raise InvalidRequest(f"The shape wants {math.prod(given.shape)} numbers; {numbers.size} came.")
    X = torch.from_numpy(numbers.reshape(given.shape))
    X = X.float() / 255 if given.datatype == "UINT8" else X.float()
    if not torch.isfinite(X).all():
        raise InvalidRequest("The numbers must be finite.")
    return X


def _binary(given: _Input, binary: memoryview, dtype: type[Any]) -> NDArray[Any]:
    size = given.parameters.get("binary_data_size")
    if not isinstance(size, int) or size != len(binary) or size % np.dtype(dtype).itemsize:
        raise InvalidRequest(
            f"`{INPUT}` has neither `data` nor a `binary_data_size` that fits the {len(binary)} bytes behind the JSON."
        )
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(binary, little).astype(dtype)  # a copy: torch wants to be able to write


def _listed(data: list[Any], dtype: type[Any]) -> NDArray[Any]:
    try:
        numbers = np.asarray(data)
    except ValueError as error:  # lists of different lengths
        raise InvalidRequest("`data` must hold numbers, in one list or in lists as the shape says.") from error
    if numbers.dtype.kind not in "iuf":
        raise InvalidRequest("`data` must hold numbers, in one list or in lists as the shape says.")
    if dtype is np.uint8 and (numbers.dtype.kind == "f" or numbers.min(initial=0) < 0 or numbers.max(initial=0) > 255):
        raise InvalidRequest("UINT8 wants whole numbers from 0 to 255.")
    with np.errstate(over="ignore"):
        return numbers.astype(dtype).reshape(-1)


def _told(found: dict[str, Tensor], asked: _Request) -> tuple[list[dict[str, Any]], bytes]:
    wanted = asked.outputs or [_Output(name=name) for name in found]
    is_binary = bool(asked.parameters.get("binary_data_output", False))
    told, binary = [], []
    for output in wanted:
        numbers = found.get(output.name)
        if numbers is None:
            raise InvalidRequest(f"There is no such output; there are: {', '.join(found)}.")
        if "classification" in output.parameters:
            raise InvalidRequest("Outputs are numbers here: leave `classification` out, or ask POST /predict.")
        head: dict[str, Any] = {"name": output.name, "datatype": "FP32", "shape": list(numbers.shape)}
        if output.parameters.get("binary_data", is_binary):
            contents = numbers.contiguous().numpy().astype("<f4").tobytes()
            head["parameters"] = {"binary_data_size": len(contents)}
            binary.append(contents)
        else:
            head["data"] = numbers.reshape(-1).tolist()
        told.append(head)
    return told, b"".join(binary)
