import errno
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

import worker.jobs.db
from tests.tiny import prepare_tiny, ready_tiny
from tests.worker.jobs import making
from tests.worker.jobs.making import make_ready
from worker.datasets.arrays import Writer
from worker.datasets.looks import Looks, summarise
from worker.datasets.opening import CARD
from worker.jobs import answers, queue, records, submitting, versions
from worker.jobs.db import Database
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.processes import EXIT_DONE, EXIT_STALE, EXIT_STOPPED, Stopped
from worker.jobs.settings import Settings
from worker.jobs.spec import MLP, Spec
from worker.jobs.states import EventKind, Outcome, Status
from worker.jobs.tables import Job
from worker.training import attempt as training
from worker.training import checkpoints, engine, losses, progress

SPEC = Spec(model=MLP(hidden=[16], dropout=0.25), epochs=4)
Run = Callable[..., tuple[int, Job]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path)


@pytest.fixture
def db(settings: Settings) -> Database:
    db = Database(settings.resolved_database_url)
    db.migrate()
    return db


@pytest.fixture
def run(settings: Settings, db: Database) -> Run:
    """Claims the oldest queued job and runs the attempt in this process."""

    def run() -> tuple[int, Job]:
        job = queue.claim(db, "worker", 30)
        assert job is not None
        code = training.run(settings, job.id, job.attempt)
        return code, queue.get(db, job.id)

    return run


def last_sha256(db: Database, job_id: str) -> str:
    return records.checkpoint(db, job_id, "last").row.sha256


def weights(settings: Settings, db: Database, job_id: str) -> dict[str, torch.Tensor]:
    row = records.checkpoint(db, job_id, "last").row
    return checkpoints.load(settings.data_dir / row.path, row.sha256).weights


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the reporter raise Stopped after so many batches, without saving: as if the process were killed."""
    real = progress.Reporter._between_batches
    left = batches

    def between(self: progress.Reporter) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        real(self)

    monkeypatch.setattr(progress.Reporter, "_is_time", lambda _: True)  # it looks after each batch
    monkeypatch.setattr(progress.Reporter, "_between_batches", between)


def test_an_attempt_trains_records_and_settles_its_job(settings: Settings, db: Database, run: Run) -> None:
    prepared = ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    code, job = run()
    assert (code, job.status) == (EXIT_DONE, Status.SUCCEEDED)
    assert [row.epoch for row in records.epochs(db, job.id)] == [1, 2, 3, 4]
    assert [row.seq for row in records.epochs(db, job.id)] == [1, 2, 3, 4]
    kept = records.checkpoints(db, job.id)
    assert len({each.row.weights_sha256 for each in kept}) == 4
    report, answered = answers.of_job(db, job.id)
    assert (report.epoch, report.accuracy) == (4, records.epochs(db, job.id)[-1].test_accuracy)
    assert answered is not None
    assert list(answered.labels) == prepared.test.labels.tolist()
    assert sum(answered.right()) / len(answered) == report.accuracy
    (tried,) = records.attempts(db, job.id)
    assert tried.outcome == Outcome.SUCCEEDED
    assert tried.first_batch_at is not None
    assert job.provenance is not None
    assert job.provenance["dataset"]["sha256"] == prepared.card.sha256
    assert job.provenance["parameters"] == 784 * 16 + 16 + 16 * 10 + 10
    assert job.eta_seconds is None


def test_checkpoints_say_what_the_training_pictures_look_like_and_that_changes_no_bit(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = ready_tiny(db, settings.data_dir)
    found = []
    for summarised in (summarise, lambda _: Looks(is_grey=True, directions=[])):
        monkeypatch.setattr("worker.training.attempt.summarise", summarised)
        submitting.enqueue(db, SPEC)
        _, job = run()
        row = records.checkpoint(db, job.id, "last").row
        metadata = checkpoints.load(settings.data_dir / row.path, row.sha256).metadata
        found.append((row.weights_sha256, metadata.looks))
    assert found[0][0] == found[1][0]
    assert found[0][1] == summarise(prepared.train.images)
    assert len(json.dumps(found[0][1].model_dump(mode="json"))) < 8_000


def test_the_same_spec_twice_gives_the_same_bits_and_another_seed_others(
    settings: Settings, db: Database, run: Run
) -> None:
    ready_tiny(db, settings.data_dir)
    found = []
    for seed in (0, 0, 1):
        submitting.enqueue(db, SPEC.model_copy(update={"seed": seed}))
        found.append(weights(settings, db, run()[1].id))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["1.weight"], found[2]["1.weight"])


@pytest.mark.parametrize("batches", [9, 17, 30])  # in epoch 1 (nothing saved yet), 2 and 4; 8 + 1 batches an epoch
def test_a_stopped_attempt_goes_on_from_its_last_checkpoint_to_the_same_bits(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    _, whole = run()

    submitting.enqueue(db, SPEC)
    with monkeypatch.context() as patch:
        stop_after(batches - 1, patch)
        code, job = run()
    assert (code, job.status) == (EXIT_STOPPED, Status.RUNNING)
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    code, job = run()
    assert (code, job.status, job.attempt) == (EXIT_DONE, Status.SUCCEEDED, 2)
    assert records.attempts(db, job.id)[1].resumed_from == ((batches - 1) // 9 or None)

    first, second = weights(settings, db, whole.id), weights(settings, db, job.id)
    assert all(torch.equal(first[name], second[name]) for name in first)
    curves = [
        [(row.epoch, row.train_loss, row.test_accuracy) for row in records.epochs(db, j.id)] for j in (whole, job)
    ]
    assert curves[0] == curves[1]


def ask_to_stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the reporter find itself asked to stop after so many batches, as by SIGTERM."""
    real = progress.Reporter._between_batches
    left = batches

    def between(self: progress.Reporter) -> None:
        nonlocal left
        left -= 1
        self._stop_requested = left <= 0
        real(self)

    monkeypatch.setattr(progress.Reporter, "_is_time", lambda _: True)
    monkeypatch.setattr(progress.Reporter, "_between_batches", between)


