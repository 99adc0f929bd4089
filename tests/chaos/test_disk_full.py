"""A data folder that fills up: the job fails and says why, the service lives, and work goes on when there is space.

Not a byte is left for `FULL_SECONDS`, 3 unless told otherwise.
"""

import ctypes
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.chaos.answers import Answers
from tests.chaos.ending import assert_ends_with, predict, undisturbed
from tests.end_to_end.serving import JOB_SECONDS, Epochd, epochd
from tests.tiny import prepare_tiny

MIB: Final = 2**20
FLOOR: Final = 4 * MIB
SMALL: Final = {"threads": 1, "epochs": 2, "model": {"name": "mlp", "hidden": [16]}}
LARGE: Final = {"threads": 1, "epochs": 1000, "model": {"name": "mlp", "hidden": [1024, 1024]}}
FULL_SECONDS: Final = float(os.environ.get("FULL_SECONDS", "3"))
_MNT_DETACH: Final = 2
_log = logging.getLogger(__name__)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 64 MiB in memory, with the dataset on it."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64m") != 0:
        pytest.skip("a file system can only be mounted by root, where the system lets root do that")
    try:
        prepare_tiny(folder)
        yield folder
    finally:
        libc.umount2(os.fsencode(folder), _MNT_DETACH)


def fill(path: Path, leave: int = 0) -> None:
    """Takes all the space there is but `leave` bytes."""
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(path.parent).free - leave))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + JOB_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_disk_is_full(server: Epochd) -> None:
    assert server.http.get("/healthz").status_code == 200
    ready = server.http.get("/readyz")
    assert (ready.status_code, ready.json()["parts"]["disk"]["ready"]) == (503, False)
    refused = server.http.post("/jobs", json=SMALL)
    assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")


def test_a_job_that_fills_the_disk_fails_and_the_next_one_runs_when_space_returns(tmp_path: Path) -> None:
    settings = {"EPOCHD_MIN_FREE_BYTES": str(FLOOR), "EPOCHD_SLOTS": "1"}
    with small_disk(tmp_path / "disk") as disk, epochd(disk, settings, log=tmp_path / "serve.log") as server:
        job_id = server.submit(**LARGE)
        job = server.wait_terminal(job_id)
        assert (job["status"], job["error"]["code"], job["error"]["phase"]) == ("failed", "disk_full", "saving")
        assert job["error"]["suggestion"] == {"checkpoints": {"keep": "last"}}
        assert len(job["attempts"]) == 1
        assert shutil.disk_usage(disk).free >= FLOOR
        kept = server.http.get(f"/jobs/{job_id}/checkpoints").json()["data"]
        assert [each["epoch"] for each in kept] == [row["epoch"] for row in server.metrics(job_id)] != []
        assert predict(server, job_id).json()["checkpoint"]["epoch"] == kept[-1]["epoch"]

        fill(disk / "ballast", leave=FLOOR - MIB)
        assert_disk_is_full(server)
        assert predict(server, job_id).status_code == 200
        (disk / "ballast").unlink()
        assert server.http.delete(f"/jobs/{job_id}").status_code == 204
        assert server.http.get("/readyz").status_code == 200
        assert shutil.disk_usage(disk).free > 50 * MIB
        undisturbed(server, **SMALL)


def test_a_disk_without_a_single_byte_left_ends_no_process_and_work_goes_on_when_there_are_some(tmp_path: Path) -> None:
    settings = {"EPOCHD_MIN_FREE_BYTES": "0", "EPOCHD_SLOTS": "1", "EPOCHD_HEARTBEAT_SECONDS": "0.5"}
    # So long that the disk is full when the first epoch ends.
    spec = LARGE | {"epochs": 3, "batch_size": 4, "checkpoints": {"keep": "last"}}
    with small_disk(tmp_path / "disk") as disk, epochd(disk, settings, log=tmp_path / "serve.log") as server:
        whole = undisturbed(server, **spec)
        trains, waits = server.submit(**spec), server.submit(**SMALL)
        server.wait(trains, lambda job: job["progress"]["batch"] > 0)
        (training,) = server.attempt_pids()
        parts = server.processes().keys() - {training}
        fill(disk / "ballast")
        answers = asked_for(FULL_SECONDS, server, waits)
        _log.info("the disk was full for %g seconds: %s", FULL_SECONDS, answers.figures(FULL_SECONDS))
        assert answers.wrong == []
        assert answers.statuses[507] > 0
        (disk / "ballast").unlink()

        until(lambda: server.http.get("/readyz").status_code == 200)
        job = server.wait_terminal(trains)
        if job["status"] == "failed":  # else nobody could write that down for so long that it was tried again
            assert job["error"]["code"] == "disk_full"
            server.http.post(f"/jobs/{trains}/retry").raise_for_status()
        assert server.wait_terminal(waits)["status"] == "succeeded"
        assert_ends_with(server, trains, whole)
        assert parts <= server.processes().keys()


def asked_for(seconds: float, server: Epochd, job_id: str) -> Answers:
    """What a disk that is full says to those who read and those who write."""
    reads = ["/healthz", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/metrics"]
    answers, deadline = Answers(), time.monotonic() + seconds
    while time.monotonic() < deadline:
        for path in reads:
            answers.note(server.http.get(path))
        answers.note(server.http.post("/jobs", json=SMALL))
        for wish in ("pause", "resume"):
            answers.note(server.http.post(f"/jobs/{job_id}/{wish}"))
    return answers
