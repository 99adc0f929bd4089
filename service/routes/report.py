"""How a job does class by class: its newest epoch's report; and picture by picture."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from worker.jobs import answers, pictures, records
from worker.jobs.errors import DatasetChanged, DatasetMissing, NotFound, NotReady
from worker.jobs.report import Report

from service.bodies.pictures import AnsweredBody, AnsweredPage, url_of_tested
from service.deps import DatabaseDep, JobDep, SettingsDep
from service.errors import responses

from .pictures import KEPT, IndexPath, PngResponse, png

router = APIRouter(prefix="/jobs/{job_id}/report", tags=["metrics"])


class AnsweredQuery(BaseModel, extra="forbid"):
    label: str | None = Field(None, description="Only pictures of this class; unset: of any")
    predicted: str | None = Field(None, description="Only pictures that were taken for this class; unset: for any")
    offset: int = Field(0, ge=0, lt=2**53, description="How many to leave out at the beginning")
    limit: int = Field(50, ge=1, le=200)


@router.get(
    "",
    operation_id="read_report",
    summary="Confusion matrix and scores of each class",
    responses=responses(NotFound, NotReady),
)
def read(job: JobDep, db: DatabaseDep) -> Report:
    """Of the newest epoch. A regression has none: its metrics say it all."""
    return records.report(db, job.id)


@router.get(
    "/pictures",
    operation_id="list_report_pictures",
    summary="List test pictures that were taken for something else",
    responses=responses(NotFound, NotReady),
)
def list_pictures(job: JobDep, db: DatabaseDep, query: Annotated[AnsweredQuery, Query()]) -> AnsweredPage:
    """Those of class `label` that were taken for `predicted` after the newest epoch, the most confident answers first:
    a cell of the confusion matrix. With one of the two left out, the wrong answers of its row or its column; without
    both, all wrong answers. Right answers are listed where both name the same class.
    """
    report, kept = answers.of_job(db, job.id)
    if kept is None:
        raise NotReady(answers.why_none(report))
    labels = [each.label for each in report.classes]
    label, predicted = (
        None if each is None else answers.class_number(labels, each, pointer=pointer)
        for each, pointer in ((query.label, "?label"), (query.predicted, "?predicted"))
    )
    found, note = answers.given(kept, label, predicted), None
    try:
        pictures.of_job(db, job)
    except DatasetMissing as error:
        note = error.detail
    data = [
        AnsweredBody(
            index=index,
            label=labels[kept.labels[index]],
            predicted=labels[kept.predicted[index]],
            probability=kept.probability(index),
            url=None if note else url_of_tested(job.id, index),
        )
        for index in found[query.offset : query.offset + query.limit]
    ]
    return AnsweredPage(epoch=report.epoch, total=len(found), data=data, note=note)


@router.get(
    "/pictures/{index}.png",
    operation_id="show_report_picture",
    summary="See a test picture",
    response_class=PngResponse,
    responses=responses(NotFound, NotReady, DatasetMissing, DatasetChanged),
)
def show_picture(job: JobDep, db: DatabaseDep, settings: SettingsDep, index: IndexPath) -> Response:
    """Of the version of the dataset that the job is trained on, whatever its name means by now."""
    folder = settings.data_dir / pictures.of_job(db, job)
    return PngResponse(png(pictures.picture(folder, "test", index)), headers=KEPT)
