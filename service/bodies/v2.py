"""What the Open Inference Protocol answers, but for tensors."""

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
