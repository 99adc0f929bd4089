"""What the Open Inference Protocol asks and answers. Those of `infer` only describe it: the predictor reads them."""

from typing import Any, Literal

from pydantic import BaseModel, Field


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int] = Field(description="-1: any number of pictures")


class ModelMetadata(BaseModel):
    name: str
    versions: list[str] = Field(description="The epochs whose checkpoints are kept")
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    name: str
    ready: bool


class InferInput(BaseModel):
    name: Literal["pixels"]
    shape: list[int] = Field(min_length=4, max_length=4, description="Pictures, channels, height, width")
    datatype: Literal["FP32", "FP64", "FP16", "UINT8"]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = Field(None, description="The numbers, in rows or one after the other; or binary")


class OutputParameters(BaseModel):
    binary_data: bool | None = None
    classification: int | None = Field(None, ge=0, description="How many of the likeliest classes are named instead")


class InferOutput(BaseModel):
    name: str
    parameters: OutputParameters | None = None


class InferParameters(BaseModel):
    binary_data_output: bool | None = None


class InferRequestBody(BaseModel):
    id: str | None = None
    parameters: InferParameters | None = None
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[InferOutput] | None = Field(None, max_length=16, description="Unset: all")


class InferredTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | None = None
    parameters: dict[str, Any] | None = None


class InferBody(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferredTensor]
