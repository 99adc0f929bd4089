"""Single pictures of a dataset, and what was answered for them."""

from typing import Literal

from pydantic import BaseModel, Field


def url_of_tested(job_id: str, index: int) -> str:
    """Where to see a job's test picture."""
    return f"/jobs/{job_id}/report/pictures/{index}.png"


class PictureBody(BaseModel):
    index: int = Field(description="In its split, from 0")
    label: str | None = Field(description="Its class; null for regression")
    targets: dict[str, float | None] | None = Field(
        description="Its numbers by their names, null where not finite; null for classification"
    )
    url: str = Field(description="Where to see it, as PNG")


class PicturesPage(BaseModel):
    name: str = Field(description="Of the dataset")
    version: int
    split: Literal["train", "test"]
    total: int = Field(description="How many there are, on all pages")
    data: list[PictureBody] = Field(description="In the order of the dataset")


class AnsweredBody(BaseModel):
    index: int = Field(description="Among the test pictures, from 0")
    label: str = Field(description="The picture's class")
    predicted: str = Field(description="The class it was taken for")
    probability: float = Field(description="Of the class that it was taken for, as the network said: 0 to 1")
    url: str | None = Field(description="Where to see it, as PNG; null where the dataset has been deleted")


class AnsweredPage(BaseModel):
    epoch: int = Field(description="After which the pictures were tested")
    total: int = Field(description="How many there are, on all pages")
    data: list[AnsweredBody] = Field(description="The most confident answers first; of equals, as in the dataset")
    note: str | None = Field(description="Why the pictures cannot be seen, where they cannot")
