"""The life of a sweep: each function here is one state change in one transaction, as in `queue.py`.

Its trials are ordinary jobs, whose lives are their own. Locks are taken in one order: the sweep, then its jobs.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy import Select, select
from sqlalchemy import delete as delete_rows
from sqlmodel import Session, col

from . import aliases, control, datasets, submitting, trials, versions
from .card import Card
from .db import Database, now
from .errors import Conflict, NotReady
from .ids import new_id
from .owners import EVERYBODY, Caller
from .searching import Rung, Score, ranking, rungs
from .spec import Halving, Search, Spec, SweepForm
from .standings import best, find
from .states import TERMINAL, DatasetStatus, Status
from .submitting import Origin, Quota
from .tables import Alias, Dataset, Epoch, Job, Sweep
from .trials import Trial

_NAME_CHARACTERS: Final = 93  # of a job's hundred: its number follows
_SEARCH: Final[TypeAdapter[Search]] = TypeAdapter(Search)


class Planned(NamedTuple):
    """What a sweep would be."""

    trials: list[Trial]
    rungs: list[Rung]
    card: Card | None = None  # of the dataset, when it is ready; then the trials name its version


def plan(db: Database, form: SweepForm, caller: Caller = EVERYBODY) -> Planned:
    """Changes nothing. Raises SpecRefused, though of a dataset that is not ready yet not for all reasons."""
    chosen, card = trials.of(form), None
    with suppress(NotReady):
        first, card = trials.inside(form, lambda: datasets.ready_for(db, chosen[0].spec, caller))
        trials.suit(form, chosen, card.task, card)
        pinned = {"dataset": first.dataset}
        chosen = [each._replace(spec=each.spec.model_copy(update=pinned)) for each in chosen]
    return Planned(chosen, rungs(form.search, form.spec.epochs) if isinstance(form.search, Halving) else [], card)


def create(db: Database, form: SweepForm, origin: Origin, quota: Quota | None = None) -> Sweep:
    """With all its jobs, or not at all. Raises SpecRefused, TooManyJobs and IdempotencyMismatch.

    With an Idempotency-Key that the caller has used for the same sweep before, it is the sweep of that time.
    """
    chosen = trials.of(form)
    with db.write() as session:
        known = submitting.made_before(session, Sweep, form, origin, lock=True)
        if known is not None:
            return known
        if quota is not None:
            submitting.require_room(session, origin.caller.owner, quota, len(chosen))
        dataset = _dataset(session, form, chosen, origin.caller)
        at, pinned = now(session), datasets.pinned(form.spec, dataset)
        sweep = Sweep(
            id=new_id(),
            owner=origin.caller.owner,
            name=form.name or form.spec.name,
            form=form.model_copy(update={"spec": pinned}).model_dump(mode="json"),
            created_at=at,
            **submitting.named(form, origin),
        )
        session.add(sweep)
        session.flush()
        ids = sorted(new_id() for _ in chosen)  # they sort as the trials do
        jobs = [
            submitting.new_job(
                job_id, _called(each, sweep), dataset, origin, created_at=at, sweep_id=sweep.id, trial=each.number
            )
            for job_id, each in zip(ids, chosen, strict=True)
        ]
        submitting.add(session, jobs)
        return sweep


def cancel(db: Database, sweep_id: str, caller: Caller = EVERYBODY, *, at_once: bool = False) -> bool:
    """Cancels what has not ended, and no further rung begins. Returns whether trials are still leaving.

    `at_once`: they are killed, and save nothing. One that is cancelled and over stays so, whatever became of its
    trials since. Raises NotFound, and Conflict when the sweep has finished.
    """
    with db.write() as session:
        sweep = find(session, sweep_id, caller, lock=True)
        if sweep.finished_at is not None:
            if sweep.is_cancelled:
                return False
            raise Conflict("The sweep has finished and cannot be cancelled any more; a trial of it can, by its job.")
        sweep.is_cancelled = True
        jobs = [job for job in _locked(session, sweep) if job.status not in TERMINAL]
        control.stop_all(session, jobs, at_once=at_once)
        is_leaving = any(job.status not in TERMINAL for job in jobs)
        if not is_leaving:
            sweep.finished_at = now(session)
        return is_leaving


def delete(db: Database, sweep_id: str, caller: Caller = EVERYBODY) -> list[str]:
    """All rows of a sweep and of its jobs. Returns the jobs' ids; the caller removes their folders.

    Raises NotFound, and Conflict when a trial has not ended or an alias points at one.
    """
    with db.write() as session:
        sweep = find(session, sweep_id, caller, lock=True)
        jobs = _locked(session, sweep)
        for job in jobs:
            if job.status not in TERMINAL:
                raise Conflict(f"Trial {job.trial} is {job.status}; cancel the sweep first.")
        ids = [job.id for job in jobs]
        pointing = select(Alias).where(col(Alias.job_id).in_(ids)).order_by(col(Alias.name)).limit(1)
        if (alias := session.execute(pointing).scalar_one_or_none()) is not None:
            raise Conflict(
                f"The alias {alias.name} points at the job {alias.job_id} of this sweep; point it elsewhere or delete "
                "it first."
            )
        aliases.forget_previous(session, ids)
        session.execute(delete_rows(Job).where(col(Job.sweep_id) == sweep.id))
        session.execute(delete_rows(Sweep).where(col(Sweep.id) == sweep.id))
        return ids


def settle(db: Database) -> list[str]:
    """Sweeps whose trials have all ended begin their next rung, or have finished. Returns the ids of those.

    Whoever does it, and however many at once, it is done once.
    """
    busy = select(col(Job.id)).where(col(Job.sweep_id) == col(Sweep.id), col(Job.status).not_in(TERMINAL)).exists()
    due = select(col(Sweep.id), col(Sweep.rung)).where(col(Sweep.finished_at).is_(None), ~busy)
    with db.read() as session:  # asked often: reading locks nobody out
        found = session.execute(due.order_by(col(Sweep.id))).all()
    return [sweep_id for sweep_id, rung in found if _settle(db, sweep_id, rung)]


def _settle(db: Database, sweep_id: str, rung: int) -> bool:
    fenced = select(Sweep).where(col(Sweep.id) == sweep_id, col(Sweep.rung) == rung, col(Sweep.finished_at).is_(None))
    with db.write() as session:
        sweep = session.execute(fenced.with_for_update()).scalar_one_or_none()
        if sweep is None:  # somebody else was faster
            return False
        jobs = _locked(session, sweep)
        if any(job.status not in TERMINAL for job in jobs):  # one was retried meanwhile
            return False
        if sweep.is_cancelled or not _promote(session, sweep, jobs):
            sweep.finished_at = now(session)
        return True


def _promote(session: Session, sweep: Sweep, jobs: Sequence[Job]) -> bool:
    """Has the best of this rung train on for the next; False when there is none, or nobody to train on."""
    search, epochs = _SEARCH.validate_python(sweep.form["search"]), sweep.form["spec"]["epochs"]
    left = rungs(search, epochs)[sweep.rung :] if isinstance(search, Halving) else []
    if len(left) < 2:
        return False
    this, following = left[0], left[1]
    metric = sweep.form["metric"]
    scores = session.execute(_scores(sweep, metric, this.epochs)).all()
    by_trial = {job.trial: job for job in jobs if job.status == Status.SUCCEEDED and job.spec["epochs"] >= this.epochs}
    done = control.trained(session, [job.id for job in by_trial.values()])
    promoted, specs = 0, []
    for trial in ranking((Score(*row) for row in scores if row[0] in by_trial), metric):
        job = by_trial[trial]
        more = following.epochs - job.spec["epochs"]  # its owner may have had it trained on
        with suppress(Conflict):  # it cannot be trained on
            if more > 0:
                specs.append((job, control.longer(job, more, done.get(job.id, 0))))
            promoted += 1
        if promoted == following.trials:
            break
    if not _train_on(session, specs):
        return False
    sweep.rung += bool(promoted)
    return bool(promoted)


def _train_on(session: Session, specs: Sequence[tuple[Job, dict[str, Any]]]) -> bool:
    """False when their dataset is gone, which is one for all."""
    with suppress(Conflict):
        for job, _ in specs[:1]:
            control.require_dataset(session, job)
        control.lengthen(session, specs)
        return True
    return False


def _dataset(session: Session, form: SweepForm, chosen: Sequence[Trial], caller: Caller) -> Dataset:
    """The version that all trials train on. Raises SpecRefused."""
    dataset = trials.inside(form, lambda: datasets.for_job(session, chosen[0].spec, caller))
    card = Card.model_validate(dataset.card) if dataset.status == DatasetStatus.READY else None
    trials.suit(form, chosen, versions.task(dataset), card)
    return dataset


def _called(trial: Trial, sweep: Sweep) -> Spec:
    name = f"{(sweep.name or sweep.id)[:_NAME_CHARACTERS]} #{trial.number}"
    return trial.spec.model_copy(update={"name": name})


def _locked(session: Session, sweep: Sweep) -> list[Job]:
    query = select(Job).where(col(Job.sweep_id) == sweep.id).order_by(col(Job.trial)).with_for_update()
    return list(session.execute(query).scalars())


def _scores(sweep: Sweep, metric: str, epochs: int) -> Select[int, float]:
    """Of each trial, the best of its first so many epochs."""
    return (
        select(col(Job.trial), best(metric))
        .join(Epoch, col(Epoch.job_id) == col(Job.id))
        .where(col(Job.sweep_id) == sweep.id, col(Epoch.epoch) <= epochs)
        .group_by(col(Job.trial))
    )
