"""What a job's owner asks for: cancel, pause, resume, retry, extend, delete; and retention, which asks for them.

Each function is one state change in one transaction, as in `queue.py`. To ask for what already is so is fine.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from sqlalchemy import Delete, func, insert, select, update
from sqlalchemy import delete as delete_rows
from sqlmodel import Session, col

from . import aliases, deliveries, queue
from .db import Database, now
from .errors import Conflict, SpecRefused
from .patches import keeps_training, patched
from .spec import Cosine, OneCycle, Spec
from .states import TERMINAL, DatasetStatus, Status
from .tables import (
    Attempt,
    Checkpoint,
    Dataset,
    Epoch,
    Job,
    ParityRow,
    ReportRow,
    StepCheckpoint,
    Sweep,
    Transition,
)

TIED_TO_EPOCHS: Final = (Cosine, OneCycle)  # schedules that are made for the number of epochs
_OF_A_TRAINING = (Epoch, Checkpoint, StepCheckpoint, ReportRow, ParityRow)


def cancel(db: Database, job_id: str, *, at_once: bool = False) -> Job:
    """One that no attempt owns is cancelled at once, one that is owned becomes `cancelling`.

    `at_once`: its attempt is killed, and saves nothing. Raises NotFound, and Conflict when the job has succeeded or
    failed.
    """
    with db.write() as session:
        job = queue.find(session, job_id, lock=True)
        stop(session, job, at_once=at_once)
        return job


def stop(session: Session, job: Job, *, at_once: bool = False) -> None:
    """As `cancel`, inside a transaction. The job is locked."""
    if job.status in (Status.SUCCEEDED, Status.FAILED):
        raise Conflict(f"The job has {job.status} and cannot be cancelled any more.")
    stop_all(session, [job], at_once=at_once)


def stop_all(session: Session, jobs: Sequence[Job], *, at_once: bool = False) -> None:
    """As `stop`, a thousand in as few statements as one; those that have ended stay as they are."""
    at, changes = now(session), []
    for job in jobs:
        if job.status in (Status.QUEUED, Status.PAUSED):
            changes.append(_Change(job, Status.CANCELLED, f"cancelled while {job.status}"))
            job.status, job.finished_at = Status.CANCELLED, at
        elif job.status in (Status.RUNNING, Status.PAUSING):
            changes.append(_Change(job, Status.CANCELLING, "cancel requested"))
            job.status = Status.CANCELLING
        if job.status == Status.CANCELLING:
            job.stop_now = job.stop_now or at_once
    _note(session, changes)


def pause(db: Database, job_id: str) -> Job:
    """A queued job is paused at once, a running one saves first. Raises NotFound, and Conflict when it has ended."""
    with db.write() as session:
        job = queue.find(session, job_id, lock=True)
        if job.status == Status.QUEUED:
            job.status = Status.PAUSED
            queue.note(session, job_id, Status.PAUSED, "paused while queued")
        elif job.status == Status.RUNNING:
            job.status = Status.PAUSING
            queue.note(session, job_id, Status.PAUSING, "pause requested")
        elif job.status not in (Status.PAUSING, Status.PAUSED):
            raise Conflict(f"The job is {job.status} and cannot be paused.")
        return job


def resume(db: Database, job_id: str) -> Job:
    """A paused job goes back to the queue, at its old place. Raises NotFound, and Conflict when it has ended."""
    with db.write() as session:
        job = queue.find(session, job_id, lock=True)
        if job.status == Status.PAUSED:
            job.status = Status.QUEUED
            queue.note(session, job_id, Status.QUEUED, "resumed")
        elif job.status == Status.PAUSING:  # if its attempt leaves all the same, the job goes back to the queue
            job.status = Status.RUNNING
            queue.note(session, job_id, Status.RUNNING, "resumed before it was paused")
        elif job.status not in (Status.QUEUED, Status.RUNNING):
            raise Conflict(f"The job is {job.status}; only a paused one can be resumed. See `retry` and `extend`.")
        return job


def retry(db: Database, job_id: str, *, apply_suggestion: bool = False) -> Job:
    """A failed or cancelled job goes on from its last checkpoint, with all its attempts before it again.

    `apply_suggestion`: with the spec patched as its error suggests. Unless that leaves the result as it is, the job
    begins anew, and what it had trained is forgotten. Raises NotFound, and Conflict when the status does not allow it,
    when there is no suggestion, when an alias points at what would be forgotten, and when the dataset is gone.
    """
    with db.write() as session:
        job = queue.find(session, job_id, lock=True)
        if job.status not in (Status.FAILED, Status.CANCELLED):
            raise Conflict(f"The job is {job.status}; only one that has failed or was cancelled can be tried again.")
        if apply_suggestion:
            _apply(session, job, (job.error or {}).get("suggestion"))
        require_dataset(session, job)
        _requeue(session, [(job, "retried, with what the error suggests" if apply_suggestion else "retried")])
        return job


def extend(db: Database, job_id: str, epochs: int) -> Job:
    """A job that has succeeded trains so many epochs more, as if it had been submitted with them.

    Raises NotFound, SpecRefused when they would be too many, and Conflict when the job has not succeeded, when it was
    imported, when its schedule is made for the epochs that it had, when it stopped early, and when the dataset is gone.
    """
    with db.write() as session:
        job = queue.find(session, job_id, lock=True)
        spec = longer(job, epochs, trained(session, [job_id]).get(job_id, 0))
        require_dataset(session, job)
        lengthen(session, [(job, spec)])
        return job


def trained(session: Session, job_ids: Sequence[str]) -> dict[str, int]:
    """The last epoch that each has; one that has none is missing."""
    last = select(col(Epoch.job_id), func.max(Epoch.epoch)).where(col(Epoch.job_id).in_(job_ids))
    return dict(session.execute(last.group_by(col(Epoch.job_id))).all())


def longer(job: Job, epochs: int, done: int) -> dict[str, Any]:
    """The spec of a job that trains so many epochs more, of which it has `done` already. Raises as `extend` does."""
    if job.status != Status.SUCCEEDED:
        raise Conflict(f"The job is {job.status}; only one that has succeeded can be extended.")
    if job.imported:
        raise Conflict("The job was imported, without what a training needs to go on; submit a new job.")
    spec = _valid(job.spec)
    if isinstance(spec.schedule, TIED_TO_EPOCHS):
        raise Conflict(
            f"The schedule {spec.schedule.name} ends with the last epoch: more of them would be another training. "
            "Submit a new job."
        )
    if done < spec.epochs:
        raise Conflict("The training stopped early, because it got no better; more epochs would end it again.")
    return _with_epochs(spec, spec.epochs + epochs).model_dump(mode="json")


def lengthen(session: Session, specs: Sequence[tuple[Job, dict[str, Any]]]) -> None:
    """Has jobs train on, each by what `longer` gave, many in as few statements as one. They are locked."""
    _requeue(session, [(job, f"extended by {spec['epochs'] - job.spec['epochs']} epochs") for job, spec in specs])
    for job, spec in specs:
        job.spec = spec


def require_dataset(session: Session, job: Job) -> None:
    """Until the transaction ends nobody deletes it. Raises Conflict when it is gone."""
    dataset = session.get(Dataset, job.dataset_id, with_for_update=True)
    if dataset is None or dataset.status in (DatasetStatus.DELETED, DatasetStatus.INVALID):
        raise Conflict("The dataset of this job is gone; upload it again and submit a new job.")


def delete(db: Database, job_id: str) -> None:
    """All rows of a job that has ended; the caller removes its folder. Raises NotFound and Conflict.

    Not of one that an alias points at. An alias that pointed at it before cannot be rolled back to it any more. A sweep
    goes with the last of its trials.
    """
    with db.write() as session:
        sweep_id = queue.find(session, job_id).sweep_id
        if sweep_id is not None:  # of two that delete its last trials, one comes after the other
            session.get(Sweep, sweep_id, with_for_update=True)
        job = queue.find(session, job_id, lock=True)
        if job.status not in TERMINAL:
            raise Conflict(f"The job is {job.status}; cancel it first.")
        aliases.let_go(session, job_id)
        session.delete(job)
        session.flush()
        if sweep_id is not None:
            session.execute(without_trials().where(col(Sweep.id) == sweep_id))


def without_trials() -> Delete:
    """Lets go of sweeps whose last trial has gone."""
    return delete_rows(Sweep).where(~select(col(Job.id)).where(col(Job.sweep_id) == col(Sweep.id)).exists())


def _apply(session: Session, job: Job, patch: dict[str, Any] | None) -> None:
    if not patch:
        raise Conflict("The job's error comes with no suggestion; submit a new job with a spec of your own.")
    job.spec = _valid(patched(job.spec, patch)).model_dump(mode="json")
    if keeps_training(patch):
        return
    aliases.let_go(session, job.id)
    for table in _OF_A_TRAINING:
        session.execute(delete_rows(table).where(col(table.job_id) == job.id))
    of_job = update(Attempt).where(col(Attempt.job_id) == job.id)
    session.execute(of_job.values(resume=None, resume_reason=None))  # what they went on with is no more
    job.epoch = job.batch = job.batches = 0
    job.provenance = job.threads = None


def _requeue(session: Session, reasons: Sequence[tuple[Job, str]]) -> None:
    for job, _ in reasons:
        job.status, job.finished_at, job.error = Status.QUEUED, None, None
        job.forgiven = job.attempt
    _note(session, [_Change(job, Status.QUEUED, reason) for job, reason in reasons])


class _Change(NamedTuple):
    job: Job
    status: Status
    reason: str


def _note(session: Session, changes: Sequence[_Change]) -> None:
    """As `queue.note`, of jobs that are locked, a thousand in as few statements as one."""
    if not changes:
        return
    at, ids = now(session), [change.job.id for change in changes]
    newest = select(col(Transition.job_id), func.max(Transition.seq)).where(col(Transition.job_id).in_(ids))
    seqs = dict(session.execute(newest.group_by(col(Transition.job_id))).all())
    session.execute(
        insert(Transition),
        [
            {"job_id": job.id, "seq": seqs.get(job.id, 0) + 1, "status": status, "at": at, "reason": reason}
            for job, status, reason in changes
        ],
    )
    session.flush()
    with session.no_autoflush:  # what each adds is written at the end, together
        for job, status, _ in changes:
            if job.spec.get("webhooks"):
                deliveries.note(session, job.id, status)


def _with_epochs(spec: Spec, epochs: int) -> Spec:
    try:
        return Spec.model_validate(spec.model_dump() | {"epochs": epochs})
    except ValidationError as error:
        raise SpecRefused(f"The job would have {epochs} epochs, which are too many.", pointer="#/epochs") from error


def _valid(spec: dict[str, Any]) -> Spec:
    """Raises Conflict: it is a job's own spec that is at fault, not what the caller sent."""
    try:
        return Spec.model_validate(spec)
    except (ValidationError, SpecRefused) as error:
        if isinstance(error, SpecRefused):
            where, what = error.pointer, error.detail
        else:
            first = error.errors()[0]
            where, what = "#/" + "/".join(map(str, first["loc"])), f"{first['msg']}."
        raise Conflict(f"The spec would not be valid. {where}: {what}") from error
