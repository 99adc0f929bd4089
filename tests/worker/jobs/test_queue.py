"""The life of a job: who gets it, how attempts end, and what a late or lost worker can still do (nothing)."""

import itertools
import re
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.worker.jobs.making import (
    EXPIRED,
    LEASE_SECONDS,
    claim,
    empty,
    everything,
    finish,
    job_with_status,
    progress,
    running,
)
from worker.jobs import control, listing, queue, records, submitting, versions, workers
from worker.jobs.db import Database
from worker.jobs.errors import NotFound, StaleAttempt
from worker.jobs.failures import Failure
from worker.jobs.ids import new_id
from worker.jobs.listing import Filter
from worker.jobs.spec import Dataset, Spec
from worker.jobs.states import OWNED, SPENT, TERMINAL, Outcome, Phase, Status, Wish
from worker.jobs.tables import Job, Worker

# What an attempt's end makes of its job, by the status the job had; max_attempts is 3 and this is its first.
NEXT_STATUS = {
    (Status.RUNNING, Outcome.SUCCEEDED): Status.SUCCEEDED,
    (Status.RUNNING, Outcome.FAILED): Status.FAILED,
    (Status.RUNNING, Outcome.RELEASED): Status.QUEUED,
    (Status.RUNNING, Outcome.KILLED): Status.QUEUED,
    (Status.RUNNING, Outcome.CRASHED): Status.QUEUED,
    (Status.RUNNING, Outcome.STALLED): Status.QUEUED,
    (Status.RUNNING, Outcome.WORKER_LOST): Status.QUEUED,
    (Status.PAUSING, Outcome.SUCCEEDED): Status.SUCCEEDED,
    (Status.PAUSING, Outcome.FAILED): Status.FAILED,
    (Status.PAUSING, Outcome.RELEASED): Status.PAUSED,
    (Status.PAUSING, Outcome.KILLED): Status.PAUSED,
    (Status.PAUSING, Outcome.CRASHED): Status.PAUSED,
    (Status.PAUSING, Outcome.STALLED): Status.PAUSED,
    (Status.PAUSING, Outcome.WORKER_LOST): Status.PAUSED,
    (Status.CANCELLING, Outcome.SUCCEEDED): Status.SUCCEEDED,
    (Status.CANCELLING, Outcome.FAILED): Status.FAILED,
    (Status.CANCELLING, Outcome.RELEASED): Status.CANCELLED,
    (Status.CANCELLING, Outcome.KILLED): Status.CANCELLED,
    (Status.CANCELLING, Outcome.CRASHED): Status.CANCELLED,
    (Status.CANCELLING, Outcome.STALLED): Status.CANCELLED,
    (Status.CANCELLING, Outcome.WORKER_LOST): Status.CANCELLED,
}
TOLD = set(Outcome) - {Outcome.CANCELLED, Outcome.PAUSED}  # how a worker may say that an attempt has ended


def _statuses(db: Database, job_id: str) -> list[str]:
    return [each.status for each in records.transitions(db, job_id)]


def _outcomes(db: Database, job_id: str) -> list[str | None]:
    return [each.outcome for each in records.attempts(db, job_id)]


def _queue_many(db: Database, count: int) -> list[str]:
    """Queues jobs in one transaction."""
    (dataset_id,) = [dataset.id for dataset in versions.newest(db)]
    jobs = [
        Job(id=new_id(), labels={}, spec=Spec().model_dump(), dataset_id=dataset_id, created_at=datetime.now(UTC))
        for _ in range(count)
    ]
    with db.write() as session:
        session.add_all(jobs)
    return [job.id for job in jobs]


def _in_threads(count: int, work: Callable[[int], None]) -> None:
    """Runs `work(0)` to `work(count - 1)` at the same time; raises what any of them raised."""
    start = threading.Barrier(count)

    def wait_and_work(number: int) -> None:
        start.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(wait_and_work, range(count)))


def test_ids_sort_by_creation() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch("[0-9a-f]{24}", each) for each in ids)


