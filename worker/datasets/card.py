"""A prepared dataset's card: what it holds, written beside its arrays as `card.json`."""

from pydantic import BaseModel, Field


class Card(BaseModel):
    name: str
    classes: list[str] = Field(description="Label of each class index")
    channels: int
    height: int
    width: int
    train_count: int
    test_count: int
    mean: list[float] = Field(description="Of the training pixels scaled to 0..1, per channel")
    std: list[float] = Field(description="Of the training pixels scaled to 0..1, per channel")
    sha256: str = Field(description="Of the four arrays' bytes, in the order they are listed in `FILES`")


FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
