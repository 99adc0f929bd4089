"""Jobs beside each other."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import BaseModel, Field
from worker.jobs import comparing
from worker.jobs.comparing import Course, Pair, Result
from worker.jobs.report import ClassReport
from worker.jobs.states import DatasetStatus, Status

from .pictures import url_of_tested
from .row import FromRow


class CourseBody(BaseModel):
    best: float
    best_epoch: int = Field(description="The first that reached it")
    last: float | None = Field(description="Of the newest epoch; null where it was not finite")

    @classmethod
    def of(cls, course: Course) -> Self:
        return cls.model_validate(course._asdict())


class ResultBody(BaseModel):
    id: str
    name: str | None
    status: Status
    epoch: int | None = Field(description="Of the report: after which the pictures were tested; null before the first")
    accuracy: float | None = Field(description="Of that epoch, 0 to 1; null for regression")
    metrics: dict[str, CourseBody] = Field(description="Best and newest value of each metric that it has")

    @classmethod
    def of(cls, result: Result) -> Self:
        job, report = result.job, result.report
        return cls(
            id=job.id,
            name=job.name,
            status=Status(job.status),
            epoch=report.epoch if report else None,
            accuracy=report.accuracy if report else None,
            metrics={name: CourseBody.of(course) for name, course in result.courses.items()},
        )


class DifferenceBody(BaseModel):
    pointer: str = Field(description="JSON pointer to the field, such as `/optimizer/lr`")
    values: dict[str, Any] = Field(description="By job; one that has no such field is not in it")


class OfClass(BaseModel):
    """What a job made of a class."""

    support: int = Field(description="Test pictures of this class")
    recall: float | None
    recall_change: float | None = Field(description="Against the first job; null where one of the two is")
    f1: float | None
    f1_change: float | None = Field(description="Against the first job; null where one of the two is")

    @classmethod
    def of(cls, found: ClassReport, first: ClassReport | None) -> Self:
        recall, f1 = (first.recall, first.f1) if first else (None, None)
        return cls(
            support=found.support,
            recall=found.recall,
            recall_change=_change(found.recall, recall),
            f1=found.f1,
            f1_change=_change(found.f1, f1),
        )


class ClassBody(BaseModel):
    label: str
    jobs: dict[str, OfClass] = Field(description="By job; one that has no such class is not in it")


class CountsBody(FromRow):
    both_right: int
    only_first: int = Field(description="Test pictures that only the first job's network got right")
    only_second: int
    both_wrong: int


class SaidBody(BaseModel):
    predicted: str
    probability: float


class FlippedBody(BaseModel):
    index: int = Field(description="Among the test pictures, from 0")
    label: str = Field(description="The picture's class")
    first: SaidBody = Field(description="What the first job's network took it for")
    second: SaidBody
    url: str | None = Field(description="Where to see it, as PNG; null where the dataset has been deleted")


class PairBody(BaseModel):
    first: str = Field(description="A job")
    second: str = Field(description="Another one")
    same_pictures: bool = Field(description="Whether both were tested on the same pictures: the digests are equal")
    counts: CountsBody | None = Field(description="Null where they cannot be compared picture by picture")
    p: float | None = Field(
        description="McNemar's exact test, two-sided: how often chance alone gives a split as uneven as that of "
        "`only_first` and `only_second`. It is of this pair alone: of 20 pairs that are equally good, one is below 0.05"
    )
    better: str | None = Field(
        description=f"The job whose network got more right, where p is below {comparing.SIGNIFICANT}"
    )
    verdict: str = Field(description="The same as a sentence, or why there is none")
    flipped: list[FlippedBody] = Field(description="The first pictures that only one of the two got right")

    @classmethod
    def of(cls, pair: Pair) -> Self:
        first, second = pair.first, pair.second
        return cls(
            first=first.job.id,
            second=second.job.id,
            same_pictures=pair.same_pictures,
            counts=None if pair.counts is None else CountsBody.model_validate(pair.counts),
            p=pair.p,
            better=None if pair.better is None else pair.better.job.id,
            verdict=pair.verdict,
            flipped=[_flipped(first, second, index) for index in pair.flipped],
        )


class ComparisonBody(BaseModel):
    jobs: list[ResultBody] = Field(description="In the order in which they were named")
    spec: list[DifferenceBody] = Field(description="The fields of the specs that are not the same in all")
    provenance: list[DifferenceBody] = Field(description="Likewise of what else the results depend on")
    classes: list[ClassBody] = Field(description="In the order of the dataset's classes")
    pairs: list[PairBody] = Field(description="Each job with each one behind it")

    @classmethod
    def of(cls, results: Sequence[Result]) -> Self:
        return cls(
            jobs=[ResultBody.of(each) for each in results],
            spec=_differences({each.job.id: each.job.spec for each in results}),
            provenance=_differences({each.job.id: each.job.provenance or {} for each in results}),
            classes=_classes(results),
            pairs=[PairBody.of(pair) for pair in comparing.pairs(results)],
        )


def _differences(documents: dict[str, dict[str, Any]]) -> list[DifferenceBody]:
    return [DifferenceBody.model_validate(each._asdict()) for each in comparing.differences(documents)]


def _classes(results: Sequence[Result]) -> list[ClassBody]:
    by_job = {
        each.job.id: {of_class.label: of_class for of_class in each.report.classes} for each in results if each.report
    }
    labels = dict.fromkeys(label for reported in by_job.values() for label in reported)
    first = by_job.get(results[0].job.id, {})
    return [
        ClassBody(
            label=label,
            jobs={
                job_id: OfClass.of(reported[label], first.get(label))
                for job_id, reported in by_job.items()
                if label in reported
            },
        )
        for label in labels
    ]


def _change(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _flipped(first: Result, second: Result, index: int) -> FlippedBody:
    assert first.report is not None
    assert first.answers is not None
    seen_in = next((each for each in (first, second) if _has_pictures(each)), None)
    return FlippedBody(
        index=index,
        label=first.report.classes[first.answers.labels[index]].label,
        first=_said(first, index),
        second=_said(second, index),
        url=url_of_tested(seen_in.job.id, index) if seen_in else None,
    )


def _has_pictures(result: Result) -> bool:
    return result.dataset is not None and result.dataset.status == DatasetStatus.READY


def _said(result: Result, index: int) -> SaidBody:
    assert result.report is not None
    assert result.answers is not None
    label = result.report.classes[result.answers.predicted[index]].label
    return SaidBody(predicted=label, probability=result.answers.probability(index))