def test_a_queued_job_keeps_its_spec_whole(db: Database) -> None:
    spec = Spec(name="shoes ☃", labels={"team": "a"}, seed=2**63 - 1, epochs=7)
    before = datetime.now(UTC)
    job = submitting.enqueue(db, spec)
    found = queue.get(db, job.id)
    assert Spec.model_validate(found.spec) == spec.model_copy(update={"dataset": Dataset(version=1)})
    assert (found.name, found.labels) == ("shoes ☃", {"team": "a"})
    assert (found.status, found.attempt, found.last_seq) == (Status.QUEUED, 0, 0)
    assert (found.started_at, found.finished_at, found.error) == (None, None, None)
    assert abs(found.created_at - before) < timedelta(seconds=5)
    assert found.created_at.utcoffset() == timedelta(0)
    assert found == job


def test_jobs_are_claimed_oldest_first(db: Database) -> None:
    ids = [submitting.enqueue(db, Spec()).id for _ in range(4)]
    assert [claim(db).id for _ in ids] == ids


def test_a_job_that_was_given_back_keeps_its_place(db: Database) -> None:
    for _ in range(3):
        submitting.enqueue(db, Spec())
    claimed = [claim(db) for _ in range(3)]
    for job in reversed(claimed):
        finish(db, job, Outcome.RELEASED)
    assert [claim(db).id for _ in claimed] == [job.id for job in claimed]


def test_a_claimed_job_is_not_claimed_twice(db: Database) -> None:
    running(db, "worker-1")
    assert queue.claim(db, "worker-2", LEASE_SECONDS) is None
    assert not queue.has_waiting(db)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.QUEUED])
def test_only_queued_jobs_are_claimed(db: Database, status: Status) -> None:
    job_with_status(db, status)
    before = everything(db)
    assert queue.claim(db, "worker-2", LEASE_SECONDS) is None
    assert everything(db) == before


def _threads(db: Database, **left: Any) -> int | None:
    """Of the job that a worker with this left takes; None when it takes none."""
    is_to_take = queue.has_waiting(db, **{name: value for name, value in left.items() if name != "slots"})
    job = queue.claim(db, "worker-1", LEASE_SECONDS, **left)
    assert is_to_take is (job is not None)
    return None if job is None else queue.get(db, job.id).threads


@pytest.mark.parametrize(
    ("waiting", "cores", "slots", "threads"),
    [
        (1, 2, 2, 2),
        (2, 2, 2, 1),
        (3, 2, 2, 1),
        (1, 1, 1, 1),
        (5, 1, 1, 1),
        (1, 16, 4, 16),
        (2, 16, 4, 8),
        (3, 16, 4, 5),
        (4, 16, 4, 4),
        (9, 16, 4, 4),
        (9, 16, 1, 16),
        (9, 2, 64, 1),
        (1, 0, 1, 1),
    ],
)
def test_jobs_that_wait_share_the_cores(db: Database, waiting: int, cores: int, slots: int, threads: int) -> None:
    _queue_many(db, waiting)
    assert _threads(db, cores=cores, slots=slots) == threads


def test_all_that_wait_get_cores_and_the_rest_waits_for_them(db: Database) -> None:
    _queue_many(db, 3)
    assert _threads(db, cores=2, slots=2) == 1
    assert _threads(db, cores=1, slots=1, is_idle=False) == 1
    assert _threads(db, cores=0, slots=1, is_idle=False) is None


def test_a_job_whose_dataset_is_not_ready_takes_no_share(db: Database) -> None:
    submitting.enqueue(db, Spec())
    submitting.enqueue(db, Spec.model_validate({"dataset": {"name": "mnist"}}))
    assert _threads(db, cores=2, slots=2) == 2


