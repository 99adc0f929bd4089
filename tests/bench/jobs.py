"""Jobs over HTTP, from before the POST to the instant that the database keeps as their end, beside scripts.

That instant and not when a client hears of it: else the client's polling would be measured, or would cost the job its
processor.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.end_to_end.serving import Epochd

from .pairs import Figure, Findings, Line, Pair, Target, collect
from .specs import AUGMENTED, MODELS, TUTORIAL
from .workplace import WHOLE, Pictures, Rows, Workplace, lines_of, timed_script

_POLL_SECONDS = 0.5
_TERMINAL = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Ran:
    seconds: float
    rows: Rows
    job: Mapping[str, Any]

    @property
    def share_besides(self) -> float:
        """Of the time, that was neither training nor testing."""
        spent: float = sum(row["train_seconds"] + row["test_seconds"] for row in self.rows)
        return 1 - spent / self.seconds


def run(server: Epochd, **spec: Any) -> Ran:
    asked = time.time()
    return _end_of(server, server.submit(**spec), asked)


def _end_of(server: Epochd, job_id: str, asked: float) -> Ran:
    while (job := server.job(job_id))["status"] not in _TERMINAL:
        time.sleep(_POLL_SECONDS)
    assert job["status"] == "succeeded", job["error"]
    return Ran(datetime.fromisoformat(job["finished_at"]).timestamp() - asked, server.metrics(job_id), job)


def tutorial(place: Workplace, precision: str, at_least: float) -> Findings:
    """The tutorial's job, its overhead and its wait for the first step, beside the script."""
    name, options = f"job mlp {precision}", place.options
    spec = TUTORIAL | {"precision": precision, "epochs": options.epochs}
    scripts: list[Rows] = []
    jobs: list[Ran] = []

    def pairs(server: Epochd) -> Iterator[Pair]:
        for _ in range(options.pairs):
            seconds, rows = timed_script(server, "tests.bench.tutorial", place.torchvision_root, options.epochs)
            scripts.append(rows)
            jobs.append(run(server, **spec))
            yield seconds, jobs[-1].seconds

    limit = _limit("mlp", precision, WHOLE, options.epochs)
    with _warm(place) as server:
        measured = collect(name, pairs(server), options.pairs, place.say)
        starts = [_first_step_seconds(server, spec) for _ in range(options.starts)]
    lines: list[Line | Figure] = [
        Line(name, "tutorial script", measured, Target(at_least), limit),
        Figure(f"{name}: not training", [job.share_besides for job in jobs], Target(0.02, is_most=True), is_share=True),
        Figure(f"{name}: POST to first step", starts, Target(0.2, is_most=True)),
    ]
    notes = [f"{name}: {_agreement(scripts, [job.rows for job in jobs], exact=precision == 'fp32')}"]
    return Findings(lines, notes, {"scripts": scripts, "jobs": [job.rows for job in jobs]})


def convolutional(place: Workplace, model: str, pictures: Pictures, epochs: int) -> Findings:
    """A convolutional network with augmentation, one pair for each seed, beside the reference loop."""
    name, options = f"job {model}", place.options
    scripts: list[Rows] = []
    jobs: list[Ran] = []

    def pairs(server: Epochd) -> Iterator[Pair]:
        spec = MODELS[model] | AUGMENTED | {"epochs": epochs, "dataset": _dataset(server, place, pictures)}
        for seed in range(options.seeds):
            flags = ("--epochs", epochs, "--seed", seed, "--pictures", *pictures)
            seconds, rows = timed_script(server, "tests.bench.reference", model, place.torchvision_root, *flags)
            job = run(server, **spec, seed=seed)
            assert job.job["provenance"]["parameters"] == rows[-1]["parameters"], "these are not the same network"
            scripts.append(rows)
            jobs.append(job)
            yield seconds, job.seconds

    limit = _limit(model, "bf16", pictures, epochs)
    with _warm(place) as server:
        measured = collect(name, pairs(server), options.seeds, place.say)
    line = Line(name, "reference loop", measured, Target(1.5), limit)
    accuracies = [[rows[-1]["test_accuracy"] for rows in each] for each in (scripts, [job.rows for job in jobs])]
    told = [f"{who} {_spread(those)}" for who, those in zip(("reference", "epochd"), accuracies, strict=True)]
    note = f"{name}: accuracy at the end ({pictures[0]:,} pictures, epochs: {epochs}): {'; '.join(told)}"
    return Findings([line], [note], {"scripts": scripts, "jobs": [job.rows for job in jobs]})


