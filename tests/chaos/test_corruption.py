"""Checkpoints that are cut off while they are written, and that are damaged later: no job goes on from bad bytes.

`WRITES` kills during a write, 3 unless told otherwise; `FLIPS` and `CUTS`: bits turned over and files cut short, 30
and 10 unless told otherwise.
"""

import logging
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.chaos.ending import assert_ends_with, predict, undisturbed
from tests.chaos.inotify import CREATED, DELETED, Watched
from tests.end_to_end.serving import JOB_SECONDS, Epochd, epochd
from tests.tiny import prepare_tiny
from worker.jobs import leftovers, records
from worker.jobs.db import Database
from worker.jobs.errors import CheckpointCorrupt
from worker.jobs.tables import StepCheckpoint
from worker.training import checkpoints

WRITES = int(os.environ.get("WRITES", "3"))
FLIPS = int(os.environ.get("FLIPS", "30"))
CUTS = int(os.environ.get("CUTS", "10"))
SETTINGS = {
    "EPOCHD_SLOTS": "1",
    "EPOCHD_MAX_ATTEMPTS": "100",
    "EPOCHD_CHECKPOINT_SECONDS": "0.01",  # one inside each epoch
    "EPOCHD_POLL_SECONDS": "0.01",  # epochs of a tenth of a second are to be paused in time
}
TRAIN: Final = {"threads": 1, "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9}}
LONG: Final = {**TRAIN, "batch_size": 2}  # an epoch of many short steps: most instants are inside one
LARGE: Final = {**TRAIN, "model": {"name": "mlp", "hidden": [2048, 1024]}, "checkpoints": {"keep": "last"}}
_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare_tiny(folder, train=192)
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Epochd]:
    with epochd(data_dir, SETTINGS) as running:
        yield running