def test_threads_are_decided_once(db: Database) -> None:
    submitting.enqueue(db, Spec())
    assert queue.get(db, listing.jobs(db)[0][0].id).threads is None
    job = queue.claim(db, "worker-1", LEASE_SECONDS, cores=4, slots=4)
    assert job is not None
    assert job.threads == 4
    for outcome in (Outcome.RELEASED, Outcome.KILLED):
        finish(db, job, outcome)
        assert _threads(db, cores=16, slots=4) == 4
        job = queue.get(db, job.id)


@pytest.mark.parametrize(("threads", "given"), [(1, 1), (3, 3), (64, 4)])
def test_threads_that_were_asked_for_are_given_as_far_as_there_are_cores(
    db: Database, threads: int, given: int
) -> None:
    submitting.enqueue(db, Spec(threads=threads))
    assert _threads(db, cores=4, slots=4) == given


def test_a_job_keeps_its_threads_where_there_are_fewer_cores(db: Database) -> None:
    job = submitting.enqueue(db, Spec())
    assert _threads(db, cores=4, slots=4) == 4
    queue.finish(db, job.id, 1, Outcome.RELEASED, max_attempts=3)
    assert _threads(db, cores=2, slots=2) == 4


def test_a_job_waits_for_its_cores_and_no_younger_one_overtakes_it(db: Database) -> None:
    big, small = submitting.enqueue(db, Spec(threads=3)), submitting.enqueue(db, Spec(threads=1))
    before = everything(db)
    for cores in (0, 1, 2):
        assert _threads(db, cores=cores, slots=1, is_idle=False) is None
    assert everything(db) == before
    assert _threads(db, cores=3, slots=1, is_idle=False) == 3
    assert queue.get(db, big.id).status == Status.RUNNING
    assert _threads(db, cores=1, slots=1, is_idle=False) == 1
    assert queue.get(db, small.id).status == Status.RUNNING


def test_a_pinned_job_waits_like_one_that_asked(db: Database) -> None:
    submitting.enqueue(db, Spec())
    job = queue.claim(db, "worker-1", LEASE_SECONDS, cores=4, slots=4)
    assert job is not None
    finish(db, job, Outcome.RELEASED)
    assert _threads(db, cores=3, slots=3, is_idle=False) is None
    assert _threads(db, cores=2, slots=2, is_idle=True) == 4  # another machine: better slow than never


def test_a_job_of_another_time_gets_its_threads_too(db: Database) -> None:
    """Its stored spec has none of the fields that came later."""
    job = submitting.enqueue(db, Spec())
    with db.write() as session:
        session.get_one(Job, job.id).spec = {"epochs": 5}
    assert _threads(db, cores=2, slots=2) == 2


def test_a_claim_says_who_owns_the_job_and_until_when(db: Database) -> None:
    submitting.enqueue(db, Spec())
    assert queue.has_waiting(db)
    before = datetime.now(UTC)
    job = claim(db, "worker-1", 60)
    assert queue.get(db, job.id) == job
    assert (job.status, job.attempt, job.worker_id) == (Status.RUNNING, 1, "worker-1")
    assert job.lease_expires_at is not None
    assert abs(job.lease_expires_at - before - timedelta(seconds=60)) < timedelta(seconds=5)
    (attempt,) = records.attempts(db, job.id)
    assert (attempt.number, attempt.worker_id, attempt.started_at) == (1, "worker-1", job.started_at)
    assert (attempt.ended_at, attempt.outcome, attempt.error) == (None, None, None)
    assert queue.owned(db, "worker-1") == {job.id: (1, Wish.GO_ON)}
    assert queue.owned(db, "worker-2") == {}


def test_a_second_claim_is_the_next_attempt_and_keeps_the_first_start(db: Database) -> None:
    first = running(db)
    finish(db, first, Outcome.RELEASED)
    second = claim(db, "worker-2")
    assert (second.id, second.attempt, second.started_at) == (first.id, 2, first.started_at)
    assert [each.worker_id for each in records.attempts(db, first.id)] == ["worker-1", "worker-2"]
    assert _outcomes(db, first.id) == [Outcome.RELEASED, None]