def two_at_once(place: Workplace) -> Findings:
    """Two of the tutorial's jobs, one after the other and then together."""
    name, options = "two jobs at once", place.options
    spec = TUTORIAL | {"epochs": options.epochs}
    threads: list[list[int]] = []

    def pairs(server: Epochd) -> Iterator[Pair]:
        for _ in range(options.pairs):
            in_turn = sum(run(server, **spec).seconds for _ in range(2))
            jobs = _together(server, spec)
            threads.append([job.job["provenance"]["threads"] for job in jobs])
            yield in_turn, max(job.seconds for job in jobs)

    with _warm(place) as server:
        measured = collect(name, pairs(server), options.pairs, place.say)
    note = f"{name}: threads of the two: {', '.join(' and '.join(map(str, each)) for each in threads)}"
    return Findings([Line(name, "one after the other", measured, Target(1.25))], [note], {"threads": threads})


def _together(server: Epochd, spec: Mapping[str, Any]) -> list[Ran]:
    """Posted at the same moment, which both their times begin with."""
    asked = time.time()
    with ThreadPoolExecutor(2) as clients:
        ids = list(clients.map(lambda _: server.submit(**spec), range(2)))
    return [_end_of(server, job_id, asked) for job_id in ids]


@contextmanager
def _warm(place: Workplace) -> Iterator[Epochd]:
    """A service that has the dataset and has trained."""
    assert place.torchvision_root  # the service takes its files from there
    with place.server() as server:
        run(server, epochs=1)
        yield server


def _dataset(server: Epochd, place: Workplace, pictures: Pictures) -> dict[str, str]:
    if pictures == WHOLE:
        return {"name": "fashion-mnist"}
    name = "fashion-first"
    server.upload(place.archive(pictures), name=name)
    dataset = server.wait_dataset(name)
    assert (dataset["status"], dataset["train_count"], dataset["test_count"]) == ("ready", *pictures), dataset["error"]
    return {"name": name}


def _first_step_seconds(server: Epochd, spec: Mapping[str, Any]) -> float:
    """From before the POST to the instant that the attempt noted after its first step; same clock, same machine."""
    asked = time.time()
    job_id = server.submit(**spec)
    job = server.wait(job_id, lambda job: job["attempts"] and job["attempts"][-1]["first_batch_at"] is not None)
    server.http.post(f"/jobs/{job_id}/cancel")
    server.wait_terminal(job_id)
    return datetime.fromisoformat(job["attempts"][-1]["first_batch_at"]).timestamp() - asked


def _agreement(scripts: Sequence[Rows], jobs: Sequence[Rows], *, exact: bool) -> str:
    """How near the accuracies of the epochs are."""
    pairs = [
        (theirs["test_accuracy"], ours["test_accuracy"])
        for script, job in zip(scripts, jobs, strict=True)
        for theirs, ours in zip(script, job, strict=True)
    ]
    if exact:
        same = all(f"{theirs:.4f}" == f"{ours:.4f}" for theirs, ours in pairs)
        verdict = "equal to four digits in every pair" if same else "NOT EQUAL to four digits in some pair"
    else:
        furthest = max(abs(theirs - ours) for theirs, ours in pairs)
        verdict = f"within {furthest:.4f} of the script's (target 0.001)"
    shown = " ".join(f"{row['test_accuracy']:.4f}" for row in jobs[-1])
    return f"accuracies {shown}, {verdict}"


def _spread(accuracies: Sequence[float]) -> str:
    return f"mean {statistics.mean(accuracies):.4f} ({min(accuracies):.4f} to {max(accuracies):.4f})"


def _limit(model: str, precision: str, pictures: Pictures, epochs: int) -> str:
    (found,) = lines_of("tests.bench.limits", model, precision, *pictures, epochs)
    what = "its matrix products alone" if model == "mlp" else f"its {found['gflop']:,.0f} GFLOP at peak"
    return f"{found['floor_seconds']:.2f} s: {what}"
