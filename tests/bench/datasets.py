"""`make bench-datasets`: preparing beside a plain Pillow loop, a 2 GiB upload, and training on more than memory should
hold.

Every figure is printed as measured; the median of the pairs' ratios is the one to quote.
"""

import argparse
import io
import os
import signal
import statistics
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import load

from tests.end_to_end.pictures import zip_files, zip_of_prepared
from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import prepare_whole

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-datasets", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--photos", type=int, default=1500, help="JPEG files of 1200 x 900 that are prepared")
    parser.add_argument("--upload-mib", type=int, default=2048 - 1)
    parser.add_argument("--large", type=int, default=70_000, help="pictures of 224 x 224 x 3 that are trained on")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="epochd-bench-") as scratch:
        root = Path(scratch)
        fashion = prepare_whole(root / "fashion")
        small = zip_of_prepared(fashion, root / "small.zip", {"train": 60_000, "test": 10_000})
        photos = zip_files(root / "photos.zip", jpegs(fashion, arguments.photos, 1200, 900))
        with epochd(root / "data") as server:
            compare(console, server, small, arguments.pairs, (28, 28), "L", "70,000 PNG 28 x 28")
            title = f"{arguments.photos:,} JPEG 1200 x 900 to 128 x 128"
            compare(console, server, photos, arguments.pairs, (128, 128), "RGB", title)
            receive(console, server, arguments.upload_mib)
            if arguments.large:
                large(console, server, fashion, root, arguments.large)


def jpegs(prepared: Path, count: int, width: int, height: int) -> Iterator[tuple[str, bytes]]:
    """FashionMNIST's pictures, scaled up, in a folder a class."""
    images, labels = (np.load(prepared / f"train_{part}.npy", mmap_mode="r") for part in ("images", "labels"))
    for number in range(count):
        picture = Image.fromarray(np.array(images[number % len(images), 0])).resize((width, height)).convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85)
        yield f"class-{labels[number % len(images)]}/{number:06d}.jpg", buffer.getvalue()


def compare(
    console: Console, server: Epochd, archive: Path, pairs: int, size: tuple[int, int], mode: str, title: str
) -> None:
    table = Table("pair", "Pillow loop s", "pictures/s", "epochd s", "pictures/s", "ratio", box=None, title=title)
    ratios = []
    for pair in range(1, pairs + 1):
        started = time.perf_counter()
        count = pillow_loop(archive, size, mode)
        theirs = time.perf_counter() - started
        server.upload(archive, name="speed", image_size=[size[1], size[0]])
        dataset = server.wait_dataset("speed")
        assert dataset["status"] == "ready", dataset["error"]
        uploaded, done = (datetime.fromisoformat(dataset[each]) for each in ("created_at", "finished_at"))
        ours = (done - uploaded).total_seconds()
        ratios.append(theirs / ours)
        rates = [f"{count / seconds:,.0f}" for seconds in (theirs, ours)]
        table.add_row(f"{pair}", f"{theirs:.2f}", rates[0], f"{ours:.2f}", rates[1], f"{ratios[-1]:.2f}")
    console.print(table)
    console.print(f"median ratio {statistics.median(ratios):.2f} on {len(os.sched_getaffinity(0))} cores\n")


def pillow_loop(archive: Path, size: tuple[int, int], mode: str) -> int:
    """What one would write: no checks, no digests, no report, nothing kept on a disk."""
    pictures = []
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            image = Image.open(io.BytesIO(opened.read(name))).convert(mode)
            pictures.append(np.asarray(image if image.size == size else image.resize(size)))
    return len(np.stack(pictures))


def receive(console: Console, server: Epochd, mebibytes: int) -> None:
    """An upload of this size: what it costs the service, and whether others are still answered."""
    before = server.resident_bytes("service")
    waits: list[float] = []
    with asking(server, waits):
        started = time.perf_counter()
        answer = server.http.post("/datasets", content=upload_body(mebibytes), headers=HEADERS, timeout=600)
        seconds = time.perf_counter() - started
    assert answer.status_code == 202, answer.text
    grown = server.resident_bytes("service") - before
    waits.sort()
    console.print(
        f"upload of {mebibytes} MiB: {seconds:.1f} s, {mebibytes / seconds:,.0f} MiB/s; the service's resident memory "
        f"grew by {grown / MIB:.1f} MiB; /healthz meanwhile: {len(waits)} answers, median "
        f"{1000 * statistics.median(waits):.1f} ms, p99 {1000 * waits[int(0.99 * len(waits))]:.1f} ms, "
        f"slowest {1000 * waits[-1]:.0f} ms\n"
    )
    assert server.wait_dataset("large-upload")["status"] == "invalid"