def test_eight_workers_get_every_attempt_exactly_once(db: Database) -> None:
    ids = _queue_many(db, 200)
    given_back = set(ids[::10])
    got: list[tuple[str, int]] = []

    def work(number: int) -> None:
        while (job := queue.claim(db, f"worker-{number}", LEASE_SECONDS)) is not None:
            got.append((job.id, job.attempt))
            assert job.threads == 1
            if job.id in given_back and job.attempt == 1:
                finish(db, job, Outcome.RELEASED)

    _in_threads(8, work)
    assert Counter(got) == Counter([(each, 1) for each in ids] + [(each, 2) for each in given_back])


def test_workers_that_claim_at_once_all_get_a_job_while_there_are_enough(db: Database) -> None:
    got: list[str] = []

    def work(number: int) -> None:
        got.append(claim(db, f"worker-{number}").id)

    ids: list[str] = []
    for _ in range(5):
        ids += _queue_many(db, 6)
        _in_threads(6, work)
        assert sorted(got) == ids


def test_the_table_of_next_statuses_is_whole() -> None:
    assert set(NEXT_STATUS) == set(itertools.product(OWNED, TOLD))


@pytest.mark.parametrize(("status", "outcome"), NEXT_STATUS)
def test_how_an_attempt_ends_decides_the_status_of_its_job(db: Database, status: Status, outcome: Outcome) -> None:
    job = running(db)
    records.record_progress(db, job.id, 1, progress(4))
    if status is Status.CANCELLING:
        control.cancel(db, job.id)
    if status is Status.PAUSING:
        control.pause(db, job.id)
    expected = NEXT_STATUS[status, outcome]

    assert finish(db, job, outcome) is expected

    ended = queue.get(db, job.id)
    assert ended.status == expected
    assert (ended.finished_at is not None) == (expected in TERMINAL)
    assert (ended.worker_id, ended.lease_expires_at, ended.phase, ended.eta_seconds) == (None, None, None, None)
    assert (ended.epoch, ended.batch, ended.stop_now) == (4, 3, False)
    assert (ended.error is not None) == (expected is Status.FAILED)
    (attempt,) = records.attempts(db, job.id)
    asked_for = {Status.CANCELLING: Outcome.CANCELLED, Status.PAUSING: Outcome.PAUSED}
    assert attempt.outcome == (asked_for.get(status, outcome) if outcome is Outcome.RELEASED else outcome)
    assert attempt.ended_at is not None
    assert attempt.ended_at >= attempt.started_at
    assert _statuses(db, job.id)[-1] == expected


def test_a_failed_job_and_its_attempt_say_why(db: Database) -> None:
    job = running(db)
    failure = Failure(code="dataset_missing", message="The dataset's files were not found.", phase=Phase.PREPARING)
    queue.finish(db, job.id, 1, Outcome.FAILED, failure, max_attempts=3)
    (attempt,) = records.attempts(db, job.id)
    assert Failure.model_validate(queue.get(db, job.id).error) == failure
    assert Failure.model_validate(attempt.error) == failure
    assert records.transitions(db, job.id)[-1].reason == "attempt 1: The dataset's files were not found."


def test_a_long_message_is_cut_in_the_history_only(db: Database) -> None:
    job = running(db)
    queue.finish(db, job.id, 1, Outcome.FAILED, Failure(code="internal", message="é" * 5000), max_attempts=3)
    error, reason = queue.get(db, job.id).error, records.transitions(db, job.id)[-1].reason
    assert error is not None
    assert error["message"] == "é" * 5000
    assert reason == ("attempt 1: " + "é" * 200)[:200]


@pytest.mark.parametrize("outcome", SPENT)
@pytest.mark.parametrize("max_attempts", [1, 3])
def test_a_job_whose_attempts_are_spent_has_failed(db: Database, outcome: Outcome, max_attempts: int) -> None:
    submitting.enqueue(db, Spec())
    statuses = [finish(db, claim(db), outcome, max_attempts=max_attempts) for _ in range(max_attempts)]
    assert statuses == [Status.QUEUED] * (max_attempts - 1) + [Status.FAILED]
    assert queue.claim(db, "worker-1", LEASE_SECONDS) is None


