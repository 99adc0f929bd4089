"""What webhooks are told: written together with what it tells of, and then tried until it has arrived.

Two services never try the same delivery at the same time. Its receiver may all the same get it twice (the one that
tried it died before it could say so), and tells that by the delivery's id.
"""

import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Row, select, update
from sqlmodel import Session, col

from .db import Database, now
from .ids import new_id
from .states import TERMINAL, DeliveryStatus, Status, WebhookEvent
from .tables import Delivery, Job

if TYPE_CHECKING:
    from .records import EpochResult

_EVENTS: Final = {
    Status.SUCCEEDED: WebhookEvent.SUCCEEDED,
    Status.FAILED: WebhookEvent.FAILED,
    Status.CANCELLED: WebhookEvent.CANCELLED,
}
_ERROR_CHARACTERS: Final = 200


class Due(NamedTuple):
    delivery: Delivery
    url: str | None  # None when the job has no such webhook any more


def note(session: Session, job_id: str, status: Status) -> None:
    """Writes what the job's webhooks are to be told of its having ended, in the transaction that ends it.

    An imported job ended elsewhere, and its spec is of somebody else's making.
    """
    if status not in TERMINAL:
        return
    job = _told_of(session, job_id)
    for place, hook in _hooks(job):
        if _EVENTS[status] in hook.get("events", ()):
            _add(session, job, place, _EVENTS[status], status)


def note_epoch(session: Session, job_id: str, result: "EpochResult") -> None:
    """Writes what the job's webhooks are to be told of an epoch: that a metric has reached a threshold, once."""
    job = _told_of(session, job_id)
    for place, hook in _hooks(job):
        threshold: dict[str, Any] = hook.get("metric") or {}
        value = getattr(result, threshold["name"]) if threshold else None
        if value is None or not _is_reached(value, threshold):
            continue
        before = select(col(Delivery.id)).where(
            col(Delivery.job_id) == job_id, col(Delivery.hook) == place, col(Delivery.event) == WebhookEvent.METRIC
        )
        if session.execute(before.limit(1)).first() is None:
            reached = {**threshold, "value": value, "epoch": result.epoch}
            _add(session, job, place, WebhookEvent.METRIC, job.status, reached)


def claim(db: Database, seconds: float) -> Due | None:
    """The delivery that has been due for longest, as its next try; nobody else gets it for so long."""
    due = select(col(Delivery.id)).where(col(Delivery.status) == DeliveryStatus.PENDING)
    with db.read() as session:  # asked each second: reading locks nobody out
        if session.execute(due.where(col(Delivery.next_at) <= now(session)).limit(1)).first() is None:
            return None
    with db.write() as session:
        at = now(session)
        first = due.where(col(Delivery.next_at) <= at).order_by(col(Delivery.next_at)).limit(1)
        statement = (
            update(Delivery)
            .where(col(Delivery.id) == first.with_for_update(skip_locked=True).scalar_subquery())
            .values(tries=Delivery.tries + 1, next_at=at + timedelta(seconds=seconds))
            .returning(Delivery)
        )
        delivery: Delivery | None = session.execute(statement).scalar_one_or_none()
        if delivery is None:
            return None
        spec = session.execute(select(col(Job.spec)).where(col(Job.id) == delivery.job_id)).scalar_one()
        return Due(delivery, url(spec, delivery.hook))


def settle(
    db: Database, delivery: Delivery, *, delivered: bool, error: str | None = None, again_in: float | None = None
) -> None:
    """Says how a try ended: it has arrived, or is tried again in so many seconds, or never.

    A try that took so long that the delivery has been tried once more meanwhile only counts when it has arrived.
    """
    with db.write() as session:
        at = now(session)
        values: dict[str, Any] = {"error": error[:_ERROR_CHARACTERS] if error else None}
        if not delivered and again_in is not None:
            values["next_at"] = at + timedelta(seconds=again_in)
        else:
            status = DeliveryStatus.DELIVERED if delivered else DeliveryStatus.GIVEN_UP
            values |= {"status": status, "next_at": None, "settled_at": at}
        ours = update(Delivery).where(col(Delivery.id) == delivery.id, col(Delivery.status) == DeliveryStatus.PENDING)
        if not delivered:
            ours = ours.where(col(Delivery.tries) == delivery.tries)
        session.execute(ours.values(**values))


def of_job(db: Database, job_id: str) -> list[Delivery]:
    """Oldest first."""
    with db.read() as session:
        query = select(Delivery).where(col(Delivery.job_id) == job_id).order_by(col(Delivery.id))
        return list(session.execute(query).scalars())


def url(spec: dict[str, Any], hook: int) -> str | None:
    """Of the webhook at this place of the spec; None when there is none."""
    hooks = spec.get("webhooks") or []
    return str(hooks[hook]["url"]) if hook < len(hooks) else None


def _told_of(session: Session, job_id: str) -> Row[Any]:
    columns = (Job.id, Job.name, Job.labels, Job.spec, Job.status, Job.error, Job.imported)
    return session.execute(select(*map(col, columns)).where(col(Job.id) == job_id)).one()


def _hooks(job: Row[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read as they are: a spec of another epochd must not keep a job from ending."""
    return enumerate(() if job.imported else job.spec.get("webhooks") or ())


def _is_reached(value: float, threshold: dict[str, Any]) -> bool:
    if not math.isfinite(value):
        return False
    above, below = threshold.get("above"), threshold.get("below")
    return (above is not None and value >= above) or (below is not None and value <= below)


def _add(
    session: Session, job: Row[Any], hook: int, event: WebhookEvent, status: str, metric: dict[str, Any] | None = None
) -> None:
    delivery_id, at = new_id(), now(session)
    error = {name: job.error.get(name) for name in ("code", "message")} if job.error else None
    told = {"id": job.id, "name": job.name, "labels": job.labels, "status": str(status), "error": error}
    payload = {"id": delivery_id, "event": str(event), "created_at": _rfc_3339(at), "job": told, "metric": metric}
    session.add(
        Delivery(
            id=delivery_id,
            job_id=job.id,
            hook=hook,
            event=event,
            payload=payload,
            created_at=at,
            next_at=at,
        )
    )


def _rfc_3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")
