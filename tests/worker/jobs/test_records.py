"""What an attempt leaves behind: every write is fenced and whole, and what is read back is what was meant."""

import math
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from tests.worker.jobs import writes
from tests.worker.jobs.making import (
    EXPIRED,
    claim,
    everything,
    finish,
    job_with_status,
    progress,
    record,
    report,
    result,
    running,
    saved,
    saved_steps,
)
from worker.jobs import queue, records, submitting, workers
from worker.jobs.db import Database, now
from worker.jobs.errors import NotFound, NotReady, StaleAttempt
from worker.jobs.records import Resumed
from worker.jobs.spec import Spec
from worker.jobs.states import TERMINAL, Outcome, Phase, Resume, Status
from worker.jobs.tables import Epoch, ParityRow

every_write = pytest.mark.parametrize("write", writes.OF_JOBS.values(), ids=writes.OF_JOBS)


def _assert_refused(db: Database, job_id: str, attempt: int) -> None:
    """Every write of this attempt is refused and leaves nothing behind."""
    before = everything(db)
    for write in writes.OF_JOBS.values():
        with pytest.raises(StaleAttempt):
            write(db, job_id, attempt)
        assert everything(db) == before


def test_the_table_of_writes_is_whole() -> None:
    assert writes.of_attempts(records, queue) == set(writes.OF_JOBS)


@every_write
def test_the_current_attempt_may_write(db: Database, write: writes.Write) -> None:
    job = running(db)
    before = everything(db)
    write(db, job.id, 1)
    assert everything(db) != before


@every_write
@pytest.mark.parametrize("status", [Status.CANCELLING, Status.PAUSING])
def test_an_attempt_that_is_asked_to_stop_may_write_until_it_has_ended(
    db: Database, write: writes.Write, status: Status
) -> None:
    job = job_with_status(db, status)
    before = everything(db)
    write(db, job.id, 1)
    assert everything(db) != before


def test_an_attempt_that_lost_its_job_can_write_nothing(db: Database) -> None:
    job = running(db, lease_seconds=EXPIRED)
    record(db, job, 1)
    queue.rescue(db, max_attempts=3)
    _assert_refused(db, job.id, 1)
    claim(db, "worker-2")
    _assert_refused(db, job.id, 1)


def test_an_attempt_that_does_not_exist_can_write_nothing(db: Database) -> None:
    job, other = running(db), submitting.enqueue(db, Spec())
    for job_id, attempt in ((job.id, 0), (job.id, 2), (other.id, 0), ("0" * 24, 1)):
        _assert_refused(db, job_id, attempt)


@pytest.mark.parametrize("status", [*TERMINAL, Status.PAUSED])
def test_nothing_is_written_once_no_attempt_owns_the_job(db: Database, status: Status) -> None:
    job = job_with_status(db, status)
    _assert_refused(db, job.id, job.attempt)


def test_the_start_says_what_the_result_depends_on(db: Database) -> None:
    job = running(db)
    provenance = {"seed": 0, "versions": {"torch": "2.11"}, "threads": 2}
    records.record_start(db, job.id, 1, provenance)
    assert queue.get(db, job.id).provenance == provenance
    (attempt,) = records.attempts(db, job.id)
    assert (attempt.resumed_from, attempt.resumed_batch, attempt.resume, attempt.resume_reason) == (None,) * 4