def test_different_ways_to_die_count_together(db: Database) -> None:
    submitting.enqueue(db, Spec())
    statuses = [finish(db, claim(db), outcome, max_attempts=len(SPENT)) for outcome in SPENT]
    assert statuses == [Status.QUEUED] * (len(SPENT) - 1) + [Status.FAILED]


def test_an_attempt_that_was_given_back_costs_nothing(db: Database) -> None:
    submitting.enqueue(db, Spec())
    for _ in range(5):
        assert finish(db, claim(db), Outcome.RELEASED, max_attempts=1) is Status.QUEUED
    assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.QUEUED
    assert finish(db, claim(db), Outcome.RELEASED, max_attempts=2) is Status.QUEUED
    assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.FAILED


def test_an_attempt_that_was_given_back_never_fails_its_job(db: Database) -> None:
    submitting.enqueue(db, Spec())
    for _ in range(2):
        finish(db, claim(db), Outcome.KILLED, max_attempts=3)
    # Between two starts of the worker EPOCHD_MAX_ATTEMPTS was lowered.
    assert finish(db, claim(db), Outcome.RELEASED, max_attempts=2) is Status.QUEUED


def test_an_attempt_ends_once(db: Database) -> None:
    job = running(db)
    finish(db, job, Outcome.SUCCEEDED)
    before = everything(db)
    for outcome in TOLD:
        with pytest.raises(StaleAttempt):
            finish(db, job, outcome)
    assert everything(db) == before


def test_two_that_end_the_same_attempt_at_once_are_told_apart(db: Database) -> None:
    job = running(db)
    ended: list[Status | None] = []

    def work(number: int) -> None:
        try:
            ended.append(finish(db, job, (Outcome.SUCCEEDED, Outcome.KILLED)[number % 2]))
        except StaleAttempt:
            ended.append(None)

    _in_threads(4, work)
    (status,) = [each for each in ended if each is not None]
    assert queue.get(db, job.id).status == status
    assert len(_statuses(db, job.id)) == 3


def test_a_job_is_rescued_when_its_lease_has_run_out(db: Database) -> None:
    job = running(db, lease_seconds=EXPIRED)
    assert queue.rescue(db, max_attempts=3) == [job.id]
    rescued = queue.get(db, job.id)
    assert (rescued.status, rescued.worker_id, rescued.lease_expires_at) == (Status.QUEUED, None, None)
    (attempt,) = records.attempts(db, job.id)
    assert attempt.outcome == Outcome.WORKER_LOST
    assert attempt.error is not None
    assert attempt.error["code"] == "worker_lost"
    assert queue.rescue(db, max_attempts=3) == []
    assert claim(db, "worker-2").attempt == 2


def test_a_job_of_a_dead_worker_is_rescued_before_its_lease_runs_out(db: Database) -> None:
    workers.register(db, "dead", "host-1")
    workers.register(db, "alive", "host-1")
    lost, kept = running(db, "dead"), running(db, "alive")
    assert queue.rescue(db, max_attempts=3, dead_workers=["dead", "never heard of"]) == [lost.id]
    assert queue.get(db, lost.id).status == Status.QUEUED
    assert queue.get(db, kept.id) == kept
    with db.read() as session:
        assert session.get(Worker, "dead") is None
        assert session.get(Worker, "alive") is not None


@pytest.mark.parametrize("status", Status)
def test_a_rescue_touches_no_job_that_lives_or_has_ended(db: Database, status: Status) -> None:
    job_with_status(db, status)
    before = everything(db)
    assert queue.rescue(db, max_attempts=3) == []
    assert everything(db) == before


