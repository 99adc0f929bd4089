"""The `epochd admin` commands as processes: what they say, how they end, what they leave behind."""

import fcntl
import io
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.serving import environment
from tests.worker.jobs.kept_files import contents, filled, make_old, put
from worker.jobs import queue
from worker.jobs.backup import MANIFEST, ROWS
from worker.jobs.db import Database
from worker.jobs.ids import new_id
from worker.jobs.states import Outcome

OLD_SQLITE = "import sqlite3.dbapi2\nfrom sqlite3.dbapi2 import *\nError = sqlite3.dbapi2.Error\n"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The data folder of an epochd on SQLite, of which nobody is at work."""
    db = Database(f"sqlite:///{tmp_path / 'home' / 'epochd.db'}")
    db.migrate()
    job = filled(db, tmp_path / "home")
    queue.finish(db, job.id, job.attempt, Outcome.RELEASED, max_attempts=3)
    db.close()
    make_old(tmp_path / "home")
    return tmp_path / "home"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service.cli", "admin", *arguments]


def admin(data_dir: Path, *arguments: str, stdin: bytes = b"", **more: str) -> "subprocess.CompletedProcess[bytes]":
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)} | more
    return subprocess.run(command(*arguments), env=env, input=stdin, capture_output=True, check=False)


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_backup_is_one_tar_file_and_comes_back(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.tar"
    made = admin(home, "backup", str(target))
    assert (made.returncode, made.stdout) == (0, b""), made.stderr
    with tarfile.open(target) as tar:
        names = tar.getnames()
    assert (ROWS in names, names[-1]) == (True, MANIFEST)
    elsewhere = tmp_path / "elsewhere"
    restored = admin(elsewhere, "restore", str(target))
    assert (restored.returncode, restored.stdout) == (0, b""), restored.stderr
    assert contents(elsewhere) == contents(home)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_two_backups_into_one_file_do_not_break_each_other(home: Path, tmp_path: Path) -> None:
    target, other = tmp_path / "backup.tar", tmp_path / ".backup.tar.writing"
    other.write_bytes(b"what another one has written so far")
    made = admin(home, "backup", str(target))
    assert made.returncode == 0, made.stderr
    assert other.read_bytes() == b"what another one has written so far"
    again = admin(home, "backup", str(target))
    assert (again.returncode, again.stderr.count(b"\n"), b"there already" in again.stderr) == (1, 1, True)


def test_a_pipe_that_takes_no_more_is_told_in_one_sentence(home: Path) -> None:
    env = environment() | {"EPOCHD_DATA_DIR": str(home)}
    with Path("/dev/full").open("wb") as full:
        made = subprocess.run(command("backup", "-"), env=env, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (made.returncode, made.stderr) == (1, b"epochd: the backup cannot be written: No space left on device\n")
    assert not list(home.glob(".backup-*"))


def test_a_backup_in_a_pipe_holds_nothing_but_the_backup(home: Path, tmp_path: Path) -> None:
    """Not what is logged where SQLite is an old one."""
    put(tmp_path, "old/pysqlite3/__init__.py", b"")
    put(tmp_path, "old/pysqlite3/dbapi2.py", f"{OLD_SQLITE}sqlite_version_info = (3, 40, 1)\n".encode())
    made = admin(home, "backup", "-", PYTHONPATH=str(tmp_path / "old"))
    assert made.returncode == 0, made.stderr
    assert b"sqlite_without_wal" in made.stderr
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as tar:
        assert tar.getnames()[-1] == MANIFEST


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_backup_that_is_stopped_leaves_nothing(home: Path, sent: signal.Signals) -> None:
    put(home, "weights/large.safetensors", b"x" * 2**22)  # more than a pipe holds that nobody reads
    before = sorted(home.iterdir())
    env = environment() | {"EPOCHD_DATA_DIR": str(home)}
    with subprocess.Popen(command("backup", "-"), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)  # it is at it
        process.send_signal(sent)
        assert process.wait(60) == 128 + sent
    assert sorted(home.iterdir()) == before


def test_a_restore_that_is_stopped_leaves_nothing(home: Path, tmp_path: Path) -> None:
    saved, elsewhere = admin(home, "backup", "-").stdout, tmp_path / "elsewhere"
    env = environment() | {"EPOCHD_DATA_DIR": str(elsewhere)}
    with subprocess.Popen(command("restore", "-"), env=env, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(saved[: len(saved) // 2])
        process.stdin.flush()
        wait_until(lambda: bool(list(elsewhere.glob(".restore-*/*"))))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not [path for path in elsewhere.iterdir() if not path.name.startswith("epochd.db")]
    assert admin(elsewhere, "restore", "-", stdin=saved).returncode == 0


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nothing", b"not a whole backup"),
        ("half", b"not a whole backup"),
        ("there", b"already"),
        ("worker", b"A worker is running"),
        ("no file", b"No such file"),
    ],
)
def test_what_cannot_be_restored_is_told_in_one_sentence(
    home: Path, tmp_path: Path, what: str, sentence: bytes
) -> None:
    saved, elsewhere, source = admin(home, "backup", "-").stdout, tmp_path / "elsewhere", tmp_path / "backup.tar"
    if what != "no file":
        source.write_bytes({"nothing": b"", "half": saved[: len(saved) // 2]}.get(what, saved))
    put(elsewhere, "workers/x.lock")
    with (elsewhere / "workers/x.lock").open() as lock:
        if what == "worker":
            fcntl.flock(lock, fcntl.LOCK_EX)
        refused = admin(home if what == "there" else elsewhere, "restore", str(source))
    assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1), refused.stderr
    assert sentence in refused.stderr
    assert not (elsewhere / "jobs").exists()


def test_a_database_that_is_none_is_told_in_one_sentence(home: Path) -> None:
    (home / "epochd.db").write_bytes(b"no database " * 1000)
    for arguments in (("backup", "-"), ("check",)):
        refused = admin(home, *arguments)
        assert (refused.returncode, refused.stderr.count(b"\n")) == (1, 1), refused.stderr


def test_a_damaged_database_is_told_in_one_sentence(home: Path) -> None:
    damaged = bytearray((home / "epochd.db").read_bytes())
    for page in range(8, len(damaged) // 4096):  # behind the schema
        damaged[page * 4096 : page * 4096 + 64] = b"?" * 64
    (home / "epochd.db").write_bytes(damaged)
    for arguments in (("backup", "-"), ("check",)):
        refused = admin(home, *arguments)
        assert refused.returncode == 1
        assert b"Traceback" not in refused.stderr
        assert b"malformed" in refused.stderr
    assert not list(home.glob(".backup-*"))


def test_only_what_nothing_names_is_removed(home: Path) -> None:
    before = contents(home)
    orphans = [f"jobs/{new_id()}/checkpoints/x.safetensors", f"uploads/{new_id()}.archive", ".backup-x/rows.db"]
    for orphan in orphans:
        put(home, orphan)
    make_old(home)
    (missing,) = home.glob("jobs/*/checkpoints/*.steps.pt")
    missing.unlink()
    found = admin(home, "check")
    assert found.returncode == 1
    assert len(found.stdout.splitlines()) == len(orphans) + 1
    assert all((home / orphan).exists() for orphan in orphans)
    removed = admin(home, "check", "--remove-orphans")
    assert (removed.returncode, removed.stdout.count(b"Removed.")) == (1, len(orphans))
    assert not (home / ".backup-x").exists()
    assert contents(home) == {path: body for path, body in before.items() if path != str(missing.relative_to(home))}
    assert len(admin(home, "check").stdout.splitlines()) == 1


def test_who_looks_into_the_wrong_folder_can_see_that(home: Path, tmp_path: Path) -> None:
    assert b"3 jobs, 3 checkpoints, 2 datasets" in admin(home, "check").stderr
    assert b"0 jobs, 0 checkpoints, 0 datasets" in admin(tmp_path / "mistyped", "check").stderr
