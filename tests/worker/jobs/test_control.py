"""What a job's owner may ask for, in every status, and what becomes of a job that was asked to stop or to go on."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlmodel import SQLModel

from tests.worker.jobs.imported import imported
from tests.worker.jobs.making import (
    EXPIRED,
    LEASE_SECONDS,
    claim,
    everything,
    finish,
    job_with_status,
    make_ready,
    progress,
    record,
    report,
    result,
    running,
    saved,
    saved_steps,
)
from worker.jobs import aliases, control, datasets, listing, queue, records, retention, submitting
from worker.jobs.db import Database, now
from worker.jobs.errors import Conflict, DatasetInvalid, Diverged, NotFound, SpecRefused, StaleAttempt
from worker.jobs.failures import Failure
from worker.jobs.spec import Spec
from worker.jobs.states import OWNED, SPENT, TERMINAL, DatasetStatus, EventKind, Outcome, SinkKind, Status, Wish
from worker.jobs.tables import Dataset, Job, ParityRow, SinkRow

REQUESTS: dict[str, Callable[[Database, str], Job | None]] = {
    "cancel": control.cancel,
    "cancel now": lambda db, job_id: control.cancel(db, job_id, at_once=True),
    "pause": control.pause,
    "resume": control.resume,
    "retry": control.retry,
    "extend": lambda db, job_id: control.extend(db, job_id, 5),
    "delete": control.delete,
}
GONE = "gone"
# The status that follows; where there is none the answer is Conflict.
FOLLOWS: dict[Status, dict[str, Status | str]] = {
    Status.QUEUED: {
        "cancel": Status.CANCELLED,
        "cancel now": Status.CANCELLED,
        "pause": Status.PAUSED,
        "resume": Status.QUEUED,
    },
    Status.RUNNING: {
        "cancel": Status.CANCELLING,
        "cancel now": Status.CANCELLING,
        "pause": Status.PAUSING,
        "resume": Status.RUNNING,
    },
    Status.PAUSING: {
        "cancel": Status.CANCELLING,
        "cancel now": Status.CANCELLING,
        "pause": Status.PAUSING,
        "resume": Status.RUNNING,
    },
    Status.PAUSED: {
        "cancel": Status.CANCELLED,
        "cancel now": Status.CANCELLED,
        "pause": Status.PAUSED,
        "resume": Status.QUEUED,
    },
    Status.CANCELLING: {"cancel": Status.CANCELLING, "cancel now": Status.CANCELLING},
    Status.SUCCEEDED: {"extend": Status.QUEUED, "delete": GONE},
    Status.FAILED: {"retry": Status.QUEUED, "delete": GONE},
    Status.CANCELLED: {
        "cancel": Status.CANCELLED,
        "cancel now": Status.CANCELLED,
        "retry": Status.QUEUED,
        "delete": GONE,
    },
}
CELLS = list(itertools.product(Status, REQUESTS))
ALLOWED = [(status, request, FOLLOWS[status][request]) for status, request in CELLS if request in FOLLOWS[status]]
REFUSED = [(status, request) for status, request in CELLS if request not in FOLLOWS[status]]
REPEATABLE = ("cancel", "cancel now", "pause", "resume")
DIVERGED = Failure.of(Diverged("The loss became nan."))
OUT_OF_MEMORY = Failure(code="killed", message="The training process was killed by SIGKILL.", signal="SIGKILL")


def trained(db: Database, outcome: Outcome = Outcome.SUCCEEDED, failure: Failure | None = None, **spec: Any) -> Job:
    """A job of two epochs whose attempt left all that an attempt can leave, and ended like this."""
    hook = {"url": "https://hooks.example.com/", "metric": {"name": "test_loss", "below": 1e6}}
    job = running(db, epochs=2, labels={"team": "a"}, webhooks=[hook], **spec)
    records.record_start(db, job.id, 1, {"seed": 0})
    for epoch in (1, 2):
        records.record_epoch(db, job.id, 1, result(epoch), saved(epoch), progress(epoch), report(epoch))
    if outcome is not Outcome.SUCCEEDED:
        records.record_steps(db, job.id, 1, saved_steps(3))
    records.record_event(db, job.id, 1, 1, EventKind.MICRO_BATCH, "It did not fit.")
    queue.finish(db, job.id, 1, outcome, failure, max_attempts=1)
    with db.write() as session:
        session.add(ParityRow(job_id=job.id, epoch=2, sha256="ab", made_at=now(session), error="It was not."))
        session.add(SinkRow(job_id=job.id, kind=SinkKind.CSV))
    return queue.get(db, job.id)


def in_status(db: Database, status: Status) -> Job:
    return trained(db) if status is Status.SUCCEEDED else job_with_status(db, status)


def statuses(db: Database, job_id: str) -> list[str]:
    return [each.status for each in records.transitions(db, job_id)]


def set_job(db: Database, job: Job, **values: Any) -> None:
    with db.write() as session:
        session.execute(update(Job).where(Job.id == job.id).values(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "request_", "follows"), ALLOWED)
def test_what_is_allowed_gives_the_status_that_follows(
    db: Database, status: Status, request_: str, follows: Status | str
) -> None:
    job = in_status(db, status)
    history = statuses(db, job.id)
    answer = REQUESTS[request_](db, job.id)
    if follows == GONE:
        assert answer is None
        with pytest.raises(NotFound):
            queue.get(db, job.id)
        return
    now = queue.get(db, job.id)
    assert now == answer
    assert now.status == follows
    assert (now.finished_at is not None) == (follows in TERMINAL)
    assert (now.worker_id, now.attempt) == (job.worker_id, job.attempt)
    assert statuses(db, job.id) == (history if follows == status else [*history, follows])
    assert now.stop_now is (request_ == "cancel now" and follows == Status.CANCELLING)


@pytest.mark.parametrize(("status", "request_"), REFUSED)
def test_what_is_not_allowed_is_a_conflict_and_changes_nothing(db: Database, status: Status, request_: str) -> None:
    job = in_status(db, status)
    before = everything(db)
    with pytest.raises(Conflict, match=f"The job (is|has) {status}"):
        REQUESTS[request_](db, job.id)
    assert everything(db) == before


@pytest.mark.parametrize(
    ("status", "request_"), [(status, request) for status, request, _ in ALLOWED if request in REPEATABLE]
)
def test_to_ask_twice_is_as_good_as_once(db: Database, status: Status, request_: str) -> None:
    job = in_status(db, status)
    once = REQUESTS[request_](db, job.id)
    after_one = everything(db)
    assert REQUESTS[request_](db, job.id) == once
    assert everything(db) == after_one


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("job_id", ["", "0" * 24, "nothing", "\0", "a\0b", "'; --", "é" * 5000])
def test_a_job_that_is_not_there_is_not_found(db: Database, request_: str, job_id: str) -> None:
    submitting.enqueue(db, Spec())
    before = everything(db)
    with pytest.raises(NotFound):
        REQUESTS[request_](db, job_id)
    assert everything(db) == before


def test_the_worker_is_told_what_to_do_with_each_of_its_jobs(db: Database) -> None:
    jobs = {status: job_with_status(db, status) for status in reversed(Status)}  # none waits while others are claimed
    killed = running(db, "worker-2")
    control.cancel(db, killed.id, at_once=True)
    assert queue.owned(db, "worker-1") == {
        jobs[Status.RUNNING].id: (1, Wish.GO_ON),
        jobs[Status.PAUSING].id: (1, Wish.STOP),
        jobs[Status.CANCELLING].id: (1, Wish.STOP),
    }
    assert queue.owned(db, "worker-2") == {killed.id: (1, Wish.STOP_NOW)}


def test_who_cannot_wait_may_say_so_later_and_cannot_take_it_back(db: Database) -> None:
    job = running(db)
    for at_once, wish in ((False, Wish.STOP), (True, Wish.STOP_NOW), (False, Wish.STOP_NOW)):
        control.cancel(db, job.id, at_once=at_once)
        assert queue.owned(db, "worker-1") == {job.id: (1, wish)}
    assert statuses(db, job.id)[-1] == Status.CANCELLING


def test_a_job_that_was_killed_once_is_not_killed_again_when_it_is_retried(db: Database) -> None:
    job = running(db)
    control.cancel(db, job.id, at_once=True)
    assert finish(db, job, Outcome.RELEASED) is Status.CANCELLED
    control.retry(db, job.id)
    claim(db)
    assert queue.owned(db, "worker-1") == {job.id: (2, Wish.GO_ON)}
    control.cancel(db, job.id)
    assert queue.owned(db, "worker-1") == {job.id: (2, Wish.STOP)}


# What an owned job was asked for, and the status that an attempt's end gives it; the first of three attempts.
ENDS = {
    "cancel": (control.cancel, Status.CANCELLED),
    "cancel now": (REQUESTS["cancel now"], Status.CANCELLED),
    "pause": (control.pause, Status.PAUSED),
    "pause, resume": (lambda db, job_id: (control.pause(db, job_id), control.resume(db, job_id)), Status.QUEUED),
    "pause, cancel": (lambda db, job_id: (control.pause(db, job_id), control.cancel(db, job_id)), Status.CANCELLED),
}


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RELEASED, *SPENT])
@pytest.mark.parametrize("asked", ENDS)
def test_what_follows_when_the_attempt_then_ends(db: Database, asked: str, outcome: Outcome) -> None:
    ask, unfinished = ENDS[asked]
    job = running(db, lease_seconds=EXPIRED)
    ask(db, job.id)
    if outcome is Outcome.WORKER_LOST:
        assert queue.rescue(db, max_attempts=3) == [job.id]
    else:
        finish(db, job, outcome)
    ended = queue.get(db, job.id)
    assert ended.status == {Outcome.SUCCEEDED: Status.SUCCEEDED, Outcome.FAILED: Status.FAILED}.get(outcome, unfinished)
    assert (ended.worker_id, ended.lease_expires_at, ended.stop_now) == (None, None, False)
    assert (ended.error is not None) == (outcome is Outcome.FAILED)
    asked_for = {Status.CANCELLED: Outcome.CANCELLED, Status.PAUSED: Outcome.PAUSED}.get(unfinished, outcome)
    (attempt,) = records.attempts(db, job.id)
    assert attempt.outcome == (asked_for if outcome is Outcome.RELEASED else outcome)
    assert statuses(db, job.id)[-1] == ended.status


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.PAUSED])
def test_a_worker_does_not_say_what_only_the_owner_can(db: Database, outcome: Outcome) -> None:
    job = running(db)
    with pytest.raises(AssertionError):
        finish(db, job, outcome)
    assert queue.get(db, job.id).status == Status.RUNNING


@pytest.mark.parametrize("was_owned", [False, True])
@pytest.mark.parametrize("ask", [control.cancel, control.pause], ids=["cancel", "pause"])
def test_nothing_but_its_owner_revives_a_job(
    db: Database, ask: Callable[[Database, str], Job], was_owned: bool
) -> None:
    job = running(db, lease_seconds=EXPIRED)
    finish(db, job, Outcome.RELEASED)
    if was_owned:
        job = claim(db, lease_seconds=EXPIRED)
        ask(db, job.id)
        finish(db, job, Outcome.RELEASED)
    else:
        ask(db, job.id)
    before = everything(db)
    assert queue.rescue(db, max_attempts=3, dead_workers=["worker-1"]) == []
    assert queue.claim(db, "worker-2", LEASE_SECONDS) is None
    assert not queue.has_waiting(db)
    assert queue.fail_hopeless(db) == []
    queue.renew(db, "worker-1", LEASE_SECONDS, [job.id])
    for outcome in (Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RELEASED, *SPENT):
        with pytest.raises(StaleAttempt):
            finish(db, job, outcome)
    assert everything(db) == before


def test_a_paused_job_keeps_its_place_and_goes_on_as_its_next_attempt(db: Database) -> None:
    first, second = running(db), submitting.enqueue(db, Spec())
    control.pause(db, first.id)
    finish(db, first, Outcome.RELEASED)
    assert claim(db).id == second.id
    third = submitting.enqueue(db, Spec())
    control.resume(db, first.id)
    again = claim(db)
    assert (again.id, again.attempt, again.started_at) == (first.id, 2, first.started_at)
    assert claim(db).id == third.id


def test_the_history_tells_what_was_asked_for(db: Database) -> None:
    job = running(db)
    control.pause(db, job.id)
    control.resume(db, job.id)
    finish(db, job, Outcome.RELEASED)
    control.pause(db, job.id)
    control.resume(db, job.id)
    again = claim(db)
    control.pause(db, job.id)
    finish(db, again, Outcome.RELEASED)
    control.cancel(db, job.id)
    control.retry(db, job.id)
    assert [(each.status, each.reason) for each in records.transitions(db, job.id)] == [
        ("queued", "submitted"),
        ("running", "attempt 1"),
        ("pausing", "pause requested"),
        ("running", "resumed before it was paused"),
        ("queued", "attempt 1: released"),
        ("paused", "paused while queued"),
        ("queued", "resumed"),
        ("running", "attempt 2"),
        ("pausing", "pause requested"),
        ("paused", "attempt 2: paused"),
        ("cancelled", "cancelled while paused"),
        ("queued", "retried"),
    ]


def test_a_retried_job_has_all_its_attempts_before_it_again(db: Database) -> None:
    submitting.enqueue(db, Spec())
    for first in (1, 3, 5):
        assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.QUEUED
        last = claim(db)
        assert last.attempt == first + 1
        assert finish(db, last, Outcome.CRASHED, max_attempts=2) is Status.FAILED
        assert queue.get(db, last.id).error is not None
        retried = control.retry(db, last.id)
        assert (retried.status, retried.error, retried.finished_at) == (Status.QUEUED, None, None)
    assert [each.number for each in records.attempts(db, last.id)] == [1, 2, 3, 4, 5, 6]
    assert all(each.error for each in records.attempts(db, last.id))


def test_attempts_that_a_cancelled_job_had_spent_are_forgiven_too(db: Database) -> None:
    job = running(db)
    finish(db, job, Outcome.KILLED, max_attempts=2)
    control.cancel(db, job.id)
    control.retry(db, job.id)
    assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.QUEUED
    assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.FAILED


def test_a_retry_goes_on_from_what_was_trained_with_the_same_spec(db: Database) -> None:
    job = trained(db, Outcome.FAILED, DIVERGED)
    before = everything(db)
    retried = control.retry(db, job.id)
    after = everything(db)
    assert (retried.spec, retried.threads, retried.provenance) == (job.spec, job.threads, {"seed": 0})
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"jobs", "transitions"}


def test_a_suggestion_that_leaves_the_result_as_it_is_keeps_what_was_trained(db: Database) -> None:
    job = trained(db, Outcome.KILLED, OUT_OF_MEMORY)
    before = everything(db)
    retried = control.retry(db, job.id, apply_suggestion=True)
    assert retried.spec == job.spec | {"accumulation": 2}
    assert (retried.threads, retried.provenance, retried.last_seq, retried.epoch) == (1, {"seed": 0}, 2, 2)
    after = everything(db)
    assert {name for name in before if before[name] != after[name]} == {"jobs", "transitions"}
    found = records.steps(db, job.id)
    assert found is not None
    assert found.epoch == 3


def test_a_suggestion_that_changes_the_result_forgets_what_was_trained(db: Database) -> None:
    other = trained(db, Outcome.FAILED, DIVERGED)
    before = everything(db)
    job = trained(db, Outcome.FAILED, DIVERGED)
    attempts, events = records.attempts(db, job.id), records.events(db, job.id)

    retried = control.retry(db, job.id, apply_suggestion=True)

    assert retried.spec == job.spec | {"optimizer": job.spec["optimizer"] | {"lr": 1e-4}}
    assert Spec.model_validate(retried.spec).optimizer.lr == 1e-4
    assert (retried.threads, retried.provenance, retried.epoch, retried.batch, retried.batches) == (None, None, 0, 0, 0)
    assert (records.attempts(db, job.id), records.events(db, job.id)) == (attempts, events)
    assert statuses(db, job.id) == ["queued", "running", "failed", "queued"]
    assert (records.files(db, job.id), records.epochs(db, job.id), records.checkpoints(db, job.id)) == ([], [], [])
    after = everything(db)
    for name in ("epochs", "checkpoints", "step_checkpoints", "reports", "parities"):
        assert after[name] == before[name], name
    assert records.epochs(db, other.id)

    since = 2  # a poller that has read all of the first attempt
    assert retried.last_seq == since
    again = claim(db)
    record(db, again, 1)
    assert [(row.epoch, row.seq, row.attempt) for row in records.epochs(db, job.id, since=since)] == [(1, 3, 2)]


@pytest.mark.parametrize("error", [None, {}, {"suggestion": None}, {"suggestion": {}}], ids=str)
def test_without_a_suggestion_none_is_applied(db: Database, error: dict[str, Any] | None) -> None:
    job = trained(db, Outcome.FAILED, DIVERGED)
    set_job(db, job, error=error)
    before = everything(db)
    with pytest.raises(Conflict, match="comes with no suggestion"):
        control.retry(db, job.id, apply_suggestion=True)
    assert everything(db) == before


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"batch_size": 0}, "#/batch_size: Input should be greater"),
        ({"nothing": 1}, "#/nothing: Extra inputs"),
        ({"optimizer": {"name": "magic"}}, "#/optimizer: Its name must be one of"),
        ({"accumulation": 65}, "#/accumulation: A batch cannot be divided"),
    ],
)
def test_a_suggestion_that_makes_no_valid_spec_is_a_conflict(db: Database, patch: dict[str, Any], words: str) -> None:
    job = trained(db, Outcome.FAILED, DIVERGED)
    set_job(db, job, error={"suggestion": patch})
    before = everything(db)
    with pytest.raises(Conflict, match=words):
        control.retry(db, job.id, apply_suggestion=True)
    assert everything(db) == before


@pytest.mark.parametrize("schedule", ["constant", "step", "multistep", "plateau"])
def test_a_job_that_is_extended_goes_on_as_if_submitted_with_more_epochs(db: Database, schedule: str) -> None:
    more = {"milestones": [1]} if schedule == "multistep" else {}
    job = trained(db, schedule={"name": schedule, **more})
    before = everything(db)
    extended = control.extend(db, job.id, 3)
    assert extended.spec == job.spec | {"epochs": 5}
    assert (extended.status, extended.finished_at, extended.last_seq) == (Status.QUEUED, None, 2)
    assert (extended.threads, extended.provenance) == (job.threads, {"seed": 0})
    after = everything(db)
    assert {name for name in before if before[name] != after[name]} == {"jobs", "transitions"}
    assert records.transitions(db, job.id)[-1].reason == "extended by 3 epochs"

    again = claim(db)
    for epoch in (3, 4, 5):
        record(db, again, epoch)
    assert finish(db, again, Outcome.SUCCEEDED) is Status.SUCCEEDED
    assert [row.seq for row in records.epochs(db, job.id)] == [1, 2, 3, 4, 5]
    assert control.extend(db, job.id, 1).spec["epochs"] == 6


def test_an_extended_job_has_all_its_attempts_before_it_again(db: Database) -> None:
    submitting.enqueue(db, Spec(epochs=1))
    finish(db, claim(db), Outcome.KILLED, max_attempts=2)
    job = claim(db)
    record(db, job, 1)
    finish(db, job, Outcome.SUCCEEDED)
    control.extend(db, job.id, 1)
    assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.QUEUED
    assert finish(db, claim(db), Outcome.KILLED, max_attempts=2) is Status.FAILED


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_a_schedule_that_is_made_for_its_epochs_is_not_extended(db: Database, schedule: str) -> None:
    job = trained(db, schedule={"name": schedule})
    before = everything(db)
    with pytest.raises(Conflict, match=f"The schedule {schedule} ends with the last epoch"):
        control.extend(db, job.id, 5)
    assert everything(db) == before


def test_a_job_that_stopped_early_is_not_extended(db: Database) -> None:
    job = running(db, epochs=5, early_stopping={"patience": 1})
    record(db, job, 1)
    record(db, job, 2)
    finish(db, job, Outcome.SUCCEEDED)
    before = everything(db)
    with pytest.raises(Conflict, match="stopped early"):
        control.extend(db, job.id, 5)
    assert everything(db) == before


def test_more_epochs_than_a_job_can_have_are_the_callers_fault(db: Database) -> None:
    job = trained(db)
    before = everything(db)
    with pytest.raises(SpecRefused, match="100001 epochs") as caught:
        control.extend(db, job.id, 99_999)
    assert caught.value.pointer == "#/epochs"
    assert everything(db) == before
    assert control.extend(db, job.id, 99_998).spec["epochs"] == 100_000


def test_a_job_of_another_time_that_cannot_be_read_is_not_extended(db: Database) -> None:
    job = trained(db)
    set_job(db, job, spec={"model": {"name": "forgotten"}})
    with pytest.raises(Conflict, match="#/model: Its name must be one of"):
        control.extend(db, job.id, 5)


def test_a_job_whose_dataset_is_gone_does_not_go_on(db: Database) -> None:
    jobs = [
        (trained(db), REQUESTS["extend"]),
        (trained(db, Outcome.FAILED, DIVERGED), REQUESTS["retry"]),
        (
            trained(db, Outcome.FAILED, DIVERGED),
            lambda db, job_id: control.retry(db, job_id, apply_suggestion=True),
        ),
    ]
    datasets.delete(db, "fashion-mnist")
    make_ready(db)  # another version is no replacement
    for status, error in ((DatasetStatus.DELETED, None), (DatasetStatus.INVALID, Failure.of(DatasetInvalid()))):
        values = {"status": status, "error": error.model_dump(mode="json") if error else None}
        with db.write() as session:
            session.execute(update(Dataset).where(Dataset.version == 1).values(**values))  # type: ignore[arg-type]
        before = everything(db)
        for job, ask in jobs:
            with pytest.raises(Conflict, match="dataset of this job is gone"):
                ask(db, job.id)
        assert everything(db) == before


def test_a_job_that_is_retried_while_its_dataset_is_prepared_waits_for_it(db: Database) -> None:
    job = submitting.enqueue(db, Spec.model_validate({"dataset": {"name": "mnist"}}))
    control.cancel(db, job.id)
    control.retry(db, job.id)
    assert queue.claim(db, "worker-1", LEASE_SECONDS) is None
    with pytest.raises(Conflict, match=job.id):
        datasets.delete(db, "mnist")


@pytest.mark.parametrize("outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.KILLED])
def test_all_rows_of_a_deleted_job_go_and_no_others(db: Database, outcome: Outcome) -> None:
    trained(db, Outcome.FAILED, DIVERGED)
    before = everything(db)
    job = trained(db, outcome, DIVERGED if outcome is Outcome.FAILED else None)
    with db.read() as session:
        tables = [
            each for each in SQLModel.metadata.sorted_tables if "job_id" in each.columns and each.name != "aliases"
        ]
        mine = [session.execute(table.select().where(table.c.job_id == job.id)).all() for table in tables]
    assert sum(map(bool, mine)) >= len(tables) - 1  # one that has succeeded has no checkpoint inside an epoch
    control.delete(db, job.id)
    assert everything(db) == before
    with pytest.raises(NotFound):
        control.delete(db, job.id)


def test_a_job_that_an_alias_points_at_is_not_deleted(db: Database) -> None:
    job, other = trained(db), trained(db)
    for name in ("shoes", "hats"):
        aliases.put(db, name, job.id, "best")
    before = everything(db)
    with pytest.raises(Conflict, match="The alias hats points at this job; point it elsewhere or delete it first"):
        control.delete(db, job.id)
    assert everything(db) == before
    aliases.put(db, "hats", other.id, "best")
    aliases.remove(db, "shoes")
    control.delete(db, job.id)
    assert aliases.target(db, "hats").job_id == other.id


def test_an_alias_is_not_rolled_back_to_a_job_that_was_deleted(db: Database) -> None:
    job, other, third = trained(db), trained(db), trained(db)
    for name, first in (("shoes", job), ("hats", third)):
        aliases.put(db, name, first.id, "1")
        aliases.put(db, name, other.id, "1")
    control.delete(db, job.id)
    with pytest.raises(Conflict, match="nothing else that is still there"):
        aliases.rollback(db, "shoes")
    shoes = aliases.get(db, "shoes")
    assert (shoes.job_id, shoes.previous_job_id, shoes.previous_epoch, shoes.version) == (other.id, None, None, 2)
    assert aliases.rollback(db, "hats").alias.job_id == third.id


def test_what_an_alias_points_at_is_not_forgotten_by_a_job_that_begins_anew(db: Database) -> None:
    job, other = trained(db, Outcome.FAILED, DIVERGED), trained(db)
    aliases.put(db, "shoes", job.id, "1")
    before = everything(db)
    with pytest.raises(Conflict, match="The alias shoes points at this job"):
        control.retry(db, job.id, apply_suggestion=True)
    assert everything(db) == before
    aliases.put(db, "shoes", other.id, "1")
    control.retry(db, job.id, apply_suggestion=True)
    record(db, claim(db), 1)  # by another spec: what the alias knew is no more
    with pytest.raises(Conflict, match="nothing else"):
        aliases.rollback(db, "shoes")


@pytest.mark.parametrize("apply_suggestion", [False, True])
def test_a_job_that_an_alias_points_at_can_go_on(db: Database, apply_suggestion: bool) -> None:
    job = trained(db, Outcome.KILLED, OUT_OF_MEMORY)
    aliases.put(db, "shoes", job.id, "1")
    aliases.put(db, "shoes", job.id, "2")
    assert control.retry(db, job.id, apply_suggestion=apply_suggestion).status == Status.QUEUED
    assert aliases.target(db, "shoes").epoch == 2
    assert aliases.rollback(db, "shoes").alias.epoch == 1


def test_an_imported_job_is_not_extended_but_deleted(db: Database, tmp_path: Path) -> None:
    before = everything(db)
    job = imported(db, tmp_path)
    for request in ("extend", "retry", "cancel", "pause", "resume"):
        with pytest.raises(Conflict):
            REQUESTS[request](db, job.id)
    with pytest.raises(Conflict, match="The job was imported, without what a training needs"):
        control.extend(db, job.id, 1)
    control.delete(db, job.id)
    assert everything(db) == before


def test_an_attempt_of_a_deleted_job_can_write_nothing(db: Database) -> None:
    job = running(db)
    control.cancel(db, job.id)
    queue.rescue(db, max_attempts=3, dead_workers=["worker-1"])
    control.delete(db, job.id)
    before = everything(db)
    with pytest.raises(StaleAttempt):
        finish(db, job, Outcome.RELEASED)
    with pytest.raises(StaleAttempt):
        record(db, job, 1)
    assert everything(db) == before


def age(db: Database, *jobs: Job, days: float) -> None:
    """Has them ended so long ago."""
    day = "finished_at - :days * interval '1 day'" if not db.is_sqlite else "datetime(finished_at, -:days || ' days')"
    with db.write() as session:
        for job in jobs:
            session.execute(text(f"UPDATE jobs SET finished_at = {day} WHERE id = :id"), {"days": days, "id": job.id})


def test_only_old_jobs_that_have_ended_are_deleted(db: Database) -> None:
    old = [in_status(db, status) for status in TERMINAL]
    retried = in_status(db, Status.FAILED)
    age(db, *old, retried, days=10.1)
    control.retry(db, retried.id)
    claim(db)
    young = [in_status(db, status) for status in TERMINAL]
    age(db, *young, days=9.9)
    others = [in_status(db, status) for status in (Status.PAUSED, *OWNED, Status.QUEUED)]
    others_before = [queue.get(db, job.id) for job in (retried, *young, *others)]
    assert retention.delete_old(db, 11) == []
    assert sorted(retention.delete_old(db, 10)) == sorted(job.id for job in old)
    assert retention.delete_old(db, 10) == []
    assert listing.jobs(db, limit=100)[0] == sorted(others_before, key=lambda job: job.id, reverse=True)
    assert [records.attempts(db, job.id) for job in old] == [[], [], []]


def test_an_old_job_that_an_alias_points_at_stays(db: Database) -> None:
    now_at, before_at, neither = (trained(db) for _ in range(3))
    aliases.put(db, "shoes", before_at.id, "1")
    aliases.put(db, "shoes", now_at.id, "1")
    age(db, now_at, before_at, neither, days=10)
    assert sorted(retention.delete_old(db, 9)) == sorted((before_at.id, neither.id))
    assert aliases.target(db, "shoes").job_id == now_at.id
    assert aliases.get(db, "shoes").previous_job_id is None
    assert retention.delete_old(db, 9) == []
    aliases.remove(db, "shoes")
    assert retention.delete_old(db, 9) == [now_at.id]


def test_old_jobs_are_deleted_some_at_a_time_the_oldest_first(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    jobs = [trained(db) for _ in range(5)]
    for days, job in enumerate(jobs, start=10):
        age(db, job, days=days)
    aliases.put(db, "shoes", jobs[4].id, "1")
    aliases.put(db, "boots", jobs[3].id, "1")  # those that stay do not keep others from their turn
    assert sorted(retention.delete_old(db, 9)) == sorted([jobs[1].id, jobs[2].id])
    assert retention.delete_old(db, 9) == [jobs[0].id]
    assert retention.delete_old(db, 9) == []


def with_checkpoints(db: Database, *accuracies: float, **policy: Any) -> Job:
    job = running(db, checkpoints=policy)
    for epoch, accuracy in enumerate(accuracies, start=1):
        record(db, job, epoch, test_accuracy=accuracy, test_loss=accuracy)
    return job


def kept(db: Database, job: Job) -> list[int]:
    return [each.row.epoch for each in records.checkpoints(db, job.id)]


@pytest.mark.parametrize(
    ("policy", "accuracies", "stays"),
    [
        ({}, (0.1, 0.9, 0.2, 0.3), [2, 4]),
        ({"best_by": "test_loss"}, (0.2, 0.9, 0.1, 0.3), [3, 4]),
        ({"keep": "every", "every": 1}, (0.1, 0.2, 0.3, 0.4), [4]),
        ({"keep": "every", "every": 2}, (0.9, 0.2, 0.3, 0.4, 0.5), [1, 5]),
    ],
)
def test_an_old_job_keeps_its_best_and_its_last_checkpoint(
    db: Database, policy: dict[str, Any], accuracies: tuple[float, ...], stays: list[int]
) -> None:
    job = with_checkpoints(db, *accuracies, **policy)
    finish(db, job, Outcome.SUCCEEDED)
    age(db, job, days=10)
    epochs = records.epochs(db, job.id)
    files = [path for epoch in stays for path in (saved(epoch).path, saved(epoch).state_path)]
    assert retention.thin_old(db, 9) == {job.id: (1, files)}
    assert kept(db, job) == stays
    assert records.files(db, job.id) == files
    assert records.epochs(db, job.id) == epochs
    assert retention.thin_old(db, 9) == {}
    assert queue.get(db, job.id).spec == job.spec


def test_an_old_job_keeps_what_aliases_need(db: Database) -> None:
    job = with_checkpoints(db, 0.9, 0.1, 0.2, 0.3, 0.4)
    finish(db, job, Outcome.SUCCEEDED)
    age(db, job, days=10)
    for epoch in ("2", "3", "4"):
        aliases.put(db, "shoes", job.id, epoch)
    assert list(retention.thin_old(db, 9)) == [job.id]
    assert kept(db, job) == [1, 3, 4, 5]
    assert retention.thin_old(db, 9) == {}
    aliases.remove(db, "shoes")
    assert list(retention.thin_old(db, 9)) == [job.id]
    assert kept(db, job) == [1, 5]


def test_old_jobs_are_thinned_some_at_a_time(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    jobs = [with_checkpoints(db, 0.9, 0.1, 0.2) for _ in range(5)]
    for job in jobs:
        finish(db, job, Outcome.SUCCEEDED)
    age(db, *jobs, days=10)
    for number, job in enumerate(jobs[:2]):  # nothing of these goes, however often they are looked at
        aliases.put(db, f"shoes-{number}", job.id, "2")
    assert list(retention.thin_old(db, 9)) == [jobs[2].id, jobs[3].id]
    assert list(retention.thin_old(db, 9)) == [jobs[4].id]
    assert retention.thin_old(db, 9) == {}
    assert [kept(db, job) for job in jobs] == [[1, 2, 3]] * 2 + [[1, 3]] * 3


def test_a_job_that_is_young_or_has_not_ended_keeps_all(db: Database) -> None:
    young = with_checkpoints(db, 0.1, 0.9, 0.2, 0.3)
    finish(db, young, Outcome.SUCCEEDED)
    age(db, young, days=8)
    for status in OWNED:
        owned = with_checkpoints(db, 0.1, 0.9, 0.2, 0.3)
        set_job(db, owned, status=status)
    paused = with_checkpoints(db, 0.1, 0.9, 0.2, 0.3)
    control.pause(db, paused.id)
    finish(db, paused, Outcome.RELEASED)
    few = with_checkpoints(db, 0.9, 0.1)
    finish(db, few, Outcome.SUCCEEDED)
    age(db, few, days=10)
    before = everything(db)
    assert retention.thin_old(db, 9) == {}
    assert everything(db) == before


def test_a_thinned_job_can_still_go_on_inside_its_epoch(db: Database) -> None:
    job = with_checkpoints(db, 0.1, 0.9, 0.2)
    records.record_steps(db, job.id, 1, saved_steps(4))
    control.cancel(db, job.id)
    finish(db, job, Outcome.RELEASED)
    age(db, job, days=10)
    ((attempt, files),) = retention.thin_old(db, 9).values()
    assert (attempt, files[-1]) == (1, saved_steps(4).path)
    control.retry(db, job.id)
    claim(db)
    found = records.steps(db, job.id)
    assert found is not None
    assert found.path == files[-1]