@pytest.fixture
def db(data_dir: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    yield opened
    opened.close()


def unloadable(db: Database, data_dir: Path, job_id: str) -> list[str]:
    """The files that rows of the job name, and that are not what they were when the row was written."""
    bad: dict[str, None] = {}
    named: list[tuple[Callable[[Path, str], object], str, str]] = []
    for kept in records.checkpoints(db, job_id):
        named.append((checkpoints.load, kept.row.path, kept.row.sha256))
        named.append((checkpoints.load_state, *kept.row.state))
    if (inside := records.steps(db, job_id)) is not None:
        named.append((checkpoints.load_state, inside.path, inside.sha256))
    for load, path, sha256 in named:
        try:
            load(data_dir / path, sha256)
        except CheckpointCorrupt:
            bad[path] = None
    return [path for path in bad if path in records.files(db, job_id)]  # the job may have let go of it meanwhile


def left_over(db: Database, data_dir: Path, job_id: str) -> set[str]:
    files = (data_dir / leftovers.checkpoints_folder(job_id)).iterdir()
    return {str(path.relative_to(data_dir)) for path in files} - set(records.files(db, job_id))


def new_attempt(server: Epochd, before: int) -> int:
    deadline = time.monotonic() + JOB_SECONDS
    while time.monotonic() < deadline:
        if found := [pid for pid in server.attempt_pids() if pid != before]:
            return found[0]
        time.sleep(0.005)
    raise AssertionError("no attempt was started again")


def kill_while_it_writes(
    server: Epochd, events: Iterator[tuple[int, str]], pid: int, rng: random.Random, *, worker_too: bool
) -> bool:
    """Kills the attempt a moment after one of its next files was begun. False when that one was finished after all."""
    begun = (name for kind, name in events if kind == CREATED and name.endswith(".writing"))
    for _ in range(rng.randint(1, 3)):
        name = next(begun)
    time.sleep(rng.uniform(0, 0.01))
    os.kill(pid, signal.SIGKILL)
    if worker_too:
        os.kill(server.pid_of("worker"), signal.SIGKILL)
    ended = (kind for kind, which in events if which == name and kind != CREATED)
    return next(ended) == DELETED  # somebody has swept what was left of it


def test_a_checkpoint_that_is_killed_while_it_is_written_is_never_gone_on_from(
    server: Epochd, db: Database, data_dir: Path
) -> None:
    rng, epochs = random.Random(1), 2 * WRITES + 3
    whole = undisturbed(server, **LARGE, epochs=epochs)
    job_id = server.submit(**LARGE, epochs=epochs)
    folder = data_dir / leftovers.checkpoints_folder(job_id)
    folder.mkdir(parents=True, exist_ok=True)
    watched = Watched(folder)
    events = watched.events()
    pid = hits = kills = 0
    while hits < WRITES:
        pid = new_attempt(server, pid)
        hits += kill_while_it_writes(server, events, pid, rng, worker_too=hits % 6 == 5)
        kills += 1
        assert unloadable(db, data_dir, job_id) == []
    assert_ends_with(server, job_id, whole)
    assert left_over(db, data_dir, job_id) == set()
    watched.close()
    job = server.job(job_id)
    assert len(job["attempts"]) == kills + 1
    assert job["events"] == []
    _log.info("%d kills, of which %d while a file was written: none unloadable", kills, hits)


def mid_training(server: Epochd, job_id: str, epochs: int) -> None:
    """Waits until so many epochs are done and an attempt is at work on another one."""
    server.wait(job_id, at_work)
    for pid in server.attempt_pids():  # on a busy machine it would be over before it can be asked to stop
        os.setpriority(os.PRIO_PROCESS, pid, 10)
    server.wait(job_id, lambda job: at_work(job) and job["progress"]["epoch"] > epochs)


def at_work(job: dict[str, Any]) -> bool:
    assert job["status"] in ("queued", "running"), job
    return job["status"] == "running" and job["attempts"][-1]["first_batch_at"] is not None


def paused_inside_an_epoch(server: Epochd, db: Database, job_id: str, epochs: int) -> list[str]:
    """Pauses the job when so many epochs are done. Returns the files to go on from: the newest first."""
    while True:
        mid_training(server, job_id, epochs)
        pause(server, job_id)
        inside = records.steps(db, job_id)
        if inside is not None:
            whole = [path for kept in reversed(records.checkpoints(db, job_id)) for path in _files(kept)]
            return [inside.path, *whole]
        server.http.post(f"/jobs/{job_id}/resume").raise_for_status()  # it was just between two epochs


def pause(server: Epochd, job_id: str) -> None:
    server.http.post(f"/jobs/{job_id}/pause").raise_for_status()
    job = server.wait(job_id, lambda job: job["status"] not in ("running", "pausing"))
    assert job["status"] == "paused", job


def _files(kept: records.KeptCheckpoint) -> tuple[str, str]:
    return kept.row.path, kept.row.state[0]


def flip(path: Path, rng: random.Random) -> None:
    contents = bytearray(path.read_bytes())
    contents[rng.randrange(len(contents))] ^= 1 << rng.randrange(8)
    path.write_bytes(contents)


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def test_every_bit_flip_and_truncation_is_refused(server: Epochd, db: Database, data_dir: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    job_id = server.submit(**LONG, epochs=50)
    newest = paused_inside_an_epoch(server, db, job_id, 2)[:3]
    kept = records.checkpoints(db, job_id)[-1].row
    inside = records.steps(db, job_id)
    assert inside is not None
    sums = {inside.path: inside.sha256, kept.path: kept.sha256, kept.state[0]: kept.state[1]}
    refused = 0
    for number in range(FLIPS + CUTS):
        path = newest[number % 3]
        copy = tmp_path / "copy"
        copy.write_bytes((data_dir / path).read_bytes())
        (flip if number < FLIPS else cut)(copy, rng)
        load: Callable[[Path, str], object] = checkpoints.load if path == kept.path else checkpoints.load_state
        with pytest.raises(CheckpointCorrupt):
            load(copy, sums[path])
        refused += 1
    server.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    _log.info("%d damaged files, %d refused", FLIPS + CUTS, refused)


def test_a_job_that_went_on_from_an_older_checkpoint_loses_nothing_when_it_is_stopped_again(
    server: Epochd, db: Database, data_dir: Path
) -> None:
    rng = random.Random(4)
    job_id = server.submit(**LONG, epochs=50, model={"name": "mlp", "hidden": [1024, 1024]})
    files = paused_inside_an_epoch(server, db, job_id, 2)
    damaged = records.checkpoints(db, job_id)[-1].row
    for path in files[:2]:
        flip(data_dir / path, rng)
    server.http.post(f"/jobs/{job_id}/resume").raise_for_status()
    assert server.wait(job_id, at_work)["attempts"][-1]["resumed_from"] == damaged.epoch - 1
    pause(server, job_id)
    with db.read() as session:
        inside = session.get_one(StepCheckpoint, job_id)
    assert inside.epoch == damaged.epoch  # it is being trained again
    server.http.post(f"/jobs/{job_id}/resume").raise_for_status()
    attempt = server.wait(job_id, lambda job: job["progress"]["epoch"] > damaged.epoch)["attempts"][-1]
    server.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    assert (attempt["resumed_from"], attempt["resumed_batch"]) == (inside.epoch - 1, inside.batch)


def test_a_damaged_checkpoint_answers_no_prediction_and_is_not_handed_out(
    server: Epochd, db: Database, data_dir: Path
) -> None:
    rng, job_id = random.Random(5), server.submit(**TRAIN, epochs=4)
    server.wait_terminal(job_id)
    second, third = (kept.row.path for kept in records.checkpoints(db, job_id)[1:3])
    flip(data_dir / second, rng)
    cut(data_dir / third, rng)
    for epoch in ("2", "3"):
        for answer in (predict(server, job_id, epoch), server.http.get(f"/jobs/{job_id}/checkpoints/{epoch}")):
            assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_corrupt")
    for epoch in ("1", "4"):
        assert predict(server, job_id, epoch).status_code == 200
        assert server.http.get(f"/jobs/{job_id}/checkpoints/{epoch}").status_code == 200


def test_a_damaged_job_ends_with_the_right_bits_from_an_older_checkpoint(
    server: Epochd, db: Database, data_dir: Path
) -> None:
    """The last test in here: it stops the server, and starts one that finds its jobs damaged."""
    rng, spec = random.Random(3), LONG | {"epochs": 15}
    whole = undisturbed(server, **spec)
    files = {}
    for _ in range(3):
        job_id = server.submit(**spec)
        files[job_id] = paused_inside_an_epoch(server, db, job_id, 2)
    of_steps, of_weights, of_state = files
    of_all = server.submit(**spec)
    mid_training(server, of_all, 1)
    assert server.stop() == 0
    flip(data_dir / files[of_steps][0], rng)
    cut(data_dir / files[of_weights][0], rng)
    flip(data_dir / files[of_weights][1], rng)
    (data_dir / files[of_state][0]).unlink()
    cut(data_dir / files[of_state][2], rng)
    trained = len(records.checkpoints(db, of_all))
    for path in records.files(db, of_all):
        flip(data_dir / path, rng)
    damaged = {of_steps: 1, of_weights: 2, of_state: 2, of_all: len(records.files(db, of_all)) - trained}
    done = {job: len(records.checkpoints(db, job)) for job in files}
    with epochd(data_dir, SETTINGS) as restarted:
        for job_id in files:
            restarted.http.post(f"/jobs/{job_id}/resume").raise_for_status()
        for job_id, count in damaged.items():
            assert_ends_with(restarted, job_id, whole)
            job = restarted.job(job_id)
            assert [event["kind"] for event in job["events"]] == ["checkpoint_corrupt"] * count
            assert left_over(db, data_dir, job_id) == set()
        resumed_from = {job: restarted.job(job)["attempts"][-1]["resumed_from"] for job in damaged}
    older = {of_steps: done[of_steps], of_weights: done[of_weights] - 1, of_state: done[of_state] - 1, of_all: None}
    assert resumed_from == older
