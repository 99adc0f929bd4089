"""What a job's owner asks for while it lives, and after."""

from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Response
from pydantic import Field
from worker.jobs import control, leftovers
from worker.jobs.errors import Conflict, CrossSite, DiskFull, InvalidRequest, NotFound, UnsupportedMediaType
from worker.jobs.spec import Part
from worker.jobs.states import Status

from service.bodies.jobs import JobBody
from service.deps import DatabaseDep, JobDep, ResolverDep, SettingsDep, require_json_if_any, require_space
from service.errors import responses
from service.whole import whole

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])

_UNDER_WAY = (Status.CANCELLING, Status.PAUSING)
_problems = partial(responses, CrossSite, NotFound, Conflict, DiskFull)
_RESPONSES = _problems(InvalidRequest, UnsupportedMediaType)


class NoFields(Part):
    pass


class Cancel(Part):
    mode: Literal["save", "now"] = Field(
        "save", description="`save`: the training saves where it is before it leaves; `now`: it is killed"
    )


class Retry(Part):
    apply_suggestion: bool = Field(
        False,
        description="Change the spec as `error.suggestion` says. Unless the result stays what it is, the job begins "
        "anew, and what it had trained is forgotten",
    )


class Extend(Part):
    epochs: int = Field(ge=1, le=100_000, description="How many more", examples=[5])


_UNDER_WAY_BODY: dict[int | str, dict[str, Any]] = {
    202: {"model": JobBody, "description": "The training is saving, and leaves"}
}


def _no_fields(body: Annotated[NoFields | None, Body()] = None) -> None:
    """A body may be sent, but says nothing: a field that is not understood is refused."""


@router.post(
    "/cancel",
    operation_id="cancel_job",
    summary="Cancel a job",
    dependencies=[Depends(require_json_if_any)],
    responses=_RESPONSES | _UNDER_WAY_BODY,
)
def cancel(job: JobDep, db: DatabaseDep, response: Response, body: Annotated[Cancel | None, Body()] = None) -> JobBody:
    """200 when the job is cancelled, 202 while its training is still leaving, which takes at most
    EPOCHD_CANCEL_SECONDS. Its checkpoints stay and can answer predictions; `retry` lets it go on."""
    mode = (body or Cancel()).mode
    cancelled = control.cancel(db, job.id, at_once=mode == "now")
    response.status_code = 202 if cancelled.status in _UNDER_WAY else 200
    return whole(db, cancelled)


@router.post(
    "/pause",
    operation_id="pause_job",
    summary="Pause a job",
    dependencies=[Depends(require_json_if_any), Depends(_no_fields)],
    responses=_RESPONSES | _UNDER_WAY_BODY,
)
def pause(job: JobDep, db: DatabaseDep, response: Response) -> JobBody:
    """200 when the job is paused, 202 while its training is still saving. It frees its slot until `resume`."""
    paused = control.pause(db, job.id)
    response.status_code = 202 if paused.status in _UNDER_WAY else 200
    return whole(db, paused)


@router.post(
    "/resume",
    operation_id="resume_job",
    summary="Let a paused job go on",
    dependencies=[Depends(require_json_if_any), Depends(_no_fields)],
    responses=_RESPONSES,
)
def resume(job: JobDep, db: DatabaseDep) -> JobBody:
    """Back to the queue, at its old place; it goes on inside the epoch, to the same bits as if it had not paused."""
    return whole(db, control.resume(db, job.id))


@router.post(
    "/retry",
    operation_id="retry_job",
    summary="Try a failed or cancelled job again",
    dependencies=[Depends(require_json_if_any), Depends(require_space)],
    responses=_RESPONSES,
)
def retry(job: JobDep, db: DatabaseDep, body: Annotated[Retry | None, Body()] = None) -> JobBody:
    """It goes on from its last checkpoint, and has all its attempts before it again."""
    suggested = (body or Retry()).apply_suggestion
    return whole(db, control.retry(db, job.id, apply_suggestion=suggested))


@router.post(
    "/extend",
    operation_id="extend_job",
    summary="Train a job that has succeeded for more epochs",
    dependencies=[Depends(require_json_if_any), Depends(require_space)],
    responses=_RESPONSES,
)
def extend(job: JobDep, db: DatabaseDep, body: Extend) -> JobBody:
    """To the same bits as if it had been submitted with them. Not possible where the schedule is made for the epochs
    that the job had (cosine, one_cycle), or where the training stopped early."""
    return whole(db, control.extend(db, job.id, body.epochs))


@router.delete(
    "", operation_id="delete_job", status_code=204, summary="Delete a job that has ended", responses=_problems()
)
def delete(job: JobDep, db: DatabaseDep, settings: SettingsDep, resolver: ResolverDep) -> None:
    """Its metrics, checkpoints and logs go with it. Not while an alias points at it."""
    control.delete(db, job.id)
    resolver.forget()
    leftovers.remove_job(settings.data_dir, job.id)
