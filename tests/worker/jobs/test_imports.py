"""A job that came as a bundle: one row of each kind, and nothing that a training could go on from."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from worker.jobs import aliases, control, imports, listing, parities, queue, records
from worker.jobs.bundle import BundleCard, Imported, Metrics
from worker.jobs.db import Database
from worker.jobs.errors import Conflict
from worker.jobs.ids import new_id
from worker.jobs.spec import Spec
from worker.jobs.states import Status
from worker.jobs.tables import Job

ORIGINAL = "9" * 24


def found(**provenance: object) -> Imported:
    card = BundleCard(
        job=ORIGINAL,
        name="boots",
        labels={"team": "b"},
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        provenance=dict(provenance),
        metrics=Metrics(test_accuracy=0.5, learning_rate=0.1, peak_memory_bytes=3 * 2**30),
    )
    return Imported(
        card=card,
        spec=Spec().model_dump(mode="json"),
        epoch=4,
        sha256="ab" * 32,
        bytes=3 * 2**31,
        weights_sha256="cd" * 32,
        largest_difference=1e-7,
    )


def add(db: Database) -> Job:
    job_id = new_id()
    return imports.add(db, job_id, f"jobs/{job_id}/checkpoints/imported.safetensors", found(seed=3))


def test_it_has_succeeded_with_one_epoch_and_one_checkpoint_without_a_state(db: Database) -> None:
    job = queue.get(db, add(db).id)
    assert (job.status, job.imported, job.dataset_id, job.attempt) == (Status.SUCCEEDED, True, None, 0)
    assert (job.name, job.labels, job.spec) == ("boots", {"team": "b"}, Spec().model_dump(mode="json"))
    assert [(each.status, each.reason) for each in records.transitions(db, job.id)] == [("succeeded", "imported")]
    (epoch,) = records.epochs(db, job.id)
    assert (epoch.epoch, epoch.test_accuracy, epoch.peak_memory_bytes) == (4, 0.5, 3 * 2**30)
    (kept,) = records.checkpoints(db, job.id)
    assert (kept.row.epoch, kept.row.sha256, kept.row.bytes) == (4, "ab" * 32, 3 * 2**31)
    assert (kept.row.state_path, kept.row.weights_sha256) == (None, "cd" * 32)
    assert {records.checkpoint(db, job.id, which).row.epoch for which in ("best", "last", "4")} == {4}
    assert records.attempts(db, job.id) == []


def test_it_says_where_it_is_from(db: Database) -> None:
    provenance = queue.get(db, add(db).id).provenance
    from_there = {"job": ORIGINAL, "created_at": "2026-01-02T03:04:05+00:00", "sha256": "ab" * 32}
    assert provenance == {"seed": 3, "imported": from_there}


def test_one_that_was_imported_there_too_says_both_and_its_own_digest_is_the_one_that_was_checked(db: Database) -> None:
    before = {"job": "7" * 24, "sha256": "ef" * 32}
    job = imports.add(db, new_id(), "x.safetensors", found(imported=before))
    assert job.provenance is not None
    told = job.provenance["imported"]
    assert (told["job"], told["sha256"], told["imported"]) == (ORIGINAL, "ab" * 32, before)


def test_the_same_bundle_twice_is_two_jobs(db: Database) -> None:
    first, second = add(db), add(db)
    assert first.id != second.id
    assert {job.id for job in listing.jobs(db)[0]} == {first.id, second.id}


@pytest.mark.parametrize(
    "ask",
    [
        lambda db, job_id: control.extend(db, job_id, 1),
        control.retry,
        control.resume,
        control.pause,
        control.cancel,
    ],
    ids=["extend", "retry", "resume", "pause", "cancel"],
)
def test_it_cannot_be_trained_on(db: Database, ask: Callable[[Database, str], Job]) -> None:
    job = add(db)
    with pytest.raises(Conflict):
        ask(db, job.id)
    assert queue.get(db, job.id).status == Status.SUCCEEDED
    assert queue.claim(db, "worker-1", 60.0) is None


def test_it_wants_no_certificate_and_can_be_named_and_deleted(db: Database) -> None:
    job = add(db)
    assert parities.wanting(db) is None
    aliases.put(db, "boots", job.id, "best")
    assert aliases.target(db, "boots").job_id == job.id
    with pytest.raises(Conflict):
        control.delete(db, job.id)
    aliases.remove(db, "boots")
    control.delete(db, job.id)
    assert listing.jobs(db) == ([], False)
