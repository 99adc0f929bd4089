"""What is ready and what is not."""

from pydantic import BaseModel


class Part(BaseModel):
    ready: bool
    detail: str


class Readiness(BaseModel):
    ready: bool
    parts: dict[str, Part]
