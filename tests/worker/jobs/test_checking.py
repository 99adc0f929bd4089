"""What is wrong is found; what is as it should be is not."""

import fcntl
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlmodel import Session

from tests.worker.jobs.imported import imported
from tests.worker.jobs.kept_files import filled, make_old, put
from worker.jobs import aliases, checking, control, datasets, queue, records, versions
from worker.jobs.checking import check
from worker.jobs.db import Database
from worker.jobs.leftovers import checkpoints_folder
from worker.jobs.states import Outcome
from worker.jobs.tables import Job


@pytest.fixture
def job(db: Database, tmp_path: Path) -> Job:
    """The one that is being trained, beside others."""
    with db.write() as session:
        session.execute(text("DELETE FROM datasets"))
    job = filled(db, tmp_path)
    make_old(tmp_path)
    return job


def do(db: Database, statement: str, job: Job) -> None:
    with db.write() as session:
        session.execute(text(statement), {"job": job.id})


def test_nothing_is_wrong(db: Database, tmp_path: Path, job: Job) -> None:
    assert check(db, tmp_path, digests=True) == []


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("UPDATE epochs SET epoch = 2 WHERE job_id = :job", "it has 1 rows of metrics for 2 epochs."),
        ("UPDATE jobs SET last_seq = 0 WHERE id = :job", "its last seq is 0, that of its newest metrics 1."),
        ("UPDATE jobs SET attempt = 2 WHERE id = :job", "it is at attempt 2 and has 1, up to number 1."),
        (
            "UPDATE attempts SET outcome = 'killed', ended_at = started_at WHERE job_id = :job",
            "it is running and has 0 attempts that have not ended.",
        ),
        (
            "DELETE FROM checkpoints WHERE job_id = :job",
            "its newest checkpoint is of epoch 0, its newest metrics of epoch 1.",
        ),
        (
            "UPDATE step_checkpoints SET epoch = 3 WHERE job_id = :job",
            "it has a checkpoint inside epoch 3, its newest metrics are of epoch 1.",
        ),
        (
            "UPDATE attempts SET number = 0 WHERE job_id = :job",
            "it is at attempt 1 and has 1, up to number 0.",
        ),
    ],
)
def test_rows_that_disagree_are_found(db: Database, tmp_path: Path, job: Job, damage: str, sentence: str) -> None:
    do(db, damage, job)
    assert sentence in [finding.sentence for finding in check(db, tmp_path) if finding.subject == job.id]


def test_a_seq_that_does_not_grow_is_found(db: Database, tmp_path: Path, job: Job) -> None:
    with db.write() as session:
        session.execute(text("UPDATE epochs SET seq = 9 WHERE epoch = 1"))
        session.execute(text("UPDATE jobs SET last_seq = 9"))
    sentences = [finding.sentence for finding in check(db, tmp_path)]
    assert sentences == ["the seq of epoch 2 is not above that of epoch 1."]


def test_a_job_that_succeeded_too_early_is_found(db: Database, tmp_path: Path, job: Job) -> None:
    queue.finish(db, job.id, job.attempt, Outcome.SUCCEEDED, max_attempts=3)
    assert "it has succeeded with 1 of 9 epochs." in [finding.sentence for finding in check(db, tmp_path)]
    do(
        db,
        "INSERT INTO events (job_id, seq, at, attempt, epoch, kind, detail) "
        "VALUES (:job, 1, CURRENT_TIMESTAMP, 1, 1, 'stopped_early', 'x')",
        job,
    )
    assert not [finding for finding in check(db, tmp_path) if finding.subject == job.id]


def test_an_imported_job_is_as_it_should_be(db: Database, tmp_path: Path, job: Job) -> None:
    brought = imported(db, tmp_path)
    make_old(tmp_path)
    assert check(db, tmp_path, digests=True) == []
    (path,) = records.files(db, brought.id)
    (tmp_path / path).unlink()
    (finding,) = check(db, tmp_path)
    assert (finding.subject, finding.sentence) == (path, f"it is missing. It is of {brought.id}.")
    do(db, "DELETE FROM checkpoints WHERE job_id = :job", brought)
    (finding,) = check(db, tmp_path)
    assert finding.sentence == "its newest checkpoint is of epoch 0, its newest metrics of epoch 3."


def test_an_alias_whose_checkpoint_is_gone_is_found(db: Database, tmp_path: Path, job: Job) -> None:
    for name, which in (("shoes", "1"), ("hats", "1")):
        aliases.put(db, name, job.id, which)
    assert check(db, tmp_path) == []
    do(db, "UPDATE aliases SET epoch = 7 WHERE name = 'shoes'", job)
    (finding,) = check(db, tmp_path)
    assert (finding.subject, finding.is_orphan) == ("alias shoes", False)
    assert finding.sentence == f"it points at epoch 7 of {job.id}, whose checkpoint is gone."


@pytest.mark.parametrize("which", ["safetensors", "state.pt", "steps.pt"])
def test_files_that_are_missing_or_changed_are_found(db: Database, tmp_path: Path, job: Job, which: str) -> None:
    (path,) = (tmp_path / checkpoints_folder(job.id)).glob(f"*.{which}")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert check(db, tmp_path) == []  # one has to read it to see that
    (finding,) = check(db, tmp_path, digests=True)
    assert (finding.subject, finding.is_orphan) == (str(path.relative_to(tmp_path)), False)
    assert finding.sentence == f"its contents have changed. It is of {job.id}."
    path.unlink()
    (finding,) = check(db, tmp_path)
    assert finding.sentence.startswith("it is missing.")