HEADERS = {"Content-Type": "multipart/form-data; boundary=frontier"}


def upload_body(mebibytes: int) -> Iterator[bytes]:
    yield b'--frontier\r\nContent-Disposition: form-data; name="dataset"\r\n\r\n{"name": "large-upload"}\r\n'
    yield b'--frontier\r\nContent-Disposition: form-data; name="archive"; filename="x.zip"\r\n\r\nPK\x03\x04'
    noise = np.random.default_rng(0).bytes(MIB)
    for _ in range(mebibytes):
        yield noise
    yield b"\r\n--frontier--\r\n"


def asking(server: Epochd, waits: list[float]) -> AbstractContextManager[None]:
    """Asks /healthz again and again, and notes how long each answer took."""

    def ask() -> None:
        started = time.perf_counter()
        assert server.http.get("/healthz").status_code == 200
        waits.append(time.perf_counter() - started)

    return repeatedly(ask, 0.02)


@contextmanager
def repeatedly(do: Callable[[], None], seconds: float) -> Iterator[None]:
    """In a thread beside the block."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            do()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def large(console: Console, server: Epochd, fashion: Path, root: Path, count: int) -> None:
    """Pictures that take 150 kB each once decoded: trained twice, once with a SIGKILL in the second epoch."""
    archive = zip_files(root / "large.zip", jpegs(fashion, count, 224, 224))
    console.print(f"{count:,} JPEG 224 x 224: an archive of {archive.stat().st_size / MIB:,.0f} MiB")
    peaks: dict[str, float] = {}
    with sampling(server, peaks):
        server.upload(archive, name="large")
        archive.unlink()
        dataset = server.wait_dataset("large")
    assert dataset["status"] == "ready", dataset["error"]
    took = (
        datetime.fromisoformat(dataset["finished_at"]) - datetime.fromisoformat(dataset["created_at"])
    ).total_seconds()
    arrays = count * 224 * 224 * 3
    console.print(
        f"prepared: {arrays / 1e9:.2f} GB of arrays in {took:.0f} s, {count / took:,.0f} pictures/s; "
        f"largest process: {told(peaks)}"
    )
    spec = {"dataset": {"name": "large"}, "epochs": 2, "batch_size": 256, "model": {"hidden": [16]}}
    digests = []
    for kill in (False, True):
        peaks.clear()
        job_id = server.submit(**spec)
        with sampling(server, peaks):
            if kill:
                server.wait(job_id, lambda job: job["progress"]["epoch"] == 2 and job["progress"]["batch"] > 50)
                os.kill(server.attempt_pids()[0], signal.SIGKILL)
            job = server.wait_terminal(job_id)
        assert job["status"] == "succeeded", job["error"]
        seconds = [row["train_seconds"] for row in server.metrics(job_id)]
        how = "killed in epoch 2 and resumed" if kill else "uninterrupted"
        told_seconds = ", ".join(f"{each:.1f}" for each in seconds)
        console.print(f"{how}: {told_seconds} s an epoch; training process: {told(peaks)}")
        digests.append(load(server.http.get(f"/jobs/{job_id}/checkpoints/last").content))
    same = all(bool((digests[0][name] == digests[1][name]).all()) for name in digests[0])
    console.print(f"the same weights to the bit: {same}")


def told(peaks: dict[str, float]) -> str:
    return ", ".join(f"{name} {value / MIB:,.0f} MiB" for name, value in peaks.items())


def sampling(server: Epochd, peaks: dict[str, float]) -> AbstractContextManager[None]:
    """Notes the largest memory of any attempt's process: resident, of that anonymous, of that mapped from files."""

    def sample() -> None:
        for pid in server.attempt_pids():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            for field in ("VmRSS", "RssAnon", "RssFile"):
                _, _, rest = status.partition(f"{field}:")
                if rest:
                    peaks[field] = max(peaks.get(field, 0), int(rest.split()[0]) * 1024)

    return repeatedly(sample, 0.05)


if __name__ == "__main__":
    main()
