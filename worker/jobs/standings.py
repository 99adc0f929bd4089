"""Looking at sweeps: how their trials do, and which is the best. Nothing is changed here."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Row, Select, and_, func, select
from sqlmodel import Session, col

from . import trials
from .db import Database
from .errors import NotFound
from .ids import is_id
from .owners import EVERYBODY, Caller, visible
from .searching import Choice, Score, ranking
from .spec import LOWER_IS_BETTER
from .states import OWNED, Status
from .tables import Epoch, Job, Sweep


class Standing(NamedTuple):
    """How a trial does."""

    trial: int
    job: str  # its id
    status: str
    parameters: Choice
    epoch: int  # the last one that is done
    epochs: int  # that it is to have
    value: float | None  # the best of the metric,
    last: float | None  # and the newest
    progress: float  # 0 to 1


@dataclass(frozen=True)
class Overview:
    row: Sweep
    counts: dict[str, int]  # of its trials by their status

    @property
    def status(self) -> str:
        if self.row.is_cancelled:
            return "cancelled"
        return "finished" if self.row.finished_at is not None else "running"


@dataclass(frozen=True)
class Whole(Overview):
    trials: list[Standing]
    best: Standing | None  # by the metric, whatever became of it; of equals, the one with the lower number


def get(db: Database, sweep_id: str, caller: Caller = EVERYBODY) -> Whole:
    """Raises NotFound, also when it is somebody else's."""
    with db.read() as session:
        sweep = find(session, sweep_id, caller)
        standings = [_standing(row, sweep) for row in session.execute(_trials(sweep))]
    places = ranking((Score(each.trial, each.value) for each in standings), sweep.form["metric"])
    counts: dict[str, int] = {}
    for each in standings:
        counts[each.status] = counts.get(each.status, 0) + 1
    best = next((each for each in standings if places and each.trial == places[0]), None)
    return Whole(sweep, counts, standings, best)


def listed(
    db: Database, *, after: str | None = None, limit: int = 20, caller: Caller = EVERYBODY
) -> tuple[list[Overview], bool]:
    """Up to `limit` sweeps, newest first, from behind the sweep `after`; and whether there are more."""
    query = select(Sweep).where(visible(Sweep.owner, caller)).order_by(col(Sweep.id).desc()).limit(limit + 1)
    if after is not None:
        query = query.where(col(Sweep.id) < after)
    counts: dict[str | None, dict[str, int]] = {}
    with db.read() as session:
        found = list(session.execute(query).scalars())
        counted = (
            select(col(Job.sweep_id), col(Job.status), func.count())
            .where(col(Job.sweep_id).in_([each.id for each in found[:limit]]))
            .group_by(col(Job.sweep_id), col(Job.status))
        )
        for sweep_id, status, count in session.execute(counted):
            counts.setdefault(sweep_id, {})[status] = count
    return [Overview(each, counts.get(each.id, {})) for each in found[:limit]], len(found) > limit


def find(session: Session, sweep_id: str, caller: Caller, *, lock: bool = False) -> Sweep:
    """Raises NotFound, also when it is somebody else's."""
    sweep = session.get(Sweep, sweep_id, with_for_update=lock or None) if is_id(sweep_id) else None
    if sweep is None or not caller.may_see(sweep.owner):
        raise NotFound("There is no sweep with this id.")
    return sweep


def best(metric: str) -> Any:
    return (func.min if metric in LOWER_IS_BETTER else func.max)(getattr(Epoch, metric))


def _trials(sweep: Sweep) -> Select[Any]:
    """All that is shown of them, in one statement."""
    metric = sweep.form["metric"]
    of_sweep = select(col(Job.id)).where(col(Job.sweep_id) == sweep.id)
    done = (
        select(col(Epoch.job_id), func.max(Epoch.epoch).label("epoch"), best(metric).label("value"))
        .where(col(Epoch.job_id).in_(of_sweep))
        .group_by(col(Epoch.job_id))
        .subquery()
    )
    names = ("trial", "id", "status", "spec", "batch", "batches")
    columns: list[Any] = [*(getattr(Job, name) for name in names), col(Job.epoch).label("at_work")]
    newest = and_(col(Epoch.job_id) == done.c.job_id, col(Epoch.epoch) == done.c.epoch)
    query: Select[Any] = (
        select(*columns, done.c.epoch, done.c.value, getattr(Epoch, metric).label("last"))
        .outerjoin(done, done.c.job_id == col(Job.id))
        .outerjoin(Epoch, newest)
        .where(col(Job.sweep_id) == sweep.id)
        .order_by(col(Job.trial))
    )
    return query


def _standing(row: Row[Any], sweep: Sweep) -> Standing:
    epoch, epochs = row.epoch or 0, row.spec["epochs"]
    inside = row.batch / row.batches if row.status in OWNED and row.at_work == epoch + 1 and row.batches else 0.0
    progress = 1.0 if row.status == Status.SUCCEEDED else min(1.0, (epoch + inside) / epochs)
    parameters = trials.shown(sweep.form["parameters"], row.spec)
    return Standing(row.trial, row.id, row.status, parameters, epoch, epochs, row.value, row.last, progress)
