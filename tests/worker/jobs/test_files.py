"""What is written is there whole or not at all, also on a disk that is full."""

import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker.jobs import files
from worker.jobs.errors import DiskFull

FULL = Path("/dev/full")  # whoever writes to it is told that no space is left
OLD, NEW = b"old " * 1000, b"new " * 1000
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 KiB and five files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=64k,nr_inodes=6"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this system does not let us mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_and_nothing_beside_it(tmp_path: Path) -> None:
    for contents in (OLD, NEW, b""):
        files.write_durably(tmp_path / "file", contents)
        assert (tmp_path / "file").read_bytes() == contents
        assert names(tmp_path) == ["file"]


def test_what_a_killed_writer_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".file.writing").write_bytes(OLD * 3)
    files.write_durably(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW
    assert names(tmp_path) == ["file"]


@needs_full
def test_on_a_full_disk_the_old_file_stays_and_nothing_of_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(OLD)
    (tmp_path / ".file.writing").symlink_to(FULL)
    with pytest.raises(DiskFull, match="no space left"):
        files.write_durably(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_a_disk_that_is_full_only_when_it_is_flushed_is_full_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As file systems do that give out blocks late."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    (tmp_path / "file").write_bytes(OLD)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFull):
        files.write_durably(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == OLD
    assert names(tmp_path) == ["file"]


def test_a_small_disk_fills_up_and_takes_files_again_when_there_is_space(tiny_disk: Path) -> None:
    written: list[str] = []

    def fill() -> None:
        for number in range(100):
            files.write_durably(tiny_disk / f"file-{number}", bytes(10_000))
            written.append(f"file-{number}")

    with pytest.raises(DiskFull) as caught:
        fill()
    assert caught.value.code == "disk_full"
    assert 0 < len(written) < 7
    assert names(tiny_disk) == sorted(written)
    assert all((tiny_disk / name).read_bytes() == bytes(10_000) for name in written)
    (tiny_disk / written[0]).unlink()
    files.write_durably(tiny_disk / "again", bytes(10_000))


def test_a_disk_without_room_for_one_more_name_is_full(tiny_disk: Path) -> None:
    for number in range(5):
        (tiny_disk / f"{number}").touch()
    with pytest.raises(DiskFull):
        files.write_durably(tiny_disk / "file", b"")
    assert len(names(tiny_disk)) == 5


def test_what_would_leave_too_little_is_not_begun(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(DiskFull):
        files.write_durably(tmp_path / "file", NEW, spare_bytes=2 * free)
    assert names(tmp_path) == []


def test_space_is_what_is_free_without_what_is_spared(tmp_path: Path) -> None:
    files.require_space(tmp_path, 0)
    files.require_space(tmp_path, 1, 1)
    free = shutil.disk_usage(tmp_path).free
    for spare_bytes, needed, words in (
        (2 * free, 0, "There is less free"),
        (0, 2 * free, f"{2 * free} bytes more would leave less free"),
        (2 * free, 1, "1 bytes more would leave less free"),
    ):
        with pytest.raises(DiskFull, match=words) as caught:
            files.require_space(tmp_path, spare_bytes, needed)
        assert caught.value.hint


def test_no_other_error_is_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), files.told_when_full():
        raise PermissionError(errno.EACCES, "")
    with pytest.raises(FileNotFoundError):
        files.write_durably(tmp_path / "nowhere" / "file", NEW)
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_durably(tmp_path / "file", NEW)


def test_a_digest_is_of_the_contents(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(NEW)
    assert files.sha256(tmp_path / "file") == hashlib.sha256(NEW).hexdigest()
    with pytest.raises(FileNotFoundError):
        files.sha256(tmp_path / "nothing")


def test_a_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file").touch()
    (tmp_path / "neighbour").mkdir()
    files.remove_folder(tmp_path / "folder")
    files.remove_folder(tmp_path / "folder")
    assert names(tmp_path) == ["neighbour"]


def test_a_folder_goes_though_an_earlier_try_was_killed(tmp_path: Path) -> None:
    for name in ("folder", f"{files.DELETED}folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    files.remove_folder(tmp_path / "folder")
    assert "folder" not in names(tmp_path)


def test_a_lock_is_held_as_long_as_its_file_is_open(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not files.is_unlocked(path)
    with path.open("w") as file:
        assert files.is_unlocked(path)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not files.is_unlocked(path)
    assert files.is_unlocked(path)
