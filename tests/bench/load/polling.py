"""What polling costs a training, and a training who polls."""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.bench.workplace import Options, Workplace
from tests.end_to_end.serving import Epochd, epochd

from .asking import Connection, Tally
from .tables import spread, table

_PERIOD_SECONDS = 1.0


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60, help="of each of four windows")
    parser.add_argument("--pollers", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2, help="of the training")


def run(console: Console, scratch: Path, arguments: argparse.Namespace) -> bool:
    workplace = Workplace(scratch, Options(), lambda text: console.print(text, style="dim"))
    _ = workplace.torchvision_root  # puts the sources where a worker looks for them
    tally = Tally()
    alone: list[float] = []
    beside: list[float] = []
    with epochd(scratch / "data", {"EPOCHD_SLOTS": "1"}) as server:
        job_id = server.submit(threads=arguments.threads, epochs=1000, checkpoints={"keep": "last"})
        server.wait(job_id, lambda job: job["progress"]["epoch"] > 1)
        poll = partial(_poll, server.url, job_id, arguments.pollers, arguments.seconds, tally)
        for _ in range(2):
            alone += _epochs(server, job_id, lambda: time.sleep(arguments.seconds))
            beside += _epochs(server, job_id, lambda: asyncio.run(poll()))
    made = table(
        f"GET metrics, {arguments.pollers} pollers at 1 Hz, beside a training with {arguments.threads} threads",
        "", "requests", "p50 ms", "p99 ms", "most ms", "errors", "epoch s, median", "epochs",
    )  # fmt: skip
    asked = (str(len(tally.seconds)), *spread(tally.seconds).cells, str(tally.errors))
    made.add_row("alone", "", "", "", "", "", *_median(alone))
    made.add_row("polled", *asked, *_median(beside))
    console.print(made, tally.last_error)
    return not tally.errors


def _epochs(server: Epochd, job_id: str, during: Callable[[], None]) -> list[float]:
    """Seconds of each epoch that lay whole within this window."""
    before = len(server.metrics(job_id)) + 1  # one is at work now
    during()
    rows = server.metrics(job_id)[before:]
    return [row["train_seconds"] + row["test_seconds"] for row in rows]


async def _poll(url: str, job_id: str, pollers: int, seconds: float, tally: Tally) -> None:
    started = time.perf_counter()

    async def one(at: float) -> None:
        connection, since = Connection(url), 0
        while at < seconds:
            await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
            answer = await connection.tallied(tally, "GET", f"/jobs/{job_id}/metrics?since={since}")
            if answer is not None:
                since = answer.json["next_since"]
            at += _PERIOD_SECONDS
        connection.close()

    await asyncio.gather(*(one(random.uniform(0, _PERIOD_SECONDS)) for _ in range(pollers)))


def _median(epochs: list[float]) -> tuple[str, str]:
    return (f"{statistics.median(epochs):.2f}" if epochs else "none was whole", str(len(epochs)))
