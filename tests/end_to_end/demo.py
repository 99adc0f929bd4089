"""The main job, shown: train the tutorial's network over HTTP, then ask it about ten test pictures.

`make demo` starts an epochd of its own; `--url` shows it on one that runs already. Exit code 0 only if all of it
worked.
"""

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from tests.end_to_end.serving import epochd

# As the tutorial's DataLoader, which does not shuffle; the other values of the tutorial are the defaults.
SPEC = {"name": "tutorial", "shuffle": False}
POLL_SECONDS = 0.2
TERMINAL = ("succeeded", "failed", "cancelled")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--url", help="a running epochd; without it one is started, and stopped at the end")
    parser.add_argument("--key", help="its API key")
    parser.add_argument("--epochs", type=int, default=5)
    arguments = parser.parse_args()
    console = Console()
    data_dir = Path(os.environ.get("EPOCHD_DATA_DIR", "epochd-data"))
    with ExitStack() as stack:
        url = arguments.url
        if url is None:
            console.print("Starting service and worker ...")
            url = stack.enter_context(epochd(data_dir, log=_log(data_dir))).url
        headers = {"Authorization": f"Bearer {arguments.key}"} if arguments.key else {}
        http = stack.enter_context(httpx2.Client(base_url=url, headers=headers, timeout=60))
        worked = show(console, http, data_dir, arguments.epochs)
    console.print("Stopped; nothing is left running." if arguments.url is None else "Done.")
    return 0 if worked else 1


def show(console: Console, http: httpx2.Client, data_dir: Path, epochs: int) -> bool:
    spec = SPEC | {"epochs": epochs}
    console.print(f"POST {http.base_url}/jobs {json.dumps(spec)}", soft_wrap=True)
    job_id = http.post("/jobs", json=spec).raise_for_status().json()["id"]
    console.print(f"GET  {http.base_url}/jobs/{job_id}/metrics", soft_wrap=True)
    job = follow(console, http, job_id)
    if job["status"] != "succeeded":
        error = job["error"] or {"message": "no reason was given"}
        console.print(f"The job has {job['status']}: {error['message']}", style="red", highlight=False)
        return False
    pictures = list(test_pictures(data_dir))
    right = predict(console, http, job_id, pictures)
    console.print(f"{right} of {len(pictures)} right; the job's test accuracy is that of all 10,000 pictures.")
    return len(pictures) == 10


def follow(console: Console, http: httpx2.Client, job_id: str) -> dict[str, Any]:
    """Shows a live bar for the epoch at work and a line for each finished one. Returns the ended job."""
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        TextColumn("batch {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[rate]:>7} samples/s   ETA {task.fields[eta]}"),
    )
    heads = ("epoch", "train loss", "test loss", "accuracy", "samples/s", "seconds")
    console.print("".join(f"{head:>12}" for head in heads), style="bold")
    since = 0
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=1, rate="-", eta="-")
        while True:
            page = http.get(f"/jobs/{job_id}/metrics", params={"since": since}).raise_for_status().json()
            since = page["next_since"]
            for row in page["data"]:
                bar.console.print(epoch_line(row), highlight=False)
            job: dict[str, Any] = http.get(f"/jobs/{job_id}").raise_for_status().json()
            if page["terminal"]:
                return job
            show_progress(bar, task, job)
            time.sleep(POLL_SECONDS)


def epoch_line(row: dict[str, Any]) -> str:
    cells = (
        f"{row['epoch']}",
        f"{row['train_loss']:.4f}",
        f"{row['test_loss']:.4f}",
        f"{row['test_accuracy']:.4f}",
        f"{row['samples_per_second']:,.0f}",
        f"{row['train_seconds'] + row['test_seconds']:.2f}",
    )
    return "".join(f"{cell:>12}" for cell in cells)


def show_progress(bar: Progress, task: TaskID, job: dict[str, Any]) -> None:
    progress = job["progress"]
    rate, eta = progress["samples_per_second"], progress["eta_seconds"]
    epochs = job["spec"]["epochs"]
    bar.update(
        task,
        description=f"{progress['epoch']}/{epochs} {job['phase'] or ''}" if progress["epoch"] else job["status"],
        completed=progress["batch"],
        total=progress["batches"] or 1,
        rate="-" if rate is None else f"{rate:,.0f}",
        eta="-" if eta is None else f"{eta:.0f} s",
    )


def test_pictures(data_dir: Path) -> Iterator[tuple[bytes, str]]:
    """The first test picture of each class as a PNG file, with its true class."""
    folder = data_dir / "datasets" / "fashion-mnist-v1"
    if not folder.exists():  # the epochd at --url keeps its own
        from tests.tiny import prepare_whole

        folder = prepare_whole(data_dir)
    classes = json.loads((folder / "card.json").read_text())["classes"]
    images, labels = (np.load(folder / f"test_{part}.npy", mmap_mode="r") for part in ("images", "labels"))
    for index, label in enumerate(classes):
        position = int(np.flatnonzero(labels == index)[0])
        file = io.BytesIO()
        Image.fromarray(np.array(images[position, 0])).save(file, "PNG")
        yield file.getvalue(), label


def predict(console: Console, http: httpx2.Client, job_id: str, pictures: list[tuple[bytes, str]]) -> int:
    """Uploads each picture and shows what comes back beside the truth. Returns how many are right."""
    table = Table("test picture is", "epochd says", "probability", box=None, header_style="bold")
    right = 0
    for png, truth in pictures:
        files = {"image": ("picture.png", png, "image/png")}
        answer = http.post("/predict", params={"job": job_id}, files=files).raise_for_status().json()
        (prediction,) = answer["predictions"]
        right += prediction["label"] == truth
        style = "green" if prediction["label"] == truth else "red"
        table.add_row(truth, f"[{style}]{prediction['label']}[/]", f"{prediction['probability']:.3f}")
    console.print(table)
    return right


def _log(data_dir: Path) -> Path:
    data_dir.mkdir(parents=True, exist_ok=True)
    return data_dir / "demo.log"


if __name__ == "__main__":
    sys.exit(main())