@pytest.mark.parametrize(
    ("differences", "resume", "reason"),
    [
        ([], Resume.EXACT, None),
        (["torch 2.12, not 2.11"], Resume.APPROXIMATE, "torch 2.12, not 2.11"),
        (["torch 2.12, not 2.11", "1 thread, not 2"], Resume.APPROXIMATE, "torch 2.12, not 2.11; 1 thread, not 2"),
        (["é" * 400], Resume.APPROXIMATE, "é" * 300),
    ],
)
def test_an_attempt_that_goes_on_says_from_where_and_how_exactly(
    db: Database, differences: list[str], resume: Resume, reason: str | None
) -> None:
    first = running(db)
    records.record_start(db, first.id, 1, {"seed": 0})
    finish(db, first, Outcome.KILLED)
    second = claim(db)
    records.record_start(db, second.id, 2, {"seed": 1}, Resumed(epoch=4, batch=120, differences=differences))
    before, after = records.attempts(db, first.id)
    assert (after.resumed_from, after.resumed_batch, after.resume, after.resume_reason) == (4, 120, resume, reason)
    assert (before.resumed_from, before.resume) == (None, None)
    assert queue.get(db, first.id).provenance == {"seed": 1}


def test_the_newest_checkpoint_inside_an_epoch_replaces_the_one_before(db: Database) -> None:
    job, other = running(db), running(db)
    assert records.steps(db, job.id) is None
    for batch in (40, 120):
        paths = records.record_steps(db, job.id, 1, saved_steps(1, batch))
        assert paths == records.files(db, job.id) == [saved_steps(1, batch).path]
        found = records.steps(db, job.id)
        assert found is not None
        assert {name: getattr(found, name) for name in vars(saved_steps())} == vars(saved_steps(1, batch))
        assert found.attempt == 1
    records.record_steps(db, other.id, 1, saved_steps(1, 7))
    assert records.files(db, job.id) == [saved_steps(1, 120).path]
    finish(db, job, Outcome.KILLED)
    records.record_steps(db, job.id, claim(db).attempt, saved_steps(1, 80, attempt=2))
    found = records.steps(db, job.id)
    assert found is not None
    assert (found.attempt, found.batch) == (2, 80)


def test_a_checkpoint_inside_an_epoch_goes_when_the_epoch_is_recorded(db: Database) -> None:
    job, other = running(db), running(db)
    for each in (job, other):
        records.record_steps(db, each.id, 1, saved_steps(1))
    paths = records.record_epoch(db, job.id, 1, result(1), saved(1), progress(1))
    assert paths == records.files(db, job.id) == [saved(1).path, saved(1).state_path]
    assert records.steps(db, job.id) is None
    assert records.steps(db, other.id) is not None


def test_all_files_that_stay_are_those_of_whole_epochs_and_of_the_one_at_work(db: Database) -> None:
    job = running(db, checkpoints={"keep": "last"})
    record(db, job, 1)
    record(db, job, 2)
    expected = [saved(2).path, saved(2).state_path, saved_steps(3).path]
    assert records.record_steps(db, job.id, 1, saved_steps(3)) == expected
    assert records.files(db, job.id) == expected
    assert records.files(db, "0" * 24) == []


@pytest.mark.parametrize(("epoch", "is_offered"), [(1, False), (2, False), (3, True), (4, False)])
def test_only_steps_that_follow_the_newest_whole_epoch_are_gone_on_from(
    db: Database, epoch: int, is_offered: bool
) -> None:
    """An attempt that went on from an older checkpoint, the newest one being damaged, saves behind that one."""
    job = running(db)
    record(db, job, 1)
    record(db, job, 2)
    records.record_steps(db, job.id, 1, saved_steps(epoch))
    assert (records.steps(db, job.id) is not None) is is_offered
    assert saved_steps(epoch).path in records.files(db, job.id)


def test_steps_that_are_refused_leave_those_of_before(db: Database) -> None:
    job = running(db)
    records.record_steps(db, job.id, 1, saved_steps(1, 40))
    before = everything(db)
    with pytest.raises(IntegrityError):
        records.record_steps(db, job.id, 1, saved_steps(1, 80, sha256=None))
    assert everything(db) == before


def test_the_first_batch_is_timed(db: Database) -> None:
    job = running(db)
    records.record_first_batch(db, job.id, 1, progress(1, batch=1))
    (attempt,) = records.attempts(db, job.id)
    assert attempt.first_batch_at is not None
    assert timedelta(0) <= attempt.first_batch_at - attempt.started_at < timedelta(seconds=20)
    assert queue.get(db, job.id).batch == 1


