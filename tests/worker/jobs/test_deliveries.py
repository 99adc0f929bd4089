"""What webhooks are told is written with what it tells of, and each try is one service's."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from tests.worker.jobs.making import EXPIRED, claim, everything, finish, record, running
from worker.jobs import control, deliveries
from worker.jobs.db import Database
from worker.jobs.deliveries import Due
from worker.jobs.states import DeliveryStatus, Outcome, Status, WebhookEvent
from worker.jobs.tables import Delivery, Job

URL = "https://hooks.example.com/T0/secret-path"
HOLD = 60.0


def hook(**more: Any) -> dict[str, Any]:
    return {"url": URL, **more}


def hooked(db: Database, *hooks: dict[str, Any], **spec: Any) -> Job:
    return running(db, webhooks=list(hooks or [hook()]), **spec)


def events(db: Database, job: Job) -> list[tuple[int, str]]:
    return [(each.hook, each.event) for each in deliveries.of_job(db, job.id)]


def take(db: Database, seconds: float = HOLD) -> Due:
    due = deliveries.claim(db, seconds)
    assert due is not None
    return due


def only(db: Database, job: Job) -> Delivery:
    (delivery,) = deliveries.of_job(db, job.id)
    return delivery


@pytest.mark.parametrize(
    ("outcome", "event"),
    [(Outcome.SUCCEEDED, WebhookEvent.SUCCEEDED), (Outcome.FAILED, WebhookEvent.FAILED)],
)
def test_a_job_that_ends_is_told_of(db: Database, outcome: Outcome, event: WebhookEvent) -> None:
    job = hooked(db, name="boots", labels={"team": "b"})
    assert events(db, job) == []
    status = finish(db, job, outcome)
    delivery = only(db, job)
    assert (delivery.event, delivery.status, delivery.tries, delivery.error) == (event, "pending", 0, None)
    assert delivery.next_at == delivery.created_at
    told = delivery.payload["job"]
    error = {"code": "killed", "message": "It ended as failed."} if outcome is Outcome.FAILED else None
    assert told == {"id": job.id, "name": "boots", "labels": {"team": "b"}, "status": status, "error": error}
    assert (delivery.payload["id"], delivery.payload["event"]) == (delivery.id, event)
    assert delivery.payload["metric"] is None
    assert delivery.payload["created_at"].endswith("Z")
    assert "secret-path" not in json.dumps(delivery.payload)


def test_a_cancelled_job_is_told_of_when_it_has_left(db: Database) -> None:
    job = hooked(db)
    control.cancel(db, job.id)
    assert events(db, job) == []
    finish(db, job, Outcome.RELEASED)
    assert events(db, job) == [(0, "job.cancelled")]


def test_a_job_that_never_began_is_told_of_too(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.RELEASED)
    control.cancel(db, job.id)
    assert only(db, job).payload["job"]["status"] == "cancelled"
    assert only(db, job).event == "job.cancelled"


def test_an_attempt_that_ends_is_not_told_of(db: Database) -> None:
    job = hooked(db)
    for outcome in (Outcome.KILLED, Outcome.RELEASED, Outcome.WORKER_LOST):
        assert finish(db, job, outcome) is Status.QUEUED
        job = claim(db)
    assert events(db, job) == []


def test_a_job_without_webhooks_writes_nothing(db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    assert everything(db)["deliveries"] == []
    assert deliveries.claim(db, HOLD) is None


def test_each_webhook_is_told_what_it_asked_for(db: Database) -> None:
    reaching = {"name": "test_accuracy", "above": 2.0}
    job = hooked(db, hook(events=["job.failed"]), hook(events=["job.succeeded"]), hook(events=[], metric=reaching))
    finish(db, job, Outcome.SUCCEEDED)
    assert events(db, job) == [(1, "job.succeeded")]


def test_a_job_that_ends_twice_is_told_of_twice(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.FAILED)
    control.retry(db, job.id)
    finish(db, claim(db), Outcome.SUCCEEDED)
    assert events(db, job) == [(0, "job.failed"), (0, "job.succeeded")]
    first, second = deliveries.of_job(db, job.id)
    assert (first.payload["job"]["status"], second.payload["job"]["status"]) == ("failed", "succeeded")
    assert second.payload["job"]["error"] is None


def test_an_imported_job_is_not_told_of(db: Database) -> None:
    """Its spec is what somebody else wrote into a file."""
    job = hooked(db, hook(metric={"name": "test_loss", "below": 100.0}))
    with db.write() as session:
        session.execute(update(Job).where(col(Job.id) == job.id).values(imported=True))
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    assert events(db, job) == []


def test_a_threshold_is_told_of_once(db: Database) -> None:
    job = hooked(db, hook(events=[], metric={"name": "test_accuracy", "above": 0.8}))
    for epoch, accuracy in enumerate((0.5, 0.8, 0.7, 0.9), start=1):
        record(db, job, epoch, test_accuracy=accuracy)
        assert len(events(db, job)) == (epoch >= 2)
    delivery = only(db, job)
    assert delivery.event == "job.metric"
    assert delivery.payload["metric"] == {
        "name": "test_accuracy",
        "above": 0.8,
        "below": None,
        "value": 0.8,
        "epoch": 2,
    }
    assert delivery.payload["job"]["status"] == "running"
    record(db, job, 2, test_accuracy=0.95)  # as an attempt does that goes on from an older checkpoint
    assert len(events(db, job)) == 1


def test_each_webhook_has_its_own_threshold(db: Database) -> None:
    metrics = [
        {"name": "test_loss", "below": 0.5},
        {"name": "train_loss", "above": 9.0},
        {"name": "test_loss", "below": 0.25},
    ]
    job = hooked(db, *(hook(metric=each) for each in metrics))
    record(db, job, 1, test_loss=0.5, train_loss=1.0)
    assert events(db, job) == [(0, "job.metric")]
    record(db, job, 2, test_loss=0.2, train_loss=9.5)
    assert events(db, job) == [(0, "job.metric"), (1, "job.metric"), (2, "job.metric")]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_what_is_no_number_reaches_no_threshold(db: Database, value: float | None) -> None:
    sides = ({"above": 0.0}, {"below": 0.0})
    job = hooked(db, *(hook(metric={"name": "test_loss", **side}) for side in sides))
    if value is None:  # no classification has this one
        job = hooked(db, hook(metric={"name": "test_mae", "above": 0.0}))
    record(db, job, 1, **({} if value is None else {"test_loss": value}))
    assert events(db, job) == []


def test_what_was_not_committed_is_not_told(db: Database) -> None:
    job = hooked(db)
    with db.write() as session:
        deliveries.note(session, job.id, Status.SUCCEEDED)
        session.rollback()
    assert events(db, job) == []


def test_a_claimed_delivery_is_nobody_elses_until_its_time_is_over(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    due = take(db)
    assert (due.delivery.job_id, due.delivery.tries, due.url) == (job.id, 1, URL)
    assert deliveries.claim(db, HOLD) is None
    finish(db, hooked(db), Outcome.SUCCEEDED)
    assert take(db, EXPIRED).delivery.job_id != job.id
    again = take(db)  # whoever had it is gone
    assert again.delivery.tries == 2
    assert deliveries.claim(db, HOLD) is None


def test_what_has_waited_longest_comes_first(db: Database) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(hooked(db))
        finish(db, jobs[-1], Outcome.SUCCEEDED)
    assert [take(db).delivery.job_id for _ in jobs] == [job.id for job in jobs]


def test_many_who_look_at_once_never_get_the_same(db: Database) -> None:
    job = hooked(db, *[hook() for _ in range(5)])
    for _ in range(8):
        finish(db, job, Outcome.FAILED)
        control.retry(db, job.id)
        job = claim(db)
    wanted = sorted(each.id for each in deliveries.of_job(db, job.id))

    def all_there_are(_: int) -> list[str]:
        taken = []
        while (due := deliveries.claim(db, HOLD)) is not None:
            taken.append(due.delivery.id)
        return taken

    with ThreadPoolExecutor(8) as pool:
        taken = [each for found in pool.map(all_there_are, range(8)) for each in found]
    # A look that finds every row locked by others finds none, so a few may be left; none is had twice.
    assert len(taken) == len(set(taken))
    assert sorted(taken + all_there_are(0)) == wanted
    assert len(wanted) == 40


def test_what_has_arrived_is_over(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    deliveries.settle(db, take(db, EXPIRED).delivery, delivered=True)
    delivery = only(db, job)
    assert (delivery.status, delivery.next_at, delivery.error) == (DeliveryStatus.DELIVERED, None, None)
    assert delivery.settled_at is not None
    assert deliveries.claim(db, HOLD) is None


def test_what_has_not_is_tried_again_later(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    deliveries.settle(db, take(db).delivery, delivered=False, error="It rained.", again_in=100.0)
    delivery = only(db, job)
    assert (delivery.status, delivery.error, delivery.settled_at) == (DeliveryStatus.PENDING, "It rained.", None)
    assert delivery.next_at is not None
    assert timedelta(seconds=90) < delivery.next_at - delivery.created_at < timedelta(seconds=300)
    assert deliveries.claim(db, HOLD) is None


def test_what_was_given_up_is_over(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    deliveries.settle(db, take(db, EXPIRED).delivery, delivered=False, error="x" * 5000)
    delivery = only(db, job)
    assert (delivery.status, delivery.next_at, delivery.error) == (DeliveryStatus.GIVEN_UP, None, "x" * 200)
    assert delivery.settled_at is not None
    assert deliveries.claim(db, HOLD) is None


def test_a_try_that_was_too_slow_counts_only_if_it_arrived(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    slow = take(db, EXPIRED).delivery
    quick = take(db).delivery
    deliveries.settle(db, slow, delivered=False, error="too late")
    assert (only(db, job).status, only(db, job).error) == (DeliveryStatus.PENDING, None)
    deliveries.settle(db, slow, delivered=True)
    deliveries.settle(db, quick, delivered=False, error="It rained.")
    assert (only(db, job).status, only(db, job).error) == (DeliveryStatus.DELIVERED, None)


def test_a_deleted_job_takes_its_deliveries_along(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    due = take(db)
    control.delete(db, job.id)
    deliveries.settle(db, due.delivery, delivered=False, error="gone", again_in=1.0)
    assert everything(db)["deliveries"] == []


def test_a_webhook_that_the_job_has_no_more_has_no_address(db: Database) -> None:
    job = hooked(db)
    finish(db, job, Outcome.SUCCEEDED)
    with db.write() as session:
        session.execute(update(Job).where(col(Job.id) == job.id).values(spec={"epochs": 1}))
    assert take(db).url is None