def files(settings: Settings, job: Job) -> list[str]:
    """Of its checkpoints, relative to the data folder."""
    folder = settings.data_dir / checkpoints_folder(job.id)
    return sorted(str(path.relative_to(settings.data_dir)) for path in folder.iterdir())


def released(db: Database, job: Job) -> None:
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)


def test_an_attempt_that_is_asked_to_stop_saves_inside_the_epoch(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    _, whole = run()
    submitting.enqueue(db, SPEC)
    for batches in (3, 4, 9):  # twice in epoch 1; 8 batches of training and 1 of the test
        with monkeypatch.context() as patch:
            ask_to_stop_after(batches, patch)
            code, job = run()
        assert code == EXIT_STOPPED
        released(db, job)
    folder = settings.data_dir / checkpoints_folder(job.id)
    assert len(list(folder.glob("*.steps.pt"))) == 1
    _, job = run()
    assert job.status == Status.SUCCEEDED
    attempts = records.attempts(db, job.id)
    assert [(each.resumed_from, each.resumed_batch) for each in attempts] == [(None, None), (0, 3), (0, 7), (1, 7)]
    assert [each.resume for each in attempts] == [None, "exact", "exact", "exact"]
    assert (
        records.checkpoint(db, job.id, "4").row.weights_sha256
        == records.checkpoint(db, whole.id, "4").row.weights_sha256
    )
    assert list(folder.glob("*.steps.pt")) == []
    assert sorted(str(path.relative_to(settings.data_dir)) for path in folder.iterdir()) == sorted(
        records.files(db, job.id)
    )


def test_a_training_on_something_else_says_that_it_is_no_longer_the_same(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    with monkeypatch.context() as patch:
        ask_to_stop_after(12, patch)
        _, job = run()
    released(db, job)
    with db.write() as session:
        row = session.get_one(Job, job.id)
        provenance = row.provenance or {}
        row.provenance = {**provenance, "device_name": "another", "threads": 64}
    _, job = run()
    assert job.status == Status.SUCCEEDED
    second = records.attempts(db, job.id)[1]
    assert second.resume == "approximate"
    assert second.resume_reason is not None
    assert second.resume_reason.startswith("device name was another and is ")
    assert "; threads was 64 and is " in second.resume_reason


def test_a_long_epoch_is_saved_inside_from_time_to_time(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC.model_copy(update={"epochs": 1}))
    job = queue.claim(db, "worker", 30)
    assert job is not None
    saved = []
    real = records.record_steps

    def record(*arguments: Any) -> list[str]:
        saved.append((arguments[3].epoch, arguments[3].batch))
        return real(*arguments)

    monkeypatch.setattr(records, "record_steps", record)
    monkeypatch.setattr(progress.Reporter, "_is_time", lambda _: True)
    monkeypatch.setattr(progress, "_SAVE_SHARE", 0)
    training.run(settings.model_copy(update={"checkpoint_seconds": 1e-9}), job.id, job.attempt)
    assert saved == [(1, batch) for batch in range(1, 8)]  # behind the eighth the epoch itself is saved
    assert records.steps(db, job.id) is None


def test_a_corrupt_checkpoint_inside_an_epoch_costs_that_part_of_it(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    with monkeypatch.context() as patch:
        ask_to_stop_after(9 + 3, patch)
        _, job = run()
    released(db, job)
    inside = records.steps(db, job.id)
    assert inside is not None
    damaged = settings.data_dir / inside.path
    damaged.write_bytes(damaged.read_bytes()[:-1])
    _, job = run()
    assert (job.status, [row.seq for row in records.epochs(db, job.id)]) == (Status.SUCCEEDED, [1, 2, 3, 4])
    second = records.attempts(db, job.id)[1]
    assert (second.resumed_from, second.resumed_batch) == (1, 0)
    (event,) = records.events(db, job.id)
    assert event.kind == EventKind.CHECKPOINT_CORRUPT
    assert event.detail == "The checkpoint behind batch 3 of epoch 2 is corrupt; the training goes on from before it."


def test_what_an_attempt_that_was_killed_has_left_is_removed_by_the_next(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    with monkeypatch.context() as patch:
        stop_after(9 + 3, patch)
        _, job = run()
    released(db, job)
    folder = settings.data_dir / checkpoints_folder(job.id)
    for name in ("epoch-000002-attempt-1.safetensors", ".epoch-000002-attempt-1.state.pt.writing"):
        (folder / name).touch()
    stop_after(0, monkeypatch)  # it gets no further than to begin
    run()
    assert sorted(str(path.relative_to(settings.data_dir)) for path in folder.iterdir()) == sorted(
        records.files(db, job.id)
    )


def test_a_disk_that_gets_full_fails_the_job_and_keeps_what_it_has(settings: Settings, db: Database) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    job = queue.claim(db, "worker", 30)
    assert job is not None
    free = iter([2**40] * 4 + [300 * 2**20] * 100)  # two checkpoints of two files fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=next(free)))
        spare = settings.model_copy(update={"min_free_bytes": 300 * 2**20})
        assert training.run(spare, job.id, job.attempt) == EXIT_DONE
    job = queue.get(db, job.id)
    assert (job.status, error_of(job)["code"], error_of(job)["phase"]) == (Status.FAILED, "disk_full", "saving")
    assert error_of(job)["suggestion"] == {"checkpoints": {"keep": "last"}}
    assert [kept.row.epoch for kept in records.checkpoints(db, job.id)] == [1, 2]
    assert checkpoints.load(
        settings.data_dir / records.checkpoint(db, job.id, "last").row.path, last_sha256(db, job.id)
    )


def test_a_database_that_stays_away_is_not_the_jobs_fault(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("COMMIT", {}, Exception("the server closed the connection"))

    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    monkeypatch.setattr(worker.jobs.db, "_INSIST_SECONDS", 0)
    monkeypatch.setattr(records, "record_epoch", away)
    code, job = run()
    assert (code, job.status) == (EXIT_STOPPED, Status.RUNNING)  # its worker gives it back


def test_a_system_call_that_finds_the_disk_full_is_told_likewise(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    monkeypatch.setattr(os, "fsync", full)
    _, job = run()
    assert (job.status, error_of(job)["code"]) == (Status.FAILED, "disk_full")
    assert list((settings.data_dir / checkpoints_folder(job.id)).iterdir()) == []


def test_a_corrupt_last_checkpoint_costs_one_epoch(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    with monkeypatch.context() as patch:
        stop_after(9 + 9 + 3, patch)
        _, job = run()
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    damaged = settings.data_dir / records.checkpoint(db, job.id, "2").row.path
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    _, job = run()
    assert job.status == Status.SUCCEEDED
    assert records.attempts(db, job.id)[1].resumed_from == 1
    assert [event.kind for event in records.events(db, job.id)] == [EventKind.CHECKPOINT_CORRUPT]
    assert [(row.epoch, row.seq) for row in records.epochs(db, job.id)] == [(1, 1), (2, 3), (3, 4), (4, 5)]


def test_a_dataset_whose_files_are_gone_fails_the_job(settings: Settings, db: Database, run: Run) -> None:
    ready_tiny(db, settings.data_dir)
    shutil.rmtree(settings.data_dir / "datasets")
    submitting.enqueue(db, SPEC)
    _, job = run()
    assert (job.status, error_of(job)["code"]) == (Status.FAILED, "dataset_missing")
    assert error_of(job)["phase"] == "preparing"


def change_a_pixel(settings: Settings) -> None:
    path = settings.data_dir / "datasets" / "fashion-mnist-v1" / "train_images.npy"
    contents = bytearray(path.read_bytes())
    contents[-1] ^= 1
    path.write_bytes(contents)


def test_a_job_does_not_go_on_with_other_pictures(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC)
    with monkeypatch.context() as patch:
        stop_after(9 + 3, patch)
        _, job = run()
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    change_a_pixel(settings)
    _, job = run()
    assert (job.status, error_of(job)["code"]) == (Status.FAILED, "dataset_changed")
    assert len(records.epochs(db, job.id)) == 1  # what was trained stays


def test_a_regression_learns_numbers_and_is_measured_by_distances(settings: Settings, db: Database, run: Run) -> None:
    """The target is the mean ink, which a linear network can learn exactly."""
    images = prepare_tiny(settings.data_dir / "classes").train.images
    folder = settings.data_dir / "datasets" / "fashion-mnist-v1"
    folder.mkdir(parents=True)
    writer = Writer(folder, (1, 28, 28))
    for part in (images[:400], images[400:]):
        writer.add(part.numpy(), (part.float() / 255).mean(dim=(1, 2, 3)).unsqueeze(1).numpy())
        writer.end_split()
    card = making.card(
        task="regression", classes=[], targets=["ink"], train_count=400, test_count=100, sha256=writer.sha256
    )
    (folder / CARD).write_text(card.model_dump_json())
    make_ready(db, card)
    with db.write() as session:  # as if it had been uploaded so
        session.execute(text("UPDATE datasets SET form = :form"), {"form": '{"task": "regression"}'})
    (settings.data_dir / "datasets" / "fashion-mnist-v1").rename(
        settings.data_dir / "datasets" / versions.newest(db)[0].id
    )
    spec = Spec.model_validate(
        {"loss": {"name": "mse"}, "model": {"hidden": []}, "epochs": 12, "dataset": {"version": 1}}
    )
    submitting.enqueue(db, spec)
    _, job = run()
    assert job.status == Status.SUCCEEDED, job.error
    first, *_, last = records.epochs(db, job.id)
    assert (last.test_accuracy, last.non_finite) == (None, None)
    assert last.test_mae is not None
    assert first.test_mae is not None
    assert last.test_r2 is not None
    assert first.test_r2 is not None
    assert last.test_mae < first.test_mae
    assert 0 < last.test_r2 < 1
    assert first.test_r2 < 0  # worse than always saying the mean
    (best,) = [kept for kept in records.checkpoints(db, job.id) if kept.is_best]
    assert best.metrics.test_loss == min(row.test_loss or math.inf for row in records.epochs(db, job.id))


def test_an_absent_gpu_fails_the_job(settings: Settings, db: Database, run: Run) -> None:
    ready_tiny(db, settings.data_dir)
    submitting.enqueue(db, SPEC.model_copy(update={"device": "cuda:99"}))
    _, job = run()
    assert (job.status, error_of(job)["code"]) == (Status.FAILED, "device_unavailable")


def test_an_unexpected_error_keeps_its_traceback_for_the_log_and_a_sentence_for_the_user(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    monkeypatch.setattr(engine, "test_loop", lambda *_: 1 / 0)
    submitting.enqueue(db, SPEC)
    _, job = run()
    assert job.status == Status.FAILED
    assert error_of(job)["code"] == "internal"
    assert error_of(job)["phase"] == "training"
    assert "ZeroDivisionError" in error_of(job)["traceback_tail"]
    assert "ZeroDivisionError" not in error_of(job)["message"]


def test_an_attempt_that_lost_its_job_leaves_and_writes_nothing_more(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    job_id = submitting.enqueue(db, SPEC).id
    assert queue.claim(db, "frozen", 30) is not None
    real = records.record_epoch

    def taken_over_before(*arguments: Any, **named: Any) -> None:
        queue.rescue(db, max_attempts=3, dead_workers=["frozen"])
        assert queue.claim(db, "other", 30) is not None
        real(*arguments, **named)

    monkeypatch.setattr(records, "record_epoch", taken_over_before)
    assert training.run(settings, job_id, 1) == EXIT_STALE
    job = queue.get(db, job_id)
    assert (job.status, job.attempt) == (Status.RUNNING, 2)
    assert records.epochs(db, job_id) == []


def submit(db: Database, **fields: Any) -> str:
    return submitting.enqueue(db, Spec.model_validate({"model": {"hidden": [16]}} | fields)).id


def files_of(settings: Settings, job_id: str) -> list[str]:
    return sorted(path.name for path in (settings.data_dir / "jobs" / job_id / "checkpoints").iterdir())


def test_only_the_checkpoints_that_the_spec_keeps_stay_on_the_disk(settings: Settings, db: Database, run: Run) -> None:
    ready_tiny(db, settings.data_dir)
    job_id = submit(db, checkpoints={"keep": "last"}, epochs=3)
    run()
    assert files_of(settings, job_id) == ["epoch-000003-attempt-1.safetensors", "epoch-000003-attempt-1.state.pt"]
    assert [kept.row.epoch for kept in records.checkpoints(db, job_id)] == [3]
    assert [row.epoch for row in records.epochs(db, job_id)] == [1, 2, 3]


def test_a_training_that_no_longer_gets_better_ends_early_and_has_succeeded(
    settings: Settings, db: Database, run: Run
) -> None:
    ready_tiny(db, settings.data_dir)
    early = {"metric": "test_accuracy", "patience": 2, "min_delta": 1.0}  # the first epoch is never beaten
    job_id = submit(db, early_stopping=early, epochs=9)
    _, job = run()
    assert job.status == Status.SUCCEEDED
    assert [row.epoch for row in records.epochs(db, job_id)] == [1, 2, 3]
    (event,) = records.events(db, job_id)
    assert (event.kind, event.epoch) == ("stopped_early", 3)
    assert event.detail == "test_accuracy has not got better for 2 epochs; stopped after epoch 3."


def test_early_stopping_counts_the_epochs_before_an_interruption(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    early = {"metric": "test_accuracy", "patience": 2, "min_delta": 1.0}
    job_id = submit(db, early_stopping=early, epochs=9)
    with monkeypatch.context() as patch:
        stop_after(9 + 9 + 3, patch)
        _, job = run()
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    _, job = run()
    assert job.status == Status.SUCCEEDED
    assert [row.epoch for row in records.epochs(db, job_id)] == [1, 2, 3]


def test_an_attempt_that_died_after_its_last_epoch_trains_no_other(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping ended it, but the job was not told: the next attempt must come to the same end."""
    ready_tiny(db, settings.data_dir)
    early = {"metric": "test_accuracy", "patience": 2, "min_delta": 1.0}
    job_id = submit(db, early_stopping=early, epochs=9)
    with monkeypatch.context() as patch:
        patch.setattr(queue, "finish", lambda *_, **__: None)  # dies before
        run()
    queue.finish(db, job_id, 1, Outcome.RELEASED, max_attempts=3)
    _, job = run()
    assert (job.status, job.attempt) == (Status.SUCCEEDED, 2)
    assert [row.epoch for row in records.epochs(db, job_id)] == [1, 2, 3]
    assert [event.kind for event in records.events(db, job_id)] == ["stopped_early"]


def test_memory_that_runs_out_beside_the_loops_is_told_as_such(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)

    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(checkpoints, "save", full)
    submit(db)
    _, job = run()
    assert (error_of(job)["code"], error_of(job)["phase"]) == ("out_of_memory", "saving")


def test_a_resumed_job_does_not_need_the_weights_that_it_began_with(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    model = {"name": "squeezenet1_1"}
    first = submit(db, model=model, epochs=1)
    run()
    (settings.data_dir / "weights").mkdir()
    file = settings.data_dir / "weights" / "mine.safetensors"
    shutil.copy(settings.data_dir / records.checkpoint(db, first, "last").row.path, file)
    submit(db, model=model | {"weights": "mine"}, epochs=2)
    with monkeypatch.context() as patch:
        stop_after(9 + 3, patch)
        _, job = run()
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    file.unlink()
    _, job = run()
    assert job.status == Status.SUCCEEDED, job.error


def test_arithmetic_that_need_not_be_exact_here_is_not_taken_over(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    job_id = submit(db)
    job = queue.claim(db, "worker", 30)
    assert job is not None
    with monkeypatch.context() as patch:
        stop_after(9 + 3, patch)
        training.run(settings, job_id, 1, ["medium"])
    torch.set_float32_matmul_precision("highest")
    queue.finish(db, job_id, 1, Outcome.RELEASED, max_attempts=3)
    run()  # on a machine where only "highest" is exact
    provenance = queue.get(db, job_id).provenance
    assert provenance is not None
    assert provenance["arithmetic"] == "highest"


def test_a_loss_that_explodes_fails_the_job_and_keeps_what_was_finite(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    job_id = submit(db)
    real = losses.AverageLoss.__call__
    calls = 0

    def explode(self: losses.AverageLoss, pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(self, pred * (math.inf if calls == 8 + 1 + 3 else 1), y)

    monkeypatch.setattr(losses.AverageLoss, "__call__", explode)
    _, job = run()
    assert job.status == Status.FAILED
    error = error_of(job)
    assert (error["code"], error["phase"]) == ("diverged", "training")
    assert error["message"] == "The loss became nan in batch 3 of epoch 2."
    assert error["hint"] == "Lower the learning rate (now 0.001), or clip the gradient."
    assert error["suggestion"] == {"optimizer": {"lr": 0.0001}}
    assert [kept.row.epoch for kept in records.checkpoints(db, job_id)] == [1]
    (event,) = records.events(db, job_id)
    assert (event.kind, event.epoch) == ("diverged", 2)


def test_a_batch_that_does_not_fit_is_an_event_and_changes_no_curve(
    settings: Settings, db: Database, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    fields: dict[str, Any] = {"batch_size": 64, "epochs": 2, "optimizer": {"lr": 0.1}}
    whole = submit(db, **fields)
    run()
    in_parts = submit(db, accumulation=4, **fields)
    run()

    real = torch.nn.Linear.forward

    def narrow(self: torch.nn.Linear, X: torch.Tensor) -> torch.Tensor:
        if self.training and len(X) > 16:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return real(self, X)

    monkeypatch.setattr(torch.nn.Linear, "forward", narrow)
    healed = submit(db, **fields)
    run()
    curves = {job_id: [row.train_loss for row in records.epochs(db, job_id)] for job_id in (whole, in_parts, healed)}
    assert curves[healed] == curves[in_parts]
    assert curves[healed] == pytest.approx(curves[whole], abs=1e-5)
    events = records.events(db, healed)
    assert [event.kind for event in events] == ["micro_batch", "micro_batch"]
    assert events[0].detail.startswith("64 pictures at once did not fit into memory; from here on 32 go")
    assert events[1].detail.startswith("32 pictures at once did not fit into memory; from here on 16 go")
    assert records.events(db, whole) == []


def test_weights_to_begin_with_that_are_missing_fail_the_job(settings: Settings, db: Database, run: Run) -> None:
    ready_tiny(db, settings.data_dir)
    submit(db, model={"name": "squeezenet1_1", "weights": "mine"})
    _, job = run()
    assert (job.status, error_of(job)["code"]) == (Status.FAILED, "weights_missing")
    assert str(settings.data_dir) not in error_of(job)["message"]


def test_a_checkpoint_of_one_job_is_what_another_begins_with(settings: Settings, db: Database, run: Run) -> None:
    ready_tiny(db, settings.data_dir)
    model = {"name": "squeezenet1_1"}
    first = submit(db, model=model, epochs=1)
    run()
    (settings.data_dir / "weights").mkdir()
    row = records.checkpoint(db, first, "last").row
    shutil.copy(settings.data_dir / row.path, settings.data_dir / "weights" / "mine.safetensors")
    second = submit(db, model=model | {"weights": "mine"}, epochs=1, optimizer={"lr": 1e-30})
    run()
    assert records.checkpoint(db, second, "last").row.weights_sha256 == row.weights_sha256


def test_threads_are_those_that_the_claim_pinned(settings: Settings, db: Database, run: Run) -> None:
    ready_tiny(db, settings.data_dir)
    submit(db, threads=1, epochs=1)
    _, job = run()
    assert job.provenance is not None
    assert job.provenance["threads"] == job.threads == 1


def error_of(job: Job) -> dict[str, Any]:
    assert job.error is not None
    json.dumps(job.error)
    return job.error


def test_a_job_keeps_its_arithmetic_where_another_is_faster_now(
    settings: Settings, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready_tiny(db, settings.data_dir)
    job_id = submit(db)
    before = torch.get_float32_matmul_precision()
    for attempt, exact in ((1, ["highest", "medium"]), (2, ["medium", "highest"])):
        assert queue.claim(db, "worker", 30) is not None
        with monkeypatch.context() as patch:
            stop_after(9 + 3, patch)
            training.run(settings, job_id, attempt, exact)  # type: ignore[arg-type]
        queue.finish(db, job_id, attempt, Outcome.RELEASED, max_attempts=3)
    torch.set_float32_matmul_precision(before)
    assert (queue.get(db, job_id).provenance or {})["arithmetic"] == "highest"
    assert records.attempts(db, job_id)[1].resume == "exact"