def test_progress_is_what_was_last_said(db: Database) -> None:
    job = running(db)
    records.record_progress(db, job.id, 1, progress(1, phase=Phase.PREPARING, samples_per_second=None))
    records.record_progress(db, job.id, 1, progress(2, batch=5, batches=9, samples_per_second=1.5, eta_seconds=2.25))
    now = queue.get(db, job.id)
    assert (now.phase, now.epoch, now.batch, now.batches) == (Phase.TRAINING, 2, 5, 9)
    assert (now.samples_per_second, now.eta_seconds) == (1.5, 2.25)
    assert now.status == Status.RUNNING


def test_an_epoch_is_recorded_with_its_checkpoint_and_progress(db: Database) -> None:
    job = running(db)
    records.record_epoch(db, job.id, 1, result(1), saved(1, bytes=2**40), progress(1, phase=Phase.SAVING))
    (row,) = records.epochs(db, job.id)
    assert {name: getattr(row, name) for name in vars(result(1))} == vars(result(1))
    assert (row.seq, row.attempt, row.non_finite) == (1, 1, None)
    (kept,) = records.checkpoints(db, job.id)
    assert {name: getattr(kept.row, name) for name in vars(saved(1))} == vars(saved(1, bytes=2**40))
    assert (kept.row.attempt, kept.metrics, kept.is_best, kept.is_last) == (1, row, True, True)
    now = queue.get(db, job.id)
    assert (now.last_seq, now.phase, now.epoch) == (1, Phase.SAVING, 1)


def test_an_epoch_whose_checkpoint_row_is_refused_leaves_nothing_behind(db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    before = everything(db)
    with pytest.raises(IntegrityError):
        records.record_epoch(db, job.id, 1, result(2), saved(2, sha256=None), progress(2))
    with pytest.raises(IntegrityError):
        records.record_epoch(db, job.id, 1, result(1, learning_rate=None), saved(1), progress(2))
    assert everything(db) == before


def test_seq_only_grows_when_a_second_attempt_walks_over_later_epochs_again(db: Database) -> None:
    first = running(db)
    for epoch in (1, 2, 3):
        record(db, first, epoch)
    finish(db, first, Outcome.KILLED)
    second = claim(db)

    since = 3  # a poller that has read all of the first attempt
    polled: list[tuple[int, int, int]] = []
    for epoch in (2, 3, 4):
        record(db, second, epoch)
        rows = records.epochs(db, second.id, since=since)
        polled += [(row.seq, row.epoch, row.attempt) for row in rows]
        since = rows[-1].seq

    assert polled == [(4, 2, 2), (5, 3, 2), (6, 4, 2)]
    assert [(row.seq, row.epoch, row.attempt) for row in records.epochs(db, second.id)] == [(1, 1, 1), *polled]
    assert [(kept.row.epoch, kept.row.attempt) for kept in records.checkpoints(db, second.id)] == [
        (1, 1),
        (2, 2),
        (3, 2),
        (4, 2),
    ]


def test_epochs_behind_the_one_recorded_again_are_gone(db: Database) -> None:
    first, other = running(db), running(db, "worker-2")
    for epoch in (1, 2, 3):
        record(db, first, epoch)
        record(db, other, epoch)
    finish(db, first, Outcome.RELEASED)
    record(db, claim(db), 2)
    assert [(row.seq, row.epoch) for row in records.epochs(db, first.id)] == [(1, 1), (4, 2)]
    assert [kept.row.epoch for kept in records.checkpoints(db, first.id)] == [1, 2]
    assert [(row.seq, row.epoch) for row in records.epochs(db, other.id)] == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("losses", "stored"),
    [
        ({"train_loss": math.nan}, (None, 1.0, "nan")),
        ({"train_loss": math.inf}, (None, 1.0, "inf")),
        ({"test_loss": -math.inf}, (1.0, None, "-inf")),
        ({"train_loss": math.inf, "test_loss": math.nan}, (None, None, "inf")),
        ({}, (1.0, 1.0, None)),
    ],
)
def test_a_loss_that_is_not_finite_is_null_and_named(
    db: Database, losses: dict[str, float], stored: tuple[float | None, float | None, str | None]
) -> None:
    job = running(db)
    record(db, job, 1, **{"train_loss": 1.0, "test_loss": 1.0} | losses)
    (row,) = records.epochs(db, job.id)
    assert (row.train_loss, row.test_loss, row.non_finite) == stored


