"""The Open Inference Protocol's `infer` (https://github.com/open-inference/open-inference-protocol), with Triton's
extensions for binary tensors and for classification: numbers go in as they are, numbers come out.
"""

import json
import math
import struct
from itertools import chain
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from torch import Tensor

from worker.jobs.errors import BodyTooLarge, InvalidRequest
from worker.jobs.open_inference import INPUT, LOGITS, PROBABILITIES, VALUES
from worker.jobs.texts import printable
from worker.jobs.wire import InferRequest

from .models import Ready

JSON_LENGTH: Final = struct.Struct("!I")
_ITEM_LENGTH: Final = struct.Struct("<I")  # before each text of a binary tensor of them
_DTYPES: Final = {"FP32": np.float32, "FP64": np.float64, "FP16": np.float16, "UINT8": np.uint8}
_MOST_JSON_BYTES: Final = 8 * 2**20  # lists in lists take forty times their text in memory
_MOST_PIXEL_BYTES: Final = 32 * 2**20  # as floats: nobody else is answered while they go through the network
_MOST_NUMBERS: Final = 2**20  # in an output
_MOST_TENSORS: Final = 16
_MOST_DIMENSIONS: Final = 8

_Size = Annotated[int, Field(ge=0, lt=2**63)]


class _Input(BaseModel):
    name: str
    shape: list[_Size] = Field(min_length=1, max_length=_MOST_DIMENSIONS)
    datatype: str
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class _OutputParameters(BaseModel):
    binary_data: bool | None = None
    classification: int | None = Field(None, ge=0)  # how many of the likeliest classes are named instead of numbers


class _Output(BaseModel):
    name: str
    parameters: _OutputParameters | None = None


class _Parameters(BaseModel):
    binary_data_output: bool | None = None


class _Request(BaseModel):
    """Some clients send null for what they leave out."""

    id: Annotated[str, AfterValidator(printable)] | None = None  # the answer has it too
    parameters: _Parameters | None = None
    inputs: list[_Input] = Field(max_length=_MOST_TENSORS)
    outputs: list[_Output] | None = Field(None, max_length=_MOST_TENSORS)


class _Texts(NamedTuple):
    """A tensor of them, row by row."""

    shape: list[int]
    items: list[str]


def infer(ready: Ready, request: InferRequest, body: bytes) -> bytes:
    """The answer, as `InferRequest` says. Raises InvalidRequest and BodyTooLarge."""
    asked = _parsed(body[: request.json_bytes])
    X = _pictures(ready, asked, memoryview(body)[request.json_bytes :])
    logits = ready.outputs(X)
    found: dict[str, Tensor] = {VALUES: logits}
    if ready.metadata.classes:
        found = {LOGITS: logits, PROBABILITIES: ready.probabilities(logits)}
    told, binary = _told(found, asked, ready.metadata.classes)
    about = {"model_name": request.model_name, "model_version": request.model_version, "outputs": told}
    head = json.dumps(about if asked.id is None else about | {"id": asked.id}, allow_nan=False).encode()
    return JSON_LENGTH.pack(len(head)) + head + binary


def _parsed(text: bytes) -> _Request:
    if len(text) > _MOST_JSON_BYTES:
        raise BodyTooLarge(f"The JSON has more than {_MOST_JSON_BYTES} bytes: send the tensor as binary data.")
    try:
        return _Request.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "/".join(["#", *map(str, first["loc"])])
        raise InvalidRequest(f"The request's JSON is not as the protocol says: {where}: {first['msg']}.") from error


def _pictures(ready: Ready, asked: _Request, binary: memoryview) -> Tensor:
    """float32 N x C x H x W in 0..1."""
    if len(asked.inputs) != 1 or asked.inputs[0].name != INPUT:
        raise InvalidRequest(f"There is one input, and it is called `{INPUT}`.")
    given = asked.inputs[0]
    _check_shape(ready, given.shape)
    dtype = _DTYPES.get(given.datatype)
    if dtype is None:
        raise InvalidRequest(f"The datatype must be one of {', '.join(_DTYPES)}.")
    numbers = _binary(given, binary, dtype) if given.data is None else _listed(given.data, given.shape, dtype)
    if given.data is not None and binary:
        raise InvalidRequest(f"`{INPUT}` has `data`, and {len(binary)} bytes follow the JSON: send one of them.")
    if numbers.size != math.prod(given.shape):
        raise InvalidRequest(f"The shape wants {math.prod(given.shape)} numbers; {numbers.size} came.")
    X = torch.from_numpy(numbers.reshape(given.shape))
    X = X.float() / 255 if given.datatype == "UINT8" else X.float()
    if not torch.isfinite(X).all():
        raise InvalidRequest("The numbers must be finite.")
    return X


