"""Batches over real HTTP: in bounded memory, and nothing is left of them when their clients leave, whenever that is."""

import csv
import io
import json
import os
import signal
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.pictures import png, zip_files
from tests.end_to_end.serving import Epochd

SIDE = 4000  # of a picture that takes 16 MB when it is decoded
LARGE = 40
MANY = 30_000  # so many take a second to unpack
SECONDS = 30.0  # for what takes milliseconds


def batches(server: Epochd) -> list[int]:
    """The processes at work."""
    names = {pid: Path(f"/proc/{pid}/comm") for pid in server.processes()}
    return [pid for pid, name in names.items() if name.exists() and name.read_text().strip() == "batch"]


def resident_bytes(pid: int) -> int:
    """At its largest; 0 when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, _, found = status.partition("VmHWM:")
    return int(found.split()[0]) * 1024 if found else 0


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def uploads(server: Epochd) -> list[Path]:
    return list((server.data_dir / "uploads").glob("*"))


def post(server: Epochd, job_id: str, body: bytes, query: str = "top_k=1") -> socket.socket:
    """Sends the whole request, and reads nothing."""
    at = urlsplit(server.url)
    wire = socket.create_connection((at.hostname, at.port), timeout=SECONDS)
    head = f"POST /predict/batch?job={job_id}&{query} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Length: {len(body)}"
    wire.sendall(f"{head}\r\nContent-Type: application/zip\r\n\r\n".encode() + body)
    return wire


@pytest.fixture(scope="module")
def picture(prepared: Path) -> bytes:
    return png(np.load(prepared / "test_images.npy", mmap_mode="r")[0, 0])


@pytest.fixture(scope="module")
def many(picture: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("many") / "many.zip"
    return zip_files(path, ((f"{number:05}.png", picture) for number in range(MANY))).read_bytes()


@pytest.fixture(scope="module")
def mixed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[str]]:
    """A zip of 300 pictures, four of which are none, beside clutter and notes; and the names in it."""
    images = np.load(prepared / "test_images.npy", mmap_mode="r")
    names = [f"set {number % 3}/{number:03}.png" for number in range(300)]
    names[7], names[8] = "=HYPERLINK(1).png", 'with "quotes", and a comma.png'

    def files() -> Iterable[tuple[str, bytes]]:
        for number, name in enumerate(names):
            yield name, b"\x89PNG broken" if number % 75 == 50 else png(np.array(images[number, 0]))
            yield f"__MACOSX/._{number}.png", b"clutter"
        yield "notes.txt", b"no picture"

    path = tmp_path_factory.mktemp("mixed") / "mixed.zip"
    return zip_files(path, files()).read_bytes(), names


def test_lines_and_rows_are_in_the_archives_order_and_say_the_same(
    server: Epochd, trained: str, mixed: tuple[bytes, list[str]]
) -> None:
    body, names = mixed
    url = f"/predict/batch?job={trained}&top_k=2"
    answer = server.http.post(url, files={"archive": body}).raise_for_status()
    assert answer.headers["Epochd-Job"] == trained
    head, *lines, tail = map(json.loads, answer.text.splitlines())
    broken = [number for number in range(300) if number % 75 == 50]
    assert (head["total"], tail["done"], tail["failed"]) == (300, 300, len(broken))
    assert [(line["number"], line["of"], line["file"]) for line in lines] == [
        (number, 300, name) for number, name in enumerate(names, start=1)
    ]
    assert [number for number, line in enumerate(lines) if "error" in line] == broken
    assert all(len(line["top"]) == 2 for line in lines if "error" not in line)
    rows = list(csv.DictReader(io.StringIO(server.http.post(f"{url}&format=csv", content=body).text)))
    assert [row["file"] for row in rows] == ["'" + name if name.startswith("=") else name for name in names]
    for row, line in zip(rows, lines, strict=True):
        assert (row["label"], row["error"]) == (line.get("label", ""), line.get("error", ""))


def test_a_tar_gz_is_answered_like_a_zip(server: Epochd, trained: str, picture: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        for name in ("b.png", "a.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture)
            archive.addfile(info, io.BytesIO(picture))
    answer = server.http.post(f"/predict/batch?job={trained}", content=(tmp_path / "a.tar.gz").read_bytes())
    _, *lines, tail = map(json.loads, answer.raise_for_status().text.splitlines())
    assert ([line["file"] for line in lines], tail["done"]) == (["b.png", "a.png"], 2)


def test_memory_is_that_of_a_picture_and_not_of_the_archive(server: Epochd, trained: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (SIDE, SIDE), 200).save(buffer, "PNG", compress_level=1)
    files = [(f"{number:02}.png", buffer.getvalue()) for number in range(LARGE)]
    body = zip_files(tmp_path / "large.zip", files).read_bytes()
    service = server.pid_of("service")
    before, most, first = resident_bytes(service), 0, 0
    with server.http.stream("POST", f"/predict/batch?job={trained}&top_k=1", content=body) as answer:
        lines = 0
        for chunk in answer.iter_bytes():
            lines += chunk.count(b"\n")
            for pid in batches(server):
                most = max(most, resident_bytes(pid))
                first = first or most
    assert lines == LARGE + 2
    assert first > 0
    assert most - first < 12 * SIDE * SIDE  # all of them would be more than three times that
    assert resident_bytes(service) - before < 64 * 2**20


@pytest.mark.parametrize("seconds", [0.0, 0.2, 0.5])
def test_who_leaves_before_the_first_line_leaves_nothing(
    server: Epochd, trained: str, many: bytes, seconds: float
) -> None:
    for _ in range(2):  # as many as there may be at once
        with post(server, trained, many):
            time.sleep(seconds)
    wait_until(lambda: not batches(server) and not uploads(server))
    url = f"/predict/batch?job={trained}&dataset=fashion-mnist&top_k=1"
    for _ in range(2):
        with server.http.stream("POST", url) as answer:
            assert answer.status_code == 200


def test_who_leaves_while_the_archive_is_unpacked_is_not_worked_for(server: Epochd, trained: str, many: bytes) -> None:
    with post(server, trained, many):
        wait_until(lambda: any(path.name.endswith(".pictures") for path in uploads(server)))
        (pid,) = batches(server)
        os.kill(pid, signal.SIGSTOP)  # there will be no first line
    wait_until(lambda: not batches(server) and not uploads(server))


def test_who_leaves_amid_the_lines_or_does_not_read_them_leaves_nothing(
    server: Epochd, trained: str, many: bytes
) -> None:
    with post(server, trained, many, "top_k=10") as wire:
        assert wire.recv(4096).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # the line is full meanwhile
        assert len(batches(server)) == 1
        assert resident_bytes(server.pid_of("service")) < 2**30
    wait_until(lambda: not batches(server) and not uploads(server))


def test_a_process_that_is_killed_amid_the_lines_breaks_the_stream_off_and_says_so(
    server: Epochd, trained: str, many: bytes
) -> None:
    received = bytearray()

    def read() -> None:
        with server.http.stream("POST", f"/predict/batch?job={trained}&top_k=10", content=many) as answer:
            for chunk in answer.iter_bytes():
                if not received:
                    (pid,) = batches(server)
                    os.kill(pid, signal.SIGKILL)
                received.extend(chunk)

    with pytest.raises(httpx2.RemoteProtocolError):
        read()
    last: dict[str, Any] = json.loads(received.splitlines()[-1])
    assert last["code"] == "predictor_unavailable"
    assert "number" not in last
    wait_until(lambda: not batches(server) and not uploads(server))


def test_what_is_refused_as_a_whole_is_refused_with_its_own_status(
    server: Epochd, trained: str, picture: bytes, tmp_path: Path
) -> None:
    url = f"/predict/batch?job={trained}"
    refused: list[tuple[bytes, int, str]] = [
        (zip_files(tmp_path / "a.zip", [("notes.txt", b"none")]).read_bytes(), 422, "bad_archive"),
        (zip_files(tmp_path / "b.zip", [("../a.png", picture)]).read_bytes(), 422, "unsafe_path"),
        (zip_files(tmp_path / "c.zip", [("a.png", picture)]).read_bytes()[:-30], 422, "bad_archive"),
        (b"no archive", 422, "bad_archive"),
        (b"", 400, "invalid_request"),
    ]
    for body, status, code in refused:
        answer = server.http.post(url, content=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert server.http.post(f"{url}&dataset=nothing").status_code == 404
    wait_until(lambda: not batches(server) and not uploads(server))


def test_a_tiny_job_is_certified(server: Epochd, prepared: Path, tmp_path: Path) -> None:
    images, labels = (np.load(prepared / f"test_{part}.npy", mmap_mode="r") for part in ("images", "labels"))
    with zipfile.ZipFile(tmp_path / "tiny.zip", "w") as archive:
        for number in range(400):
            split = "test" if number % 4 == 0 else "train"
            archive.writestr(f"{split}/{labels[number]}/{number:03}.png", png(np.array(images[number, 0])))
    server.upload(tmp_path / "tiny.zip", name="certified")
    assert server.wait_dataset("certified")["status"] == "ready"
    job_id = server.submit(dataset={"name": "certified"}, model={"name": "cnn", "channels": [4]}, threads=1, epochs=2)
    assert server.wait_terminal(job_id)["status"] == "succeeded"
    wait_until(lambda: server.http.get(f"/jobs/{job_id}/parity").status_code == 200)
    found = server.http.get(f"/jobs/{job_id}/parity").json()
    best = max(server.metrics(job_id), key=lambda row: row["test_accuracy"])
    assert found["passed"]
    assert (found["pictures"], found["epoch"], found["device"]) == (100, best["epoch"], "cpu")
    assert found["accuracy"] == found["loop_accuracy"] == found["recorded_accuracy"] == best["test_accuracy"]
