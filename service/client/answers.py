"""What answers mean. Fields that this version does not know are kept; none of them is in the way.

The bodies are loaded when the first answer of theirs comes: all together they take half a second, and a client needs a
few of them.
"""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from .call import Answer
from .errors import UnexpectedAnswer

if TYPE_CHECKING:
    from worker.jobs.plan import Plan
    from worker.jobs.report import Report

    from service.bodies.checkpoints import CheckpointBody
    from service.bodies.compare import ComparisonBody
    from service.bodies.datasets import DatasetBody, DatasetSummary
    from service.bodies.jobs import JobBody, JobPage
    from service.bodies.metrics import MetricsPage, MetricsRow
    from service.bodies.models import AliasBody
    from service.bodies.predict import EpochsBody, PredictBody
    from service.bodies.sweeps import SweepBody, SweepPage, SweepPlan

B = TypeVar("B", bound=BaseModel)


class LogsPage(BaseModel):
    """Some lines of an attempt's log."""

    attempt: int
    data: list[str]
    next_since: int
    terminal: bool


def nothing(_: Answer) -> None:
    pass


def job(answer: Answer) -> "JobBody":
    from service.bodies.jobs import JobBody

    return body_of(JobBody, answer.content)


def jobs(answer: Answer) -> "JobPage":
    from service.bodies.jobs import JobPage

    return body_of(JobPage, answer.content)


def plan(answer: Answer) -> "Plan":
    from worker.jobs.plan import Plan

    return body_of(Plan, answer.content)


def metrics(answer: Answer) -> "MetricsPage":
    from service.bodies.metrics import MetricsPage

    return body_of(MetricsPage, answer.content)


def row(content: str | bytes) -> "MetricsRow":
    from service.bodies.metrics import MetricsRow

    return body_of(MetricsRow, content)


def logs(answer: Answer) -> LogsPage:
    return body_of(LogsPage, answer.content)


def report(answer: Answer) -> "Report":
    from worker.jobs.report import Report

    return body_of(Report, answer.content)


def checkpoints(answer: Answer) -> "list[CheckpointBody]":
    from service.bodies.checkpoints import CheckpointList

    return body_of(CheckpointList, answer.content).data


def comparison(answer: Answer) -> "ComparisonBody":
    from service.bodies.compare import ComparisonBody

    return body_of(ComparisonBody, answer.content)


def sweep(answer: Answer) -> "SweepBody":
    from service.bodies.sweeps import SweepBody

    return body_of(SweepBody, answer.content)


def sweeps(answer: Answer) -> "SweepPage":
    from service.bodies.sweeps import SweepPage

    return body_of(SweepPage, answer.content)


def sweep_plan(answer: Answer) -> "SweepPlan":
    from service.bodies.sweeps import SweepPlan

    return body_of(SweepPlan, answer.content)


def prediction(answer: Answer) -> "PredictBody":
    from service.bodies.predict import PredictBody

    return body_of(PredictBody, answer.content)


def predictions(answer: Answer) -> "EpochsBody":
    from service.bodies.predict import EpochsBody

    return body_of(EpochsBody, answer.content)


def dataset(answer: Answer) -> "DatasetBody":
    from service.bodies.datasets import DatasetBody

    return body_of(DatasetBody, answer.content)


def datasets(answer: Answer) -> "list[DatasetSummary]":
    from service.bodies.datasets import DatasetList

    return body_of(DatasetList, answer.content).data


def alias(answer: Answer) -> "AliasBody":
    from service.bodies.models import AliasBody

    return body_of(AliasBody, answer.content)


def aliases(answer: Answer) -> "list[AliasBody]":
    from service.bodies.models import AliasList

    return body_of(AliasList, answer.content).data


def body_of(kind: type[B], content: str | bytes) -> B:
    """Raises UnexpectedAnswer."""
    try:
        return kind.model_validate_json(content, extra="allow")
    except ValidationError as error:
        found = _of_older(kind, content, error)
        if found is not None:
            return found
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise UnexpectedAnswer(
            f"The answer is not as this client expects it ({where}: {first['msg']}): the service is of another "
            "version, or no epochd."
        ) from error


def _of_older(kind: type[B], content: str | bytes, error: ValidationError) -> B | None:
    """What a service says that does not know some fields yet: they are null, where they can be."""
    found = error.errors(include_url=False, include_input=False)
    if any(each["type"] != "missing" for each in found):
        return None
    with suppress(ValidationError, LookupError, TypeError):
        document = json.loads(content)
        for each in found:
            *path, name = each["loc"]
            at = document
            for part in path:
                at = at[part]
            at[name] = None
        return kind.model_validate_json(json.dumps(document), extra="allow")
    return None
