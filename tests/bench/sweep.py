"""`python -m tests.bench.sweep`: a sweep beside the same jobs one after another, each alone with all cores.

Eight learning rates and two seeds of the tutorial's network, two epochs each; A B A B in one run. Neighbours on the
machine spoil times: run it alone.
"""

import argparse
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import prepare_whole
from worker.jobs.processes import cores

_RATES: Final = [0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5]
_SEEDS: Final = [0, 1]
_SPEC: Final[dict[str, Any]] = {"epochs": 2}
_POLL_SECONDS: Final = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.sweep", description=__doc__)
    parser.add_argument("--pairs", type=int, default=2)
    arguments = parser.parse_args()
    console, ratios = Console(highlight=False), []
    with tempfile.TemporaryDirectory(prefix="epochd-sweep-") as folder:
        prepare_whole(Path(folder))
        with epochd(Path(folder)) as server:
            server.wait_terminal(server.submit(epochs=1))  # now everything is warm
            for pair in range(1, arguments.pairs + 1):
                together, body = _sweep(server)
                alone, best = _one_after_another(server)
                ratios.append(alone / together)
                console.print(
                    f"pair {pair}: sweep {together:.1f} s, one after another {alone:.1f} s, {ratios[-1]:.2f} times; "
                    f"best {body['best']['parameters']} {body['best']['value']:.4f}, of the others {best:.4f}"
                )
            for trial in sorted(body["trials"], key=lambda each: -(each["value"] or 0)):
                console.print(f"  {trial['parameters']}: {trial['value']}")
    console.print(f"{cores()} cores, {len(_RATES) * len(_SEEDS)} jobs: {statistics.median(ratios):.2f} times as fast")


def _sweep(server: Epochd) -> tuple[float, dict[str, Any]]:
    parameters = {"optimizer.lr": {"values": _RATES}, "seed": {"values": _SEEDS}}
    asked = time.time()
    sweep = server.http.post("/sweeps", json={"spec": _SPEC, "parameters": parameters}).raise_for_status().json()["id"]
    while not (body := server.http.get(f"/sweeps/{sweep}").json())["finished_at"]:
        time.sleep(_POLL_SECONDS)
    jobs = [server.job(trial["job"]) for trial in body["trials"]]
    assert {job["threads"] for job in jobs} == {1}
    return max(_ended(job) for job in jobs) - asked, body


def _one_after_another(server: Epochd) -> tuple[float, float]:
    """Without the moments in between, in which a client hears of one's end. Returns the best accuracy too."""
    seconds, best = 0.0, 0.0
    for rate in _RATES:
        for seed in _SEEDS:
            asked = time.time()
            job_id = server.submit(**_SPEC, optimizer={"lr": rate}, seed=seed)
            while (job := server.job(job_id))["finished_at"] is None:
                time.sleep(_POLL_SECONDS)
            assert job["threads"] == cores()
            seconds += _ended(job) - asked
            best = max(best, *(row["test_accuracy"] for row in server.metrics(job_id)))
    return seconds, best


def _ended(job: dict[str, Any]) -> float:
    return datetime.fromisoformat(job["finished_at"]).timestamp()


if __name__ == "__main__":
    main()
