"""Which of a job's checkpoints is the best, and which of them stay: what the spec's `checkpoints` says, as queries."""

from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlmodel import Session, col

from .spec import LOWER_IS_BETTER, Checkpoints, Metric
from .tables import Alias, Checkpoint, Epoch, Job, StepCheckpoint

WITH_METRICS = (col(Epoch.job_id) == col(Checkpoint.job_id)) & (col(Epoch.epoch) == col(Checkpoint.epoch))


def policy(session: Session, job_id: str) -> Checkpoints:
    """The spec's. A job of before there was a choice keeps all; nothing else of its spec has to be readable."""
    spec: dict[str, Any] | None = session.execute(select(col(Job.spec)).where(col(Job.id) == job_id)).scalar()
    return Checkpoints.model_validate((spec or {}).get("checkpoints", {}))


def best(job_id: str, best_by: Metric | None) -> Select[int]:
    """The epoch of the best checkpoint. A metric that is null is the worst; of equals, the earliest is the best."""
    return (
        select(col(Checkpoint.epoch))
        .join(Epoch, WITH_METRICS)
        .where(col(Checkpoint.job_id) == job_id)
        .order_by(_goodness(best_by).desc().nulls_last(), col(Checkpoint.epoch))
        .limit(1)
        .correlate(None)  # it stands alone, also inside a query for checkpoints
    )


def prune(session: Session, job_id: str, what: Checkpoints | None = None) -> list[str]:
    """Deletes the rows of checkpoints that do not stay, by the spec's policy or by `what`. Returns the paths of all
    files of those that do. What an alias points at, or may be rolled back to, stays. The caller has the job locked.
    """
    what = what or policy(session, job_id)
    if what.keep != "all":
        epoch = col(Checkpoint.epoch)
        stays = _pointed_at(session, job_id)
        stays.add(session.execute(select(func.max(epoch)).where(col(Checkpoint.job_id) == job_id)).scalar_one())
        if what.keep != "last":
            stays.add(session.execute(best(job_id, what.best_by)).scalar_one_or_none())
        goes = delete(Checkpoint).where(col(Checkpoint.job_id) == job_id, epoch.not_in(stays))
        if what.keep == "every":
            goes = goes.where(epoch % what.every != 0)
        session.execute(goes, execution_options={"synchronize_session": False})
    return files(session, job_id)


def files(session: Session, job_id: str) -> list[str]:
    """The paths, relative to the data folder, of all files of a job's checkpoints: weights and state."""
    whole = select(col(Checkpoint.path), col(Checkpoint.state_path)).where(col(Checkpoint.job_id) == job_id)
    inside = select(col(StepCheckpoint.path)).where(col(StepCheckpoint.job_id) == job_id)
    # An imported checkpoint has no state.
    return [path for query in (whole, inside) for row in session.execute(query) for path in row if path is not None]


def _pointed_at(session: Session, job_id: str) -> set[int | None]:
    """In one statement: between two, an alias may move from one to the other."""
    now = select(col(Alias.epoch)).where(col(Alias.job_id) == job_id)
    before = select(col(Alias.previous_epoch)).where(col(Alias.previous_job_id) == job_id)
    return set(session.execute(now.union(before)).scalars())


def _goodness(best_by: Metric | None) -> ColumnElement[float]:
    """More is better. Unset, it is accuracy where there are classes, and else the loss."""
    if best_by is None:
        return func.coalesce(col(Epoch.test_accuracy), -col(Epoch.test_loss))
    column: ColumnElement[float] = getattr(Epoch, best_by)
    return -column if best_by in LOWER_IS_BETTER else column
