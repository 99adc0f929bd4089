"""Files that no row names: which of them go, and which must not."""

from pathlib import Path

import pytest

from tests.worker.jobs.making import saved, saved_steps
from worker.jobs import leftovers

JOB, OTHER = "1" * 24, "2" * 24


def name(epoch: int, attempt: int, end: str = "safetensors") -> str:
    return f"epoch-{epoch:06d}-attempt-{attempt}.{end}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / leftovers.checkpoints_folder(JOB)
    folder.mkdir(parents=True)
    return folder


def put(folder: Path, *names: str) -> None:
    for each in names:
        (folder / each).write_text(each)


def remaining(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_that_belongs_to_a_job_lies_in_its_folder() -> None:
    assert leftovers.folder(JOB) == Path("jobs") / JOB
    assert leftovers.checkpoints_folder(JOB) == Path("jobs") / JOB / "checkpoints"


@pytest.mark.parametrize(
    ("file", "attempt"),
    [
        (saved(3, 12).path, 12),
        (saved(3, 12).state_path, 12),
        (saved_steps(4, 120, 3).path, 3),
        (f".{name(1, 7)}.writing", 7),
        ("notes.txt", None),
        ("attempt-3.log", None),
        ("epoch-000001-attempt-x.safetensors", None),
    ],
)
def test_a_file_of_a_checkpoint_names_its_attempt(file: str, attempt: int | None) -> None:
    assert leftovers.attempt_of(Path(file)) == attempt


def test_what_no_row_names_goes_whichever_attempt_made_it(tmp_path: Path, folder: Path) -> None:
    kept = [name(2, 1), name(2, 1, "state.pt"), name(3, 2)]
    put(folder, *kept, name(1, 1), name(3, 1), name(3, 2, "state.pt"), name(4, 2), f".{name(3, 1)}.writing")
    leftovers.remove_others(tmp_path, JOB, 2, [str(leftovers.checkpoints_folder(JOB) / each) for each in kept])
    assert remaining(folder) == sorted(kept)


def test_a_frozen_attempt_removes_nothing_of_a_later_one(tmp_path: Path, folder: Path) -> None:
    put(folder, name(1, 1), name(1, 2), name(2, 10), f".{name(2, 10)}.writing")
    leftovers.remove_others(tmp_path, JOB, 2, [])
    assert remaining(folder) == sorted([name(2, 10), f".{name(2, 10)}.writing"])


def test_files_of_others_and_of_other_jobs_stay(tmp_path: Path, folder: Path) -> None:
    other = tmp_path / leftovers.checkpoints_folder(OTHER)
    other.mkdir(parents=True)
    put(other, name(1, 1))
    put(folder, name(1, 1), "notes.txt")
    put(folder.parent, "attempt-1.log", name(1, 1))
    leftovers.remove_others(tmp_path, JOB, 1, [])
    assert (remaining(folder), remaining(other)) == (["notes.txt"], [name(1, 1)])
    assert remaining(folder.parent) == ["attempt-1.log", "checkpoints", name(1, 1)]


def test_without_a_folder_there_is_nothing_to_remove(tmp_path: Path) -> None:
    leftovers.remove_others(tmp_path, JOB, 1, [])
    leftovers.remove_job(tmp_path, JOB)
    assert list(tmp_path.iterdir()) == []


def test_a_deleted_job_leaves_no_file_and_the_others_stay(tmp_path: Path, folder: Path) -> None:
    put(folder, name(1, 1))
    put(folder.parent, "attempt-1.log")
    (tmp_path / leftovers.folder(OTHER)).mkdir()
    leftovers.remove_job(tmp_path, JOB)
    assert remaining(tmp_path / "jobs") == [OTHER]