@pytest.mark.parametrize(
    "metric", ["gradient_norm", "test_accuracy", "test_top5_accuracy", "test_f1", "test_mae", "test_r2"]
)
def test_any_metric_that_is_not_finite_is_null_and_named(db: Database, metric: str) -> None:
    job = running(db)
    record(db, job, 1, **{metric: math.inf})
    record(db, job, 2, **{metric: 0.25})
    assert [(getattr(row, metric), row.non_finite) for row in records.epochs(db, job.id)] == [
        (None, "inf"),
        (0.25, None),
    ]


def test_the_report_is_the_newest_epochs(db: Database) -> None:
    job, other = running(db), running(db)
    for epoch in (1, 2):
        records.record_epoch(db, job.id, 1, result(epoch), saved(epoch), progress(epoch), report(epoch, wrong=epoch))
        assert records.report(db, job.id) == report(epoch, wrong=epoch)
    finish(db, job, Outcome.KILLED)
    second = claim(db)
    records.record_epoch(db, job.id, second.attempt, result(2), saved(2, 2), progress(2), report(2, wrong=7))
    assert records.report(db, job.id) == report(2, wrong=7)
    records.record_epoch(db, other.id, 1, result(1), saved(1), progress(1), report(1, wrong=9))
    assert records.report(db, job.id) == report(2, wrong=7)


def test_what_an_attempt_does_not_go_on_from_takes_report_and_certificate_with_it(db: Database) -> None:
    job = running(db)
    for epoch in (1, 2):
        records.record_epoch(
            db, job.id, 1, result(epoch), saved(epoch), progress(epoch), report(epoch), answers=b"answers"
        )
    with db.write() as session:
        session.add(ParityRow(job_id=job.id, epoch=2, sha256="ab", made_at=now(session), error="It was not."))
    finish(db, job, Outcome.KILLED)
    second = claim(db)
    records.record_start(db, job.id, second.attempt, {}, Resumed(epoch=2, batch=0, differences=[]))
    assert records.report(db, job.id).epoch == 2
    finish(db, second, Outcome.KILLED)
    third = claim(db)
    before = everything(db)
    records.record_start(db, job.id, third.attempt, {}, Resumed(epoch=1, batch=0, differences=[]))
    after = everything(db)
    assert [(len(before[name]), len(after[name])) for name in ("reports", "parities")] == [(1, 0), (1, 0)]
    with pytest.raises(NotReady):
        records.report(db, job.id)


def test_without_a_report_it_is_not_ready(db: Database) -> None:
    job = running(db)
    record(db, job, 1)  # as a regression does
    with pytest.raises(NotReady, match=r"comes with the first epoch\. Regression has none"):
        records.report(db, job.id)


def test_an_epoch_that_is_refused_leaves_the_report_and_the_checkpoints_as_they_were(db: Database) -> None:
    job = running(db, checkpoints={"keep": "last"})
    records.record_epoch(db, job.id, 1, result(1), saved(1), progress(1), report(1))
    before = everything(db)
    with pytest.raises(IntegrityError):
        records.record_epoch(db, job.id, 1, result(2), saved(2, sha256=None), progress(2), report(2))
    assert everything(db) == before


