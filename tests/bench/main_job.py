"""`make bench`: epochd's main job beside the plain tutorial script, in pairs A B A B, and the wait for the first batch.

Every figure is printed as measured; the median of the pairs' ratios is the one to quote.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.end_to_end.serving import Epochd, epochd
from worker.datasets import fashion_mnist
from worker.jobs.settings import Settings

Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--starts", type=int, default=10, help="jobs whose wait for the first batch is measured")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="epochd-bench-") as scratch:
        root, data_dir = Path(scratch, "tutorial"), Path(scratch, "data")
        fashion_mnist.gather(Settings(data_dir=data_dir), root / "FashionMNIST" / "raw", root / "download")
        with epochd(data_dir) as server:
            run_job(server, epochs=1)  # prepares the dataset and warms the disk
            compare(console, server, root, arguments.pairs, arguments.epochs)
            warm = [first_batch_seconds(server) for _ in range(arguments.starts)]
        cold = []
        for _ in range(arguments.starts):
            with epochd(data_dir, wait_ready=False) as server:
                cold.append(first_batch_seconds(server))
    waits = Table("POST to first trained batch, s", "median", "min", "max", box=None, title_justify="left")
    for name, seconds in (("service just started (cold)", cold), ("service running (warm)", warm)):
        waits.add_row(name, *(f"{of(seconds):.3f}" for of in (statistics.median, min, max)))
    console.print(waits)


def compare(console: Console, server: Epochd, root: Path, pairs: int, epochs: int) -> None:
    table = Table("pair", "script s", "epochd s", "ratio", "script train s/epoch", "epochd train s/epoch", box=None)
    ratios, same = [], True
    for pair in range(1, pairs + 1):
        script_seconds, script = timed(lambda: run_script(root, epochs))
        job_seconds, job = timed(lambda: run_job(server, epochs))
        ratios.append(script_seconds / job_seconds)
        per_epoch = [f"{statistics.median(row['train_seconds'] for row in rows):.2f}" for rows in (script, job)]
        table.add_row(f"{pair}", f"{script_seconds:.1f}", f"{job_seconds:.1f}", f"{ratios[-1]:.2f}", *per_epoch)
        same &= accuracies(script) == accuracies(job)
    console.print(table)
    console.print(f"script accuracies {accuracies(script)}\nepochd accuracies {accuracies(job)}", highlight=False)
    verdict = "equal to four digits in every pair" if same else "NOT EQUAL in some pair"
    console.print(f"median ratio {statistics.median(ratios):.2f}; accuracies {verdict}", highlight=False)


def accuracies(rows: Rows) -> list[str]:
    return [f"{row['test_accuracy']:.4f}" for row in rows]


def timed(run: Callable[[], Rows]) -> tuple[float, Rows]:
    started = time.perf_counter()
    rows = run()
    return time.perf_counter() - started, rows


def run_script(root: Path, epochs: int) -> Rows:
    command = [sys.executable, "-m", "tests.bench.tutorial", str(root), str(epochs)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [json.loads(line) for line in output.splitlines()]


def run_job(server: Epochd, epochs: int) -> Rows:
    job_id = server.submit(epochs=epochs, shuffle=False)
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    return server.metrics(job_id)


def first_batch_seconds(server: Epochd) -> float:
    """From before the POST to the instant that the attempt noted after its first step; same clock, same machine."""
    asked = time.time()
    job_id = server.submit(epochs=1, shuffle=False)
    job = server.wait(job_id, lambda job: job["attempts"] and job["attempts"][-1]["first_batch_at"] is not None)
    server.http.post(f"/jobs/{job_id}/cancel")
    server.wait_terminal(job_id)
    return datetime.fromisoformat(job["attempts"][-1]["first_batch_at"]).timestamp() - asked


if __name__ == "__main__":
    main()
