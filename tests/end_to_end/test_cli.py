"""The `epochd` command as a process, in pipes and on a terminal, against a running epochd."""

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.client import AsyncClient, Client
from service.commands.following import BACK, LOST
from tests.end_to_end.serving import Epochd, environment, epochd

COMMAND = [sys.executable, "-m", "service.cli"]
SMALL = ["--set", "model.hidden=[16]", "--set", "threads=1", "--set", "batch_size=256"]
SECONDS = 60


def environment_for(server: Epochd) -> dict[str, str]:
    return environment() | {
        "EPOCHD_URL": server.url,
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "100",
        "TERM": "xterm-256color",
    }


def run(server: Epochd, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    env = environment_for(server)
    return subprocess.run([*COMMAND, *arguments], env=env, input=stdin, capture_output=True, text=True, timeout=SECONDS)


@contextmanager
def started(server: Epochd, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*COMMAND, *arguments], env=environment_for(server), **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def test_followed_in_a_pipe(server: Epochd) -> None:
    done = run(server, "submit", "-", *SMALL, "--follow", stdin="epochs: 2\n")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert server.job(first)["status"] == "succeeded"
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1", "2"]
    assert lines[-1].startswith("succeeded after")
    assert "\x1b" not in done.stdout


def test_followed_as_json_the_rows_are_those_of_the_metrics(server: Epochd) -> None:
    done = run(server, "submit", *SMALL, "--set", "epochs=2", "--follow", "--json")
    submitted, *rows, last = map(json.loads, done.stdout.splitlines())
    assert rows == server.metrics(submitted["id"])
    assert last == server.job(submitted["id"])


def test_the_exit_code_says_how_it_ended(server: Epochd) -> None:
    diverging = run(server, "submit", *SMALL, "--set", "optimizer.lr=1e6", "--set", "loss.name=mse", "--follow")
    assert (diverging.returncode, "The job has failed." in diverging.stderr) == (1, True)
    with started(server, "submit", *SMALL, "--set", "epochs=100000", "--follow") as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().strip()
        while not process.stdout.readline().startswith("epoch"):
            pass
        assert run(server, "cancel", job_id[-10:]).returncode == 0
        _, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, "cancelled" in err) == (5, True)
    assert run(server, "job", "0" * 24).returncode == 4
    assert run(server, "jobs", "--url", "http://127.0.0.1:9").returncode == 3


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(server: Epochd) -> None:
    with started(server, "submit", *SMALL, "--set", "epochs=100000", "--follow") as process:
        assert process.stdout is not None
        job_id = process.stdout.readline().strip()
        while not process.stdout.readline().startswith("epoch"):
            pass
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    (again,) = re.findall(r"epochd (watch \w+)", err)
    assert server.job(job_id)["status"] == "running"
    server.http.post(f"/jobs/{job_id}/cancel")
    back = run(server, *again.split())
    assert back.returncode == 5
    assert back.stdout.startswith("epoch 1 ")


def test_a_pipe_that_is_closed_is_no_error(server: Epochd, trained: str) -> None:
    command = f"{' '.join(COMMAND)} metrics {trained} --csv | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment_for(server), capture_output=True, text=True)
    assert done.stdout.splitlines()[0].startswith("seq,epoch,")
    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["metrics", "--csv"], 0), (["watch"], 141), (["logs", "-f"], 141), (["job"], 0)]
)
def test_who_stops_reading_what_is_followed_hears_no_success(
    server: Epochd, trained: str, arguments: list[str], code: int
) -> None:
    """And no complaint from Python about a pipe, also where the last of the output stands in its buffer."""
    read, write = os.pipe()
    os.close(read)
    env = {name: value for name, value in environment_for(server).items() if name != "PYTHONUNBUFFERED"}
    command = [*COMMAND, *arguments, trained]
    done = subprocess.run(command, env=env, stdout=write, stderr=subprocess.PIPE, text=True, timeout=SECONDS)
    os.close(write)
    assert (done.returncode, done.stderr) == (code, "")


def test_whoever_follows_when_the_service_is_killed_misses_no_epoch(fresh_data_dir: Callable[[], Path]) -> None:
    """The command on a terminal and in a pipe, and both clients."""
    with epochd(fresh_data_dir()) as ours, ThreadPoolExecutor(2) as pool:
        job_id = ours.submit(model={"hidden": [16]}, threads=1, batch_size=256, epochs=30, name="[red]x\u202ey")
        clients = [pool.submit(follow, ours.url, job_id), pool.submit(asyncio.run, follow_async(ours.url, job_id))]
        with started(ours, "watch", job_id) as piped, on_terminal(ours, "watch", job_id) as screen:
            screen.until(r"\n +3 +\d")
            os.kill(ours.pid_of("service"), signal.SIGKILL)
            screen.until("The service is back")
            screen.until(r"succeeded.* after")
            assert screen.code == 0
            out, err = piped.communicate(timeout=SECONDS)
        epochs = [row["epoch"] for row in ours.metrics(job_id)]
        followed = [each.result(SECONDS) for each in clients]
    assert followed == [epochs, epochs]
    assert [int(line.split()[1]) for line in out.splitlines() if line.startswith("epoch ")] == epochs
    assert err.splitlines() == [f"epochd: {LOST}", f"epochd: {BACK}"]
    assert [int(found) for found in re.findall(r"^ {2,4}(\d+) {2,}\d+\.\d{4}", screen.text, re.MULTILINE)] == epochs
    assert (screen.text.count(LOST), screen.text.count(BACK)) == (1, 1)
    assert "\u202e" not in screen.raw
    assert r"[red]x\u202ey" in screen.text


def follow(url: str, job_id: str) -> list[int]:
    with Client(url) as client:
        return [row.epoch for row in client.job(job_id).follow()]


async def follow_async(url: str, job_id: str) -> list[int]:
    async with AsyncClient(url) as client:
        return [row.epoch async for row in (await client.job(job_id)).follow()]


class Terminal:
    """What a program writes to a terminal."""

    def __init__(self, process: "subprocess.Popen[bytes]", leader: int) -> None:
        self._process, self._leader = process, leader
        self.raw = ""

    @property
    def text(self) -> str:
        """Without its escape sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r", "\n")

    @property
    def code(self) -> int:
        return self._process.wait(SECONDS)

    def until(self, pattern: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not re.search(pattern, self.text):
            assert time.monotonic() < deadline, self.text[-2000:]
            if select.select([self._leader], [], [], 1)[0]:
                self.raw += os.read(self._leader, 65536).decode(errors="replace")


@contextmanager
def on_terminal(server: Epochd, *arguments: str) -> Iterator[Terminal]:
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment_for(server), stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        try:
            yield Terminal(process, leader)
        finally:
            process.kill()
            os.close(leader)