@pytest.mark.parametrize(
    ("ask", "status"), [(control.cancel, Status.CANCELLED), (control.pause, Status.PAUSED)], ids=["cancel", "pause"]
)
def test_a_job_that_was_asked_to_stop_is_stopped_by_the_rescue(
    db: Database, ask: Callable[[Database, str], Job], status: Status
) -> None:
    job = running(db, lease_seconds=EXPIRED)
    ask(db, job.id)
    assert queue.rescue(db, max_attempts=1) == [job.id]
    assert queue.get(db, job.id).status == status
    assert _outcomes(db, job.id) == [Outcome.WORKER_LOST]


def test_a_job_that_lost_its_worker_too_often_has_failed(db: Database) -> None:
    job = running(db, lease_seconds=EXPIRED)
    queue.rescue(db, max_attempts=2)
    assert queue.get(db, job.id).error is None
    claim(db, lease_seconds=EXPIRED)
    queue.rescue(db, max_attempts=2)
    failed = queue.get(db, job.id)
    assert failed.status == Status.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "worker_lost"


def test_many_jobs_are_rescued_at_once_and_each_only_once(db: Database) -> None:
    ids = _queue_many(db, 20)
    for _ in ids:
        claim(db, lease_seconds=EXPIRED)
    rescued: list[str] = []
    _in_threads(4, lambda _: rescued.extend(queue.rescue(db, max_attempts=3)))
    assert sorted(rescued) == ids
    assert all(_statuses(db, each) == ["running", "queued"] for each in ids)


def test_a_heartbeat_extends_the_leases_of_its_worker_only(db: Database) -> None:
    workers.register(db, "worker-1", "host-1")
    mine, cancelling = (running(db, "worker-1", EXPIRED) for _ in range(2))
    control.cancel(db, cancelling.id)
    other = running(db, "worker-2", EXPIRED)
    queue.renew(db, "worker-1", LEASE_SECONDS, [mine.id, cancelling.id, other.id])
    assert queue.rescue(db, max_attempts=3) == [other.id]
    assert queue.owned(db, "worker-1") == {mine.id: (1, Wish.GO_ON), cancelling.id: (1, Wish.STOP)}
    renewed = queue.get(db, mine.id).lease_expires_at
    assert renewed is not None
    assert timedelta(seconds=50) < renewed - datetime.now(UTC) < timedelta(seconds=70)


def test_a_job_that_its_worker_does_not_watch_is_left_to_expire(db: Database) -> None:
    """A claim whose answer got lost: the row says it is the worker's, and the worker never heard of it."""
    job = running(db, "worker-1", EXPIRED)
    queue.renew(db, "worker-1", LEASE_SECONDS, [])
    assert queue.rescue(db, max_attempts=3) == [job.id]


def test_a_heartbeat_gives_no_lease_to_a_job_that_was_taken_away(db: Database) -> None:
    job = running(db, "worker-1", EXPIRED)
    queue.rescue(db, max_attempts=3)
    before = everything(db)
    queue.renew(db, "worker-1", LEASE_SECONDS, [job.id])
    assert everything(db) == before


def test_the_newest_heartbeat_of_all_workers_counts(db: Database) -> None:
    assert workers.seconds_since_heartbeat(db) is None
    for number in (1, 2):
        workers.register(db, f"worker-{number}", "host-1")
    with db.write() as session:
        for number, age in ((1, 100), (2, 40)):
            worker = session.get(Worker, f"worker-{number}")
            assert worker is not None
            worker.heartbeat_at -= timedelta(seconds=age)
    age_before = workers.seconds_since_heartbeat(db)
    assert age_before is not None
    assert 39 < age_before < 60
    workers.heartbeat(db, "worker-1")
    age_after = workers.seconds_since_heartbeat(db)
    assert age_after is not None
    assert -1 < age_after < 20


def test_a_worker_that_leaves_is_forgotten(db: Database) -> None:
    workers.register(db, "worker-1", "host-1")
    workers.deregister(db, "worker-1")
    workers.deregister(db, "worker-1")
    assert workers.seconds_since_heartbeat(db) is None


