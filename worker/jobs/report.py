"""How an epoch did, class by class: counted from which class was taken for which."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel, Field

_MATRIX_CLASSES: Final = 200  # a larger matrix says nothing to anybody
_MOST_CONFUSED: Final = 10

Pairs = Mapping[tuple[int, int], int]
"""How many test pictures have each (class, predicted class). Pairs without pictures may be left out: of 10,000 classes
there are 100 million pairs.
"""


class ClassReport(BaseModel):
    label: str
    support: int = Field(description="Test pictures of this class")
    precision: float | None = Field(
        description="Share of the pictures taken for this class that are of it; null where none was taken for it"
    )
    recall: float | None = Field(
        description="Share of this class's pictures that were taken for it; null where it has none"
    )
    f1: float | None = Field(
        description="Harmonic mean of precision and recall; null where the class has no picture and none was taken "
        "for it"
    )


class Confusion(BaseModel):
    label: str = Field(description="The class of the pictures")
    predicted: str = Field(description="The class they were taken for")
    count: int


class Report(BaseModel):
    epoch: int
    accuracy: float = Field(description="Share of right answers: 0 to 1")
    macro_precision: float = Field(
        description="Average over the classes that have a picture or were predicted; null counts as 0"
    )
    macro_recall: float = Field(description="Likewise")
    macro_f1: float = Field(description="Likewise")
    classes: list[ClassReport] = Field(description="In the order of the dataset's classes")
    confusion_matrix: list[list[int]] | None = Field(
        description=f"Pictures by class (row) and predicted class (column); null for more than {_MATRIX_CLASSES} "
        "classes"
    )
    most_confused: list[Confusion] = Field(
        description=f"The wrong answers that were given most often, up to {_MOST_CONFUSED}"
    )


@dataclass
class _Tally:
    """Of one class, in pictures."""

    right: int = 0
    support: int = 0
    predicted: int = 0

    @property
    def precision(self) -> float | None:
        return _share(self.right, self.predicted)

    @property
    def recall(self) -> float | None:
        return _share(self.right, self.support)

    @property
    def f1(self) -> float | None:
        return _share(2 * self.right, self.support + self.predicted)


def report_of(pairs: Pairs, labels: Sequence[str], epoch: int) -> Report:
    """`pairs`: of at least one picture. Averages are those of scikit-learn's `average="macro", zero_division=0`."""
    tallies = _tallies(pairs, len(labels))
    return Report(
        epoch=epoch,
        accuracy=accuracy(pairs),
        macro_precision=_macro(tallies, (tally.precision for tally in tallies)),
        macro_recall=_macro(tallies, (tally.recall for tally in tallies)),
        macro_f1=macro_f1(pairs, len(labels)),
        classes=[
            ClassReport(label=label, support=tally.support, precision=tally.precision, recall=tally.recall, f1=tally.f1)
            for label, tally in zip(labels, tallies, strict=True)
        ],
        confusion_matrix=_matrix(pairs, len(labels)) if len(labels) <= _MATRIX_CLASSES else None,
        most_confused=_most_confused(pairs, labels),
    )


def accuracy(pairs: Pairs) -> float:
    """The share of right answers: 0 to 1."""
    return sum(count for (true, predicted), count in pairs.items() if true == predicted) / sum(pairs.values())


def macro_f1(pairs: Pairs, classes: int) -> float:
    """F1 averaged over the classes that have a picture or were predicted: 0 to 1."""
    tallies = _tallies(pairs, classes)
    return _macro(tallies, (tally.f1 for tally in tallies))


def _tallies(pairs: Pairs, classes: int) -> list[_Tally]:
    tallies = [_Tally() for _ in range(classes)]
    for (true, predicted), count in pairs.items():
        tallies[true].support += count
        tallies[predicted].predicted += count
        tallies[true].right += count * (true == predicted)
    return tallies


def _macro(tallies: Iterable[_Tally], values: Iterable[float | None]) -> float:
    seen = sum(tally.f1 is not None for tally in tallies)
    return sum(value or 0.0 for value in values) / seen


def _matrix(pairs: Pairs, classes: int) -> list[list[int]]:
    return [[pairs.get((true, predicted), 0) for predicted in range(classes)] for true in range(classes)]


def _most_confused(pairs: Pairs, labels: Sequence[str]) -> list[Confusion]:
    """The most frequent first; of equals, those of the earlier classes."""
    wrong = sorted((-count, pair) for pair, count in pairs.items() if count and pair[0] != pair[1])
    return [
        Confusion(label=labels[true], predicted=labels[predicted], count=-negative)
        for negative, (true, predicted) in wrong[:_MOST_CONFUSED]
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
