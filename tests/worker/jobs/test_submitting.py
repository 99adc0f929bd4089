"""Submitting: once for each Idempotency-Key, and not beyond what may wait."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from worker.jobs import control, listing, submitting
from worker.jobs.db import Database
from worker.jobs.errors import IdempotencyMismatch, TooManyJobs
from worker.jobs.owners import EVERYBODY, Caller
from worker.jobs.spec import Spec
from worker.jobs.submitting import Origin, Quota

ANN, BOB = Caller("ann", sees_all=False), Caller("bob", sees_all=False)


def submit(db: Database, key: str | None = None, caller: Caller = EVERYBODY, **spec: Any) -> str:
    return submitting.enqueue(db, Spec.model_validate(spec), Origin(caller, key)).id


def test_the_same_request_twice_is_one_job(db: Database) -> None:
    first = submit(db, "key", epochs=3)
    assert submit(db, "key", epochs=3) == first
    assert [job.id for job in listing.jobs(db)[0]] == [first]


def test_without_a_key_every_request_is_a_job(db: Database) -> None:
    assert submit(db) != submit(db)


def test_the_same_key_for_another_spec_is_refused(db: Database) -> None:
    submit(db, "key", epochs=3)
    others: list[dict[str, Any]] = [{"epochs": 4}, {}, {"epochs": 3, "seed": 0}]
    for other in others:
        with pytest.raises(IdempotencyMismatch):
            submit(db, "key", **other)
    assert len(listing.jobs(db)[0]) == 1


def test_another_owners_key_is_another_key(db: Database) -> None:
    assert submit(db, "key", ANN) != submit(db, "key", BOB, epochs=2)


def test_a_key_is_known_as_long_as_its_job(db: Database) -> None:
    first = submit(db, "key")
    control.cancel(db, first)
    assert submit(db, "key") == first
    control.delete(db, first)
    assert submit(db, "key", epochs=9) != first


def test_fifty_equal_requests_at_once_are_one_job(db: Database) -> None:
    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(lambda _: submit(db, "key", ANN, epochs=3), range(50)))
    assert len(ids) == 1
    assert len(listing.jobs(db)[0]) == 1


def test_an_owner_may_have_so_many_jobs_waiting(db: Database) -> None:
    quota = Quota(jobs=10, jobs_of_owner=2)
    for _ in range(2):
        submitting.enqueue(db, Spec(), Origin(ANN), quota)
    with pytest.raises(TooManyJobs, match="2 jobs of yours"):
        submitting.enqueue(db, Spec(), Origin(ANN), quota)
    submitting.enqueue(db, Spec(), Origin(BOB), quota)
    control.cancel(db, listing.jobs(db, caller=ANN)[0][0].id)
    submitting.enqueue(db, Spec(), Origin(ANN), quota)


def test_all_together_may_have_so_many_jobs_waiting(db: Database) -> None:
    quota = Quota(jobs=2, jobs_of_owner=2)
    submitting.enqueue(db, Spec(), Origin(ANN), quota)
    submitting.enqueue(db, Spec(), Origin(BOB), quota)
    with pytest.raises(TooManyJobs, match="2 jobs wait"):
        submitting.enqueue(db, Spec(), Origin(Caller("eve", sees_all=False)), quota)


def test_what_is_replayed_needs_no_room(db: Database) -> None:
    quota = Quota(jobs=1, jobs_of_owner=1)
    first = submitting.enqueue(db, Spec(), Origin(ANN, "key"), quota)
    assert submitting.enqueue(db, Spec(), Origin(ANN, "key"), quota).id == first.id


def test_many_at_once_do_not_get_past_the_quota(db: Database) -> None:
    def one(_: int) -> bool:
        try:
            submitting.enqueue(db, Spec(), Origin(ANN), Quota(jobs=100, jobs_of_owner=5))
        except TooManyJobs:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(one, range(20))) == 5


def test_a_job_remembers_the_request_that_made_it(db: Database) -> None:
    job = submitting.enqueue(db, Spec(), Origin(ANN, request_id="5f1c0b7a9d3e2c48"))
    assert (job.owner, job.request_id) == ("ann", "5f1c0b7a9d3e2c48")
