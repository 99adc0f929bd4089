"""A prepared dataset's card: what it holds, and what was found when it was prepared. `card.json` beside its arrays."""

from enum import StrEnum

from pydantic import BaseModel, Field


class Task(StrEnum):
    CLASSIFICATION = "classification"  # a picture has one class
    REGRESSION = "regression"  # a picture has one or more numbers


class FindingKind(StrEnum):
    UNREADABLE = "unreadable"  # no picture that can be read; left out
    DUPLICATE = "duplicate"  # the same picture more than once in one split
    LEAKAGE = "leakage"  # the same picture in train and test: accuracy will look better than it is
    EMPTY_CLASS = "empty_class"  # a class without a picture in train or in test
    IMBALANCE = "imbalance"  # one class has many times the pictures of another
    ODD_SIZE = "odd_size"  # scaled up, or much of it cut away
    UNUSED = "unused"  # in the archive, but not in labels.csv, or in a folder beside train and test; left out


class FileNote(BaseModel):
    file: str = Field(description="Path in the archive")
    detail: str


class Finding(BaseModel):
    kind: FindingKind
    count: int
    detail: str = Field(description="What it means")
    files: list[FileNote] = Field([], description="Which files, the first 1000 of them")


class Card(BaseModel):
    name: str
    task: Task = Task.CLASSIFICATION
    classes: list[str] = Field(description="Label of each class index; empty for regression")
    targets: list[str] = Field([], description="Names of the numbers to predict; empty for classification")
    channels: int = Field(description="1 for grey, 3 for colour")
    height: int
    width: int
    train_count: int
    test_count: int
    train_counts: list[int] = Field([], description="Training pictures of each class")
    test_counts: list[int] = Field([], description="Test pictures of each class")
    mean: list[float] = Field(description="Of the training pixels scaled to 0..1, per channel")
    std: list[float] = Field(description="Of the training pixels scaled to 0..1, per channel")
    target_mean: list[float] = Field([], description="Of the training pictures' numbers, per target")
    target_std: list[float] = Field([], description="Of the training pictures' numbers, per target")
    findings: list[Finding] = Field([], description="The preflight report; empty when nothing was found")
    ignored: dict[str, int] = Field({}, description="Files that were no pictures, by the ending of their names")
    sha256: str = Field(description="Of the four arrays' bytes, in the order they are listed in `FILES`")

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for a picture of this dataset."""
        return len(self.classes) or len(self.targets)


FILES = ("train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy")