def test_a_prepared_dataset_without_its_arrays_is_found(db: Database, tmp_path: Path, job: Job) -> None:
    (tmp_path / "datasets/fashion-mnist-v1/train_images.npy").unlink()
    (finding,) = check(db, tmp_path)
    assert finding.sentence == "it is missing. It is of dataset fashion-mnist."


STRANGER = "0" * 24
ORPHANS = [
    f"jobs/{STRANGER}/checkpoints/epoch-000001-attempt-1.safetensors",
    "jobs/.deleted-x/checkpoints/epoch-000001-attempt-1.safetensors",
    f"datasets/{STRANGER}/card.json",
    f"datasets/.preparing-{STRANGER}-abc/pictures",
    f"uploads/{STRANGER}.archive",
    ".backup-abc/rows.db",
    ".restore-abc/rows.db",
]


@pytest.mark.parametrize("orphan", ORPHANS)
def test_files_that_nothing_names_are_found(db: Database, tmp_path: Path, job: Job, orphan: str) -> None:
    put(tmp_path, orphan)
    assert check(db, tmp_path) == []  # somebody may just be making it
    make_old(tmp_path)
    (finding,) = check(db, tmp_path)
    assert finding.is_orphan
    assert orphan.startswith(finding.subject)


def test_what_a_running_attempt_may_be_writing_is_not_found_and_what_an_ended_one_left_is(
    db: Database, tmp_path: Path, job: Job
) -> None:
    folder = checkpoints_folder(job.id)
    put(tmp_path, f"{folder}/.epoch-000002-attempt-{job.attempt}.safetensors.writing")
    make_old(tmp_path)
    assert check(db, tmp_path) == []
    control.cancel(db, job.id)
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    (finding,) = check(db, tmp_path)
    assert finding.subject.endswith(".writing")


def test_a_checkpoint_that_is_let_go_of_meanwhile_is_no_finding(
    db: Database, tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = records.steps(db, job.id)
    assert steps is not None
    (tmp_path / steps.path).unlink()
    assert len(check(db, tmp_path)) == 1
    real = checking._problem

    def meanwhile(path: Path, file: checking._File, *, digests: bool) -> str | None:
        do(db, "DELETE FROM step_checkpoints", job)
        return real(path, file, digests=digests)

    monkeypatch.setattr(checking, "_problem", meanwhile)
    assert check(db, tmp_path) == []


def test_a_checkpoint_inside_an_epoch_that_is_done_is_no_finding(db: Database, tmp_path: Path, job: Job) -> None:
    do(db, "UPDATE step_checkpoints SET epoch = 1 WHERE job_id = :job", job)
    assert check(db, tmp_path) == []


@pytest.mark.parametrize("status", ["deleted", "invalid"])
def test_files_of_a_dataset_that_is_no_more_are_found(db: Database, tmp_path: Path, job: Job, status: str) -> None:
    error = "'{}'" if status == "invalid" else "NULL"
    do(db, f"UPDATE datasets SET status = '{status}', error = {error} WHERE form IS NULL", job)
    (finding,) = check(db, tmp_path)
    assert (finding.subject, finding.is_orphan) == ("datasets/fashion-mnist-v1", True)


def test_what_an_attempt_at_a_dataset_left_is_found_unless_the_next_one_can_use_it(
    db: Database, tmp_path: Path, job: Job
) -> None:
    dataset = versions.newest(db)[-1]
    assert dataset.form is not None
    put(tmp_path, f"{versions.folder(dataset)}/card.json")
    put(tmp_path, f"{versions.folder(dataset)}.attempt-1.log")
    put(tmp_path, f"datasets/{versions.SCRATCH}{dataset.id}-abc_1/pictures")
    make_old(tmp_path)
    (finding,) = check(db, tmp_path)  # it is whole, but nobody works at the other one
    assert finding.subject == f"datasets/{versions.SCRATCH}{dataset.id}-abc_1"
    assert datasets.claim(db, "preparer", 60) is not None
    assert check(db, tmp_path) == []


def test_an_upload_is_no_orphan_while_it_is_received(db: Database, tmp_path: Path, job: Job) -> None:
    receiving = f"uploads/{STRANGER}.receiving"
    put(tmp_path, receiving)
    make_old(tmp_path)
    with (tmp_path / receiving).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert check(db, tmp_path) == []
    (finding,) = check(db, tmp_path)
    assert finding.subject == receiving


def test_what_is_removed_meanwhile_is_no_finding(
    db: Database, tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = put_orphan(tmp_path, job)
    assert len(check(db, tmp_path)) == 1
    real = checking._named

    def meanwhile(session: Session) -> dict[str, checking._File]:
        orphan.unlink(missing_ok=True)
        return real(session)

    monkeypatch.setattr(checking, "_named", meanwhile)
    assert check(db, tmp_path) == []


def put_orphan(data_dir: Path, job: Job) -> Path:
    path = checkpoints_folder(job.id) / "epoch-000001-attempt-0.safetensors"
    put(data_dir, str(path))
    make_old(data_dir)
    return data_dir / path
