"""SIGKILL of anything at any instant, under twenty jobs: none is lost, none is stuck, and all end with the same bits.

`KILLS` (20 unless told otherwise) and `SEED` come from the environment.
"""

import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.chaos.patching import patched_by
from tests.chaos.workplace import (
    SPECS,
    Bits,
    assert_nothing_is_wrong,
    assert_undisturbed,
    bits,
    finished,
    small_data_dir,
    submit,
    wait_finished,
)
from tests.end_to_end.serving import Epochd, epochd

KILLS = int(os.environ.get("KILLS", "20"))
SEED = int(os.environ.get("SEED", "1"))
SETTINGS = {
    "EPOCHD_SLOTS": "2",
    "EPOCHD_CHECKPOINT_SECONDS": "0.3",
    "EPOCHD_MAX_ATTEMPTS": "100",
    "EPOCHD_LEASE_SECONDS": "60",  # who is dead is found by his lock, not waited for
}
_log = logging.getLogger(__name__)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_training(server: Epochd, rng: random.Random) -> bool:
    with suppress(ProcessLookupError):
        if pids := server.attempt_pids():
            kill(rng.choice(pids))
            return True
    return False


def kill_part(module: str) -> Callable[[Epochd, random.Random], bool]:
    def do(server: Epochd, _: random.Random) -> bool:
        with suppress(ValueError):  # it is between two of them
            kill(server.pid_of(module))
            return True
        return False

    return do


def kill_everything(server: Epochd, _: random.Random) -> bool:
    for pid in [server.process.pid, *server.processes()]:
        kill(pid)
    server.process.wait(10)
    return True


def kill_preloaded(server: Epochd, _: random.Random) -> bool:
    """What the trainings are forked from; they die with it."""
    with suppress(ValueError, ProcessLookupError):
        kill(server.preloaded_pid())
        return True
    return False


def kill_predictor(server: Epochd, _: random.Random) -> bool:
    kill(server.predictor_pid())
    return True


TARGETS: dict[str, Callable[[Epochd, random.Random], bool]] = {
    "training": kill_training,
    "worker": kill_part("worker"),
    "preloaded": kill_preloaded,
    "service": kill_part("service"),
    "predictor": kill_predictor,
    "its parent": kill_part("worker.inference"),
    "everything": kill_everything,
}
WEIGHTS = (10, 4, 2, 2, 1, 1, 2)


class Fire:
    """Kills at random instants, until the kills are spent."""

    def __init__(self, data_dir: Path, rng: random.Random) -> None:
        self._data_dir, self._rng = data_dir, rng
        self.killed: Counter[str] = Counter()

    def round(self, jobs: list[str], server: Epochd, stack: ExitStack) -> Epochd:
        """Under these jobs. Returns the server that runs at the end."""
        while self.killed.total() < KILLS and not finished(server, jobs):
            time.sleep(self._rng.uniform(0, 1.2))
            (name,) = self._rng.choices(list(TARGETS), WEIGHTS)
            if TARGETS[name](server, self._rng):
                self.killed[name] += 1
            if name == "everything":
                stack.close()
                server = stack.enter_context(epochd(self._data_dir, SETTINGS, wait_ready=False))
            if self._rng.random() < 0.7:
                wait_for_training(server, jobs)
        return server


def wait_for_training(server: Epochd, jobs: list[str]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not finished(server, jobs):
        with suppress(ProcessLookupError):
            if server.attempt_pids():
                return
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Bits]:
    data_dir = small_data_dir(tmp_path_factory.mktemp("undisturbed"))
    with epochd(data_dir, SETTINGS) as server:
        jobs = [submit(server, spec) for spec in SPECS]
        wait_finished(server, jobs)
        return [bits(server, job_id) for job_id in jobs]


def test_whatever_is_killed_and_when_twenty_jobs_end_with_the_same_bits(
    undisturbed: list[Bits], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data_dir = small_data_dir(tmp_path_factory.mktemp("killed"))
    fire, attempts, started = Fire(data_dir, random.Random(SEED)), 0, time.monotonic()
    with ExitStack() as stack:
        server = stack.enter_context(epochd(data_dir, SETTINGS))
        while fire.killed.total() < KILLS:
            jobs = [submit(server, spec) for spec in SPECS]
            server = fire.round(jobs, server, stack)
            wait_finished(server, jobs)
            for job_id, expected in zip(jobs, undisturbed, strict=True):
                assert_undisturbed(server, job_id, expected)
            assert_nothing_is_wrong(data_dir, jobs)
            attempts += sum(server.job(job_id)["attempt"] for job_id in jobs)
    seconds = time.monotonic() - started
    _log.info("kills: %s, attempts: %d, seconds: %.0f", dict(fire.killed), attempts, seconds)


def test_seeds_that_are_not_derived_are_found_out_by_the_same_check(tmp_path_factory: pytest.TempPathFactory) -> None:
    unseeded = SETTINGS | patched_by("unseeded")
    spec = SPECS[0]
    with epochd(small_data_dir(tmp_path_factory.mktemp("unseeded")), unseeded) as server:
        first, second, killed = (submit(server, spec) for _ in range(3))
        server.wait(killed, lambda job: job["progress"]["epoch"] > 2)
        assert bits(server, first) == bits(server, second)  # undisturbed it repeats itself
        for pid in server.attempt_pids():
            kill(pid)
        wait_finished(server, [killed])
        assert server.job(killed)["attempt"] == 2
        assert bits(server, killed) != bits(server, first)
        with pytest.raises(AssertionError):
            assert_undisturbed(server, killed, bits(server, first))