def test_a_cancel_that_meets_a_claim_is_never_lost(db: Database) -> None:
    ids = _queue_many(db, 40)

    def work(number: int) -> None:
        if number == 0:
            while queue.claim(db, "worker-1", LEASE_SECONDS) is not None:
                pass
        else:
            for job_id in reversed(ids):
                control.cancel(db, job_id)

    _in_threads(2, work)
    for job_id in ids:
        job = queue.get(db, job_id)
        history = (job.status, job.attempt, *_statuses(db, job_id))
        assert history in (("cancelled", 0, "cancelled"), ("cancelling", 1, "running", "cancelling"))


def test_a_cancel_that_meets_the_end_of_an_attempt_is_never_lost(db: Database) -> None:
    jobs = [running(db) for _ in range(20)]
    together = threading.Barrier(2)

    def work(number: int) -> None:
        for job in jobs:
            together.wait(timeout=10)
            if number == 0:
                finish(db, job, Outcome.RELEASED)
            else:
                control.cancel(db, job.id)

    _in_threads(2, work)
    assert {queue.get(db, job.id).status for job in jobs} == {Status.CANCELLED}


@pytest.mark.parametrize("job_id", ["", "0" * 24, "nothing", "\0", "a\0b", "'; --", "é" * 5000])
def test_an_id_that_no_job_has_is_not_found(db: Database, job_id: str) -> None:
    submitting.enqueue(db, Spec())
    with pytest.raises(NotFound):
        queue.get(db, job_id)
    with pytest.raises(NotFound):
        control.cancel(db, job_id)


def test_the_history_tells_every_status_in_order(db: Database) -> None:
    job = running(db)
    finish(db, job, Outcome.KILLED)
    claim(db, "worker-2")
    control.cancel(db, job.id)
    queue.finish(db, job.id, 2, Outcome.RELEASED, max_attempts=3)
    history = records.transitions(db, job.id)
    assert [(each.seq, each.status, each.reason) for each in history] == [
        (1, "queued", "submitted"),
        (2, "running", "attempt 1"),
        (3, "queued", "attempt 1: It ended as killed."),
        (4, "running", "attempt 2"),
        (5, "cancelling", "cancel requested"),
        (6, "cancelled", "attempt 2: cancelled"),
    ]
    times = [each.at for each in history]
    assert times == sorted(times)


def test_jobs_are_listed_newest_first_and_by_status(db: Database) -> None:
    ids = [job_with_status(db, status).id for status in (Status.SUCCEEDED, Status.RUNNING, Status.QUEUED)]
    assert [job.id for job in listing.jobs(db)[0]] == ids[::-1]
    assert [job.id for job in listing.jobs(db, Filter(Status.RUNNING))[0]] == [ids[1]]
    assert listing.jobs(db, Filter(Status.FAILED)) == ([], False)


@pytest.mark.parametrize(("limit", "has_more"), [(1, True), (2, True), (3, False), (4, False)])
def test_a_page_says_whether_there_are_more(db: Database, limit: int, has_more: bool) -> None:
    ids = _queue_many(db, 3)
    found, more = listing.jobs(db, limit=limit)
    assert ([job.id for job in found], more) == (ids[::-1][:limit], has_more)


@given(limit=st.integers(1, 3), arrivals=st.lists(st.integers(0, 2), max_size=4))
@hypothesis_settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_pages_neither_skip_nor_repeat_while_jobs_arrive(db: Database, limit: int, arrivals: list[int]) -> None:
    empty(db)
    _queue_many(db, 4)
    there = [job.id for job in listing.jobs(db, limit=1000)[0]]
    seen: list[str] = []
    after: str | None = None
    for arriving in [*arrivals, *[1] * len(there)]:
        page, has_more = listing.jobs(db, after=after, limit=limit)
        seen += [job.id for job in page]
        if not has_more:
            break
        after = page[-1].id
        _queue_many(db, arriving)
    assert seen == there
