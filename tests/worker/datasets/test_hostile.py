"""The hostile corpus, through everything that happens to an archive in the process that prepares it."""

import hashlib
import time
from pathlib import Path

import pytest

from tests.worker.datasets.hostile import CASES, MAX_ENTRIES, Case, pictures, tar, zipped
from worker.datasets import uploaded
from worker.jobs.archives import HEAD_BYTES, kind_of
from worker.jobs.card import FILES
from worker.jobs.errors import EpochdError
from worker.jobs.form import Form
from worker.jobs.settings import Settings

SECONDS = 60
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # pytest-xdist's


def snapshot(root: Path, *, without: Path) -> dict[str, str]:
    """Everything below `root` with its contents and times, but what lies in `without`."""
    found = {}
    for path in root.rglob("*"):
        if path != without and without not in path.parents:
            status = path.lstat()
            contents = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            changed = status.st_mtime_ns if path != without.parent else 0
            found[str(path)] = f"{status.st_mode:o} {changed} {contents}"
    return found


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to prepare in, among others that must stay as they are; one of them is the current one."""
    for place in ("above.txt", "data/beside.txt", "data/datasets/other/card.json", "cat/0.png", "here/0.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("must stay")
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / "data" / "datasets" / ".preparing-x"
    folder.mkdir()
    return folder


def prepare(archive: Path, scratch: Path, **form: object) -> None:
    settings = Settings(data_dir=scratch.parent.parent, max_entries=MAX_ENTRIES)
    uploaded.prepare(archive, Form.model_validate({"name": "x"} | form), scratch, settings, lambda *_: None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_for_what_it_is_and_touches_nothing(case: Case, scratch: Path, tmp_path: Path) -> None:
    archive = tmp_path / "data" / "x.archive"
    case.write(archive)
    before = snapshot(tmp_path, without=scratch)
    began = time.monotonic()
    with pytest.raises(EpochdError) as caught:
        prepare(archive, scratch, **case.form)
    assert time.monotonic() - began < SECONDS
    assert caught.value.code == case.code
    assert case.says in caught.value.detail
    assert str(tmp_path) not in caught.value.detail
    assert snapshot(tmp_path, without=scratch) == before
    assert {path.name for path in scratch.iterdir()} <= {"pictures", *FILES}
    assert not Path("/epochd-hostile.png").exists()


@pytest.mark.parametrize("case", [case for case in CASES if case.at_once], ids=lambda case: case.name)
def test_the_service_sees_at_once_that_it_is_no_archive(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "x")
    assert kind_of((tmp_path / "x").read_bytes()[:HEAD_BYTES]) is None


@pytest.mark.parametrize("made", [zipped(pictures()), tar(pictures())], ids=["zip", "tar"])
def test_what_the_corpus_wraps_around_its_harm_is_harmless(made: bytes, scratch: Path, tmp_path: Path) -> None:
    """Else the corpus would be refused for something that it does not mean."""
    (tmp_path / "x").write_bytes(made)
    prepare(tmp_path / "x", scratch, strict=True, test_fraction=0.4)


def test_the_corpus_is_large_and_names_every_case() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 36
    assert {case.code for case in CASES} == {"bad_archive", "archive_too_large", "unsafe_path", "dataset_invalid"}
