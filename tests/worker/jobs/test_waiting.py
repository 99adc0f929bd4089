"""Turns: owners get as much as each other, an owner's jobs go by priority and age, and a job is told its place."""

import random

import pytest

from worker.jobs import listing, queue, submitting
from worker.jobs.db import Database
from worker.jobs.listing import Filter
from worker.jobs.owners import Caller
from worker.jobs.spec import Spec
from worker.jobs.states import Outcome, Status
from worker.jobs.submitting import Origin
from worker.jobs.tables import Job


def submit(db: Database, owner: str, priority: int = 0) -> Job:
    return submitting.enqueue(db, Spec(priority=priority), Origin(Caller(owner, sees_all=False)))


def claim(db: Database) -> Job:
    job = queue.claim(db, "worker-1", 60, cores=64, slots=64)
    assert job is not None
    return job


def order(db: Database) -> list[str]:
    """Whose jobs are taken, in turn; none ends meanwhile."""
    taken = []
    while (job := queue.claim(db, "worker-1", 60, cores=64, slots=64)) is not None:
        taken.append(job.owner)
    return taken


def test_who_submits_one_job_does_not_wait_for_a_hundred_of_somebody_else(db: Database) -> None:
    for _ in range(20):
        submit(db, "many")
    submit(db, "one")
    assert order(db)[:2] == ["many", "one"]


def test_owners_take_turns(db: Database) -> None:
    for owner in ("a", "a", "a", "b", "b", "b", "c"):
        submit(db, owner)
    assert order(db) == ["a", "b", "c", "a", "b", "a", "b"]


def test_owners_take_turns_also_where_one_job_is_trained_at_a_time(db: Database) -> None:
    for owner in ("a", "a", "a", "b", "b"):
        submit(db, owner)
    taken = []
    for _ in range(5):
        job = claim(db)
        taken.append(job.owner)
        queue.finish(db, job.id, job.attempt, Outcome.SUCCEEDED, max_attempts=1)
    assert taken == ["a", "b", "a", "b", "a"]


def test_an_owner_of_running_jobs_waits_for_those_who_have_none(db: Database) -> None:
    for _ in range(3):
        submit(db, "a")
    assert [claim(db).owner for _ in range(2)] == ["a", "a"]
    for _ in range(2):
        submit(db, "b")
    assert order(db) == ["b", "b", "a"]


def test_a_priority_is_among_the_owners_jobs_only(db: Database) -> None:
    low, high, plain = submit(db, "a", -1), submit(db, "a", 5), submit(db, "a")
    other = submit(db, "b")
    assert [claim(db).id for _ in range(4)] == [high.id, other.id, plain.id, low.id]


def test_of_equal_priorities_the_oldest_is_first(db: Database) -> None:
    ids = [submit(db, "a", 3).id for _ in range(5)]
    assert [claim(db).id for _ in range(5)] == ids


@pytest.mark.parametrize("seed", range(8))
def test_every_job_is_told_the_place_that_it_turns_out_to_have(db: Database, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(chance.randrange(6)):
        submit(db, chance.choice("abc"))
    for _ in range(chance.randrange(4)):
        queue.claim(db, "worker-1", 60, cores=64, slots=64)
    for _ in range(12):
        submit(db, chance.choice("abcd"), chance.choice((-1, 0, 0, 7)))
    waiting = _queued(db)
    told = {job.id: queue.ahead(db, job) for job in waiting}
    taken = [claim(db).id for _ in waiting]
    assert {job_id: place for place, job_id in enumerate(taken)} == told


def _queued(db: Database) -> list[Job]:
    return listing.jobs(db, Filter(Status.QUEUED), limit=100)[0]