def test_epochs_are_read_from_a_cursor(db: Database) -> None:
    job = running(db)
    for epoch in range(1, 6):
        record(db, job, epoch)

    def seqs(**cursor: int) -> list[int]:
        return [row.seq for row in records.epochs(db, job.id, **cursor)]

    assert seqs() == [1, 2, 3, 4, 5]
    assert seqs(since=3) == [4, 5]
    assert seqs(since=1, limit=2) == [2, 3]
    assert seqs(since=5) == seqs(since=99) == []
    assert records.epochs(db, "0" * 24) == []
    assert records.checkpoints(db, "0" * 24) == []
    assert records.events(db, "0" * 24) == []


def _accuracies(db: Database, *accuracies: float) -> str:
    """A job with a checkpoint for each of these test accuracies."""
    job = running(db)
    for epoch, accuracy in enumerate(accuracies, start=1):
        record(db, job, epoch, test_accuracy=accuracy)
    return job.id


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [((0.5, 0.9, 0.7), 2), ((0.9, 0.9, 0.9), 1), ((0.1, 0.8, 0.8), 2), ((0.1, 0.2, 0.3), 3), ((0.0, 0.0), 1)],
)
def test_the_best_checkpoint_is_the_earliest_of_the_most_accurate(
    db: Database, accuracies: tuple[float, ...], best: int
) -> None:
    job_id = _accuracies(db, *accuracies)
    kept = records.checkpoints(db, job_id)
    assert [each.row.epoch for each in kept if each.is_best] == [best]
    assert [each.row.epoch for each in kept if each.is_last] == [len(accuracies)]
    assert records.checkpoint(db, job_id, "best").row.epoch == best
    assert records.checkpoint(db, job_id, "last").row.epoch == len(accuracies)


def test_a_checkpoint_is_found_by_its_epoch(db: Database) -> None:
    job = running(db)
    for epoch in (1, 2, 12):
        record(db, job, epoch)
    assert [records.checkpoint(db, job.id, str(epoch)).row.epoch for epoch in (1, 2, 12)] == [1, 2, 12]


def test_a_checkpoint_that_is_not_there_is_not_found(db: Database) -> None:
    job_id = _accuracies(db, 0.5, 0.6)
    for which in ("0", "3", "-1", "01", "1.0", "", "first", "BEST"):
        with pytest.raises(NotFound):
            records.checkpoint(db, job_id, which)


def test_before_its_first_checkpoint_a_job_is_not_ready(db: Database) -> None:
    job = running(db)
    assert records.checkpoints(db, job.id) == []
    for which in ("best", "last", "1"):
        with pytest.raises(NotReady):
            records.checkpoint(db, job.id, which)


def test_the_job_that_succeeded_last_answers_whatever_was_created_last(db: Database) -> None:
    older, newer = running(db), running(db)
    for job in (newer, older):
        record(db, job, 1)
        finish(db, job, Outcome.SUCCEEDED)
    for status in Status:
        if status is not Status.SUCCEEDED:
            job_with_status(db, status)
    assert records.newest_succeeded(db) == older.id


def test_without_a_job_that_succeeded_no_job_answers(db: Database) -> None:
    for status in Status:
        if status is not Status.SUCCEEDED:
            job_with_status(db, status)
    with pytest.raises(NotReady):
        records.newest_succeeded(db)


def test_times_are_aware_and_in_utc(db: Database) -> None:
    job = running(db)
    record(db, job, 1)
    workers.register(db, "worker-1", "host-1")
    (row,) = records.epochs(db, job.id)
    now = queue.get(db, job.id)
    times: list[Any] = [now.created_at, now.started_at, now.lease_expires_at, row.recorded_at]
    assert [each.utcoffset() for each in times] == [timedelta(0)] * 4
    with db.read() as session:
        assert session.get_one(Epoch, (job.id, 1)).recorded_at == row.recorded_at
