"""The life of a dataset's version: each function here is one state change in one transaction, as in `queue.py`.

A built-in dataset is a row like an uploaded one, made when somebody first asks for it. A version that is ready never
changes; the same name again is a new version.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlmodel import Session, col

from . import leases, suiting, versions
from .built_in import BUILT_IN
from .card import Card
from .columns import HOUSE
from .db import Database, now, one_at_a_time
from .errors import Conflict, Forbidden, NotFound, NotReady, SpecRefused, WorkerLost
from .failures import Failure
from .form import Form
from .ids import new_id
from .owners import EVERYBODY, Caller
from .spec import NAME_PATTERN, Spec
from .states import SPENT, TERMINAL, DatasetStatus, Outcome
from .tables import Dataset, Job

_LIVE = (DatasetStatus.UPLOADED, DatasetStatus.PREPARING, DatasetStatus.READY)


def add_upload(db: Database, dataset_id: str, form: Form, owner: str = HOUSE) -> Dataset:
    """A new version, whose archive lies at `archive_path` by now."""
    with db.write() as session:
        one_at_a_time(session, f"dataset {owner} {form.name}")
        return _add(session, dataset_id, form.name, form, owner)


def prepare_built_in(db: Database, name: str) -> Dataset:
    """The newest version of a built-in dataset, or a new one that waits to be prepared. Raises NotFound."""
    if name not in BUILT_IN:
        raise NotFound(f"There is no built-in dataset of this name. There are: {', '.join(BUILT_IN)}.")
    with db.write() as session:
        return _built_in(session, name)


def for_job(session: Session, spec: Spec, caller: Caller = EVERYBODY) -> Dataset:
    """The version that a job with this spec trains on, which may have to be prepared first.

    Raises SpecRefused when there is none, when it is invalid, and when the spec does not suit it.
    """
    wanted = spec.dataset
    if wanted.version is None and wanted.name in BUILT_IN:
        return _suited(session, spec, _built_in(session, wanted.name))
    return _suited(session, spec, versions.find(session, wanted.name, wanted.version, caller, lock=True))


def ready_for(db: Database, spec: Spec, caller: Caller = EVERYBODY) -> tuple[Spec, Card]:
    """The spec with the version that its job would train on, and the card of that. Changes nothing.

    Raises NotReady while there is no card, and SpecRefused as `for_job` does.
    """
    wanted = spec.dataset
    with db.read() as session:
        found = versions.find(session, wanted.name, wanted.version, caller)
        if found is None and wanted.version is None and wanted.name in BUILT_IN:
            raise NotReady("The dataset has not been prepared yet; POST /datasets with its name does that.")
        dataset = _suited(session, spec, found)
    if dataset.status != DatasetStatus.READY:
        raise NotReady("The dataset is still being prepared; its shapes are not known yet.")
    return pinned(spec, dataset), Card.model_validate(dataset.card)


def pinned(spec: Spec, dataset: Dataset) -> Spec:
    """The spec with the version named."""
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"version": dataset.version})})


def has_waiting(db: Database) -> bool:
    query = select(col(Dataset.id)).where(col(Dataset.status) == DatasetStatus.UPLOADED).limit(1)
    with db.read() as session:
        return session.execute(query).first() is not None


def claim(db: Database, worker_id: str, lease_seconds: float) -> Dataset | None:
    """Takes the oldest version that waits to be prepared, or returns None."""
    oldest = select(col(Dataset.id)).where(col(Dataset.status) == DatasetStatus.UPLOADED).order_by(col(Dataset.id))
    with db.write() as session:
        return leases.claim(session, Dataset, oldest, worker_id, lease_seconds, status=DatasetStatus.PREPARING)


def renew(db: Database, worker_id: str, lease_seconds: float, ids: Collection[str]) -> None:
    with db.write() as session:
        leases.renew(session, Dataset, worker_id, lease_seconds, ids)


def owned(db: Database, worker_id: str) -> dict[str, int]:
    """What this worker still prepares: dataset id -> attempt."""
    query = select(col(Dataset.id), col(Dataset.attempt)).where(col(Dataset.worker_id) == worker_id)
    with db.read() as session:
        return {row.id: row.attempt for row in session.execute(query)}


def record_progress(db: Database, dataset_id: str, attempt: int, step: str, done: int, total: int) -> None:
    """Raises StaleAttempt."""
    with db.write() as session:
        leases.update_fenced(session, Dataset, dataset_id, attempt, step=step, done=done, total=total)


def set_ready(db: Database, dataset_id: str, attempt: int, card: Card) -> None:
    """Raises StaleAttempt."""
    _settle(db, dataset_id, attempt, card, status=DatasetStatus.READY, error=None)


def set_invalid(db: Database, dataset_id: str, attempt: int, failure: Failure, card: Card | None = None) -> None:
    """The card says what was found, when it got that far. Raises StaleAttempt."""
    error = failure.model_dump(mode="json")
    _settle(db, dataset_id, attempt, card, status=DatasetStatus.INVALID, error=error)


def finish(
    db: Database, dataset_id: str, attempt: int, outcome: Outcome, failure: Failure | None = None, *, max_attempts: int
) -> DatasetStatus:
    """Ends an attempt that did not say itself how it ended: the dataset waits for the next one, unless they are spent.

    Raises StaleAttempt.
    """
    with db.write() as session:
        return _end_attempt(session, dataset_id, attempt, outcome, failure, max_attempts)


def rescue(db: Database, *, max_attempts: int, dead_workers: Sequence[str] = (), expired: bool = True) -> list[str]:
    """Takes datasets back from workers that are known to be dead, or whose lease has `expired`. Returns their ids."""
    with db.write() as session:
        lost = leases.lost(session, Dataset, dead_workers, expired=expired)
        for dataset_id, attempt in lost:
            failure = Failure.of(WorkerLost())
            _end_attempt(session, dataset_id, attempt, Outcome.WORKER_LOST, failure, max_attempts)
        return [dataset_id for dataset_id, _ in lost]


def delete(db: Database, name: str, version: int | None = None, caller: Caller = EVERYBODY) -> list[Dataset]:
    """All versions, or the one; the caller removes their files. One that is being prepared is given up.

    Raises NotFound, and Conflict while a job that has not ended uses one.
    """
    with db.write() as session:
        newest = versions.find(session, name, version, caller) if re.fullmatch(NAME_PATTERN, name) else None
        if newest is None:
            raise NotFound("There is no dataset of this name and version.")
        if newest.form is None and not caller.sees_all:
            raise Forbidden("Built-in datasets are everybody's; who has a key with the scope `admin` may delete them.")
        found = list(session.execute(versions.of_name(newest, version).with_for_update()).scalars())
        ids = [each.id for each in found]
        using = select(col(Job.id)).where(col(Job.dataset_id).in_(ids), col(Job.status).not_in(TERMINAL)).limit(1)
        if (job_id := session.execute(using).scalar_one_or_none()) is not None:
            raise Conflict(f"The job {job_id} uses this dataset and has not ended; cancel it or wait.")
        for each in found:
            each.status, each.worker_id, each.lease_expires_at, each.error = DatasetStatus.DELETED, None, None, None
        return found


def _suited(session: Session, spec: Spec, found: Dataset | None) -> Dataset:
    """Raises SpecRefused, see `for_job`."""
    if found is None:
        pointer = "#/dataset/name" if spec.dataset.version is None else "#/dataset"
        raise SpecRefused("There is no such dataset; GET /datasets lists those that there are.", pointer=pointer)
    if found.status == DatasetStatus.INVALID:
        problem = (found.error or {}).get("message", "")
        ready = versions.of_name(found).where(col(Dataset.status) == DatasetStatus.READY).limit(1)
        other = session.execute(ready).scalar_one_or_none()
        hint = f" Version {other.version} is ready: name it to train on that." if other else ""
        raise SpecRefused(f"Version {found.version} of this dataset is invalid: {problem}{hint}", pointer="#/dataset")
    card = Card.model_validate(found.card) if found.status == DatasetStatus.READY else None
    suiting.check(spec, versions.task(found), card)
    return found


def _built_in(session: Session, name: str) -> Dataset:
    found = versions.find(session, name, lock=True)
    if found is not None and found.status in _LIVE:
        return found
    one_at_a_time(session, f"dataset {name}")
    found = versions.find(session, name)  # somebody else may just have asked for it too
    if found is None or found.status not in _LIVE:  # an invalid one is tried again: its files may be there by now
        found = _add(session, new_id(), name, None)
    return found


def _add(session: Session, dataset_id: str, name: str, form: Form | None, owner: str = HOUSE) -> Dataset:
    of_name = (col(Dataset.owner) == owner, col(Dataset.name) == name)
    last = select(func.coalesce(func.max(Dataset.version), 0)).where(*of_name)
    dataset = Dataset(
        id=dataset_id,
        owner=owner,
        name=name,
        version=session.execute(last).scalar_one() + 1,
        form=form.model_dump(mode="json") if form else None,
        created_at=now(session),
    )
    session.add(dataset)
    session.flush()
    return dataset


def _settle(db: Database, dataset_id: str, attempt: int, card: Card | None, **values: Any) -> None:
    report = card.model_dump(mode="json") if card else {}
    findings = report.pop("findings", None)
    with db.write() as session:
        at = now(session)
        leases.update_fenced(
            session,
            Dataset,
            dataset_id,
            attempt,
            worker_id=None,
            lease_expires_at=None,
            step=None,
            finished_at=at,
            card=report or None,
            findings=findings,
            **values,
        )


def _end_attempt(
    session: Session, dataset_id: str, attempt: int, outcome: Outcome, failure: Failure | None, max_attempts: int
) -> DatasetStatus:
    dataset = session.get(Dataset, dataset_id, with_for_update=True)
    spent = outcome in SPENT
    hopeless = dataset is not None and spent and dataset.lost + 1 >= max_attempts
    status = DatasetStatus.INVALID if hopeless else DatasetStatus.UPLOADED
    leases.update_fenced(
        session,
        Dataset,
        dataset_id,
        attempt,
        status=status,
        lost=Dataset.lost + int(spent),
        worker_id=None,
        lease_expires_at=None,
        step=None,
        done=0,
        total=0,
        finished_at=now(session) if hopeless else None,
        error=failure.model_dump(mode="json") if hopeless and failure else None,
    )
    return status