def _check_shape(ready: Ready, given: list[int]) -> None:
    shape = ready.preprocessing
    wanted = [shape.channels, shape.height, shape.width]
    if given[1:] != wanted or given[0] < 1:
        expected = ", ".join(map(str, wanted))
        raise InvalidRequest(f"`{INPUT}` must have the shape [N, {expected}], with N from 1; it has {given}.")
    picture_bytes = 4 * shape.channels * max(shape.height * shape.width, math.prod(shape.input_size))
    most = max(1, min(_MOST_PIXEL_BYTES // picture_bytes, _MOST_NUMBERS // ready.metadata.outputs))
    if given[0] > most:
        raise InvalidRequest(f"Up to {most} pictures are answered at once; send {given[0]} in several requests.")


def _binary(given: _Input, binary: memoryview, dtype: type[Any]) -> NDArray[Any]:
    size = (given.parameters or {}).get("binary_data_size")
    if not isinstance(size, int) or size != len(binary) or size % np.dtype(dtype).itemsize:
        raise InvalidRequest(
            f"`{INPUT}` has neither `data` nor a `binary_data_size` that fits the {len(binary)} bytes behind the JSON."
        )
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(binary, little).astype(dtype)  # a copy: torch wants to be able to write


def _listed(data: list[Any], shape: list[int], dtype: type[Any]) -> NDArray[Any]:
    numbers = _flat(data, shape)
    if not set(map(type, numbers)) <= {int, float}:  # numpy would make room for the longest text, once for each
        raise InvalidRequest("`data` must hold numbers, in one list or in lists as the shape says.")
    if dtype is np.uint8 and not all(type(each) is int and 0 <= each <= 255 for each in numbers):
        raise InvalidRequest("UINT8 wants whole numbers from 0 to 255.")
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, np.float64).astype(dtype)
    except OverflowError as error:  # a whole number of many digits
        raise InvalidRequest("The numbers must be finite.") from error


def _flat(data: list[Any], shape: list[int]) -> list[Any]:
    """Row by row, as it may be already."""
    if not data or not isinstance(data[0], list):
        return data
    for length in shape[1:]:
        if not all(type(each) is list and len(each) == length for each in data):
            raise InvalidRequest("`data` must hold numbers, in one list or in lists as the shape says.")
        data = list(chain.from_iterable(data))
    return data


def _told(found: dict[str, Tensor], asked: _Request, classes: list[str]) -> tuple[list[dict[str, Any]], bytes]:
    """The outputs as JSON, and the bytes of those that were wanted as binary data."""
    wanted = asked.outputs or [_Output(name=name) for name in found]
    if len({output.name for output in wanted}) != len(wanted):
        raise InvalidRequest("An output is asked for twice.")
    all_binary = asked.parameters is not None and asked.parameters.binary_data_output
    told, binary = [], []
    for output in wanted:
        numbers, how = found.get(output.name), output.parameters or _OutputParameters()
        if numbers is None:
            raise InvalidRequest(f"There is no such output; there are: {', '.join(found)}.")
        tensor = _likeliest(numbers, how.classification or 0, classes)
        is_text = isinstance(tensor, _Texts)
        head: dict[str, Any] = {
            "name": output.name,
            "datatype": "BYTES" if is_text else "FP32",
            "shape": list(tensor.shape),
        }
        if all_binary if how.binary_data is None else how.binary_data:
            contents = _packed(tensor)
            head["parameters"] = {"binary_data_size": len(contents)}
            binary.append(contents)
        else:
            head["data"] = tensor.items if isinstance(tensor, _Texts) else _numbers(tensor)
        told.append(head)
    return told, b"".join(binary)


def _likeliest(numbers: Tensor, count: int, classes: list[str]) -> Tensor | _Texts:
    """`value:index:label` of so many classes of each row, as the extension for classification has it."""
    if count == 0:
        return numbers
    if not classes:
        raise InvalidRequest("This network gives numbers, not classes: leave `classification` out.")
    values, indices = numbers.topk(min(count, len(classes)))
    pairs = zip(values.flatten().tolist(), indices.flatten().tolist(), strict=True)
    return _Texts(list(values.shape), [f"{value:.9g}:{index}:{classes[index]}" for value, index in pairs])


def _packed(tensor: Tensor | _Texts) -> bytes:
    if isinstance(tensor, _Texts):
        encoded = [item.encode() for item in tensor.items]
        return b"".join([_ITEM_LENGTH.pack(len(each)) + each for each in encoded])
    return tensor.contiguous().numpy().astype("<f4").tobytes()


def _numbers(tensor: Tensor) -> list[float | None]:
    """JSON knows no NaN and no infinity: null."""
    flat: list[float | None] = tensor.flatten().tolist()
    if not torch.isfinite(tensor).all():
        flat = [each if each is not None and math.isfinite(each) else None for each in flat]
    return flat
