import io
import multiprocessing
import os
import signal
import time
import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from PIL import Image

from worker.datasets import decoding, pictures
from worker.datasets.archive import Member
from worker.datasets.decoding import DecoderDied, Decoders, decoders
from worker.datasets.pictures import plain

# pytest's process may have threads, of torch or of xdist; one that prepares has none.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

LIMIT = 1_000_000
GREY = plain(1, 8, 8)
BROKEN = b"\x89PNG\r\n\x1a\n and then nothing"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_CHUNK_PICTURES", 7)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def shade(number: int) -> bytes:
    """A picture that tells its number: two shades, 256 * above + below."""
    image = Image.new("L", (8, 8), number // 256)
    image.paste(number % 256, (0, 4, 8, 8))
    return encoded(image)


def put(blob: Path, files: Sequence[bytes]) -> list[Member]:
    members, offset = [], 0
    for number, data in enumerate(files):
        members.append(Member(PurePosixPath(f"{number}.png"), offset, len(data)))
        offset += len(data)
    blob.write_bytes(b"".join(files))
    return members


def children(pool: Decoders) -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid is not None]


def is_gone(pid: int) -> bool:
    """Also one that its new parent has not yet asked about."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("small_chunks")
def test_pictures_come_in_the_order_of_the_members_over_many_chunks(tmp_path: Path) -> None:
    members = put(tmp_path / "blob", [shade(number) for number in range(500)])
    backwards = members[::-1]  # an order of its own, not that of the file
    with decoders(tmp_path / "blob", LIMIT) as pool:
        chunks = list(pool.decode(backwards, GREY))
    assert len(chunks) == 72
    images = np.concatenate([chunk.images for chunk in chunks])
    assert images.shape == (500, 1, 8, 8)
    assert images.dtype == np.uint8
    assert (256 * images[:, 0, 0, 0].astype(int) + images[:, 0, 7, 0]).tolist() == list(range(499, -1, -1))
    assert len({digest for chunk in chunks for digest in chunk.digests}) == 500


@pytest.mark.usefixtures("small_chunks")
def test_a_picture_that_cannot_be_decoded_is_told_by_its_place_and_no_other_is_missing(tmp_path: Path) -> None:
    broken = {0, 6, 7, 20, *range(28, 35)}  # ends of chunks, and the fifth chunk as a whole
    members = put(tmp_path / "blob", [BROKEN if number in broken else shade(number) for number in range(40)])
    with decoders(tmp_path / "blob", LIMIT) as pool:
        chunks = list(pool.decode(members, GREY))
    places = {7 * number + place for number, chunk in enumerate(chunks) for place in chunk.problems}
    assert places == broken
    assert all(problem for chunk in chunks for problem in chunk.problems.values())
    assert [len(chunk.images) + len(chunk.problems) for chunk in chunks] == [7, 7, 7, 7, 7, 5]
    assert all(len(chunk.digests) == len(chunk.images) for chunk in chunks)
    assert chunks[4].images.shape == (0, 1, 8, 8)
    images = np.concatenate([chunk.images for chunk in chunks])
    assert images[:, 0, 7, 0].tolist() == [number for number in range(40) if number not in broken]


def test_equal_pixels_have_equal_digests_whatever_file_they_come_from(tmp_path: Path) -> None:
    image = Image.new("L", (8, 8), 100)
    other = image.copy()
    other.putpixel((3, 3), 101)
    members = put(tmp_path / "blob", [encoded(image), encoded(image, "BMP"), encoded(other)])
    with decoders(tmp_path / "blob", LIMIT) as pool:
        (files,) = pool.inspect(members)
        (pixels,) = pool.decode(members, GREY)
    assert len({each.digest for each in files}) == 3
    assert pixels.digests[0] == pixels.digests[1] != pixels.digests[2]


def test_inspecting_tells_what_files_promise_and_what_is_wrong_with_them(tmp_path: Path) -> None:
    files = [
        encoded(Image.new("RGB", (30, 20)), "JPEG"),
        encoded(Image.new("L", (5, 6))),
        BROKEN,
        encoded(Image.new("1", (1001, 1000))),
        encoded(Image.new("L", (5, 6))),
    ]
    with decoders(tmp_path / "blob", LIMIT) as pool:
        (inspected,) = pool.inspect(put(tmp_path / "blob", files))
    headers = [each.header and (each.header.width, each.header.height, each.header.is_grey) for each in inspected]
    assert headers == [(30, 20, False), (5, 6, True), None, None, (5, 6, True)]
    assert [each.problem is None for each in inspected] == [True, True, False, False, True]
    assert "1001 x 1000" in str(inspected[3].problem)
    assert inspected[1].digest == inspected[4].digest
    assert len({each.digest for each in inspected}) == 4


def test_the_pixel_limit_holds_while_decoding_too(tmp_path: Path) -> None:
    members = put(tmp_path / "blob", [encoded(Image.new("1", (1001, 1000))), shade(1)])
    with decoders(tmp_path / "blob", LIMIT) as pool:
        (decoded,) = pool.decode(members, GREY)
    assert list(decoded.problems) == [0]
    assert len(decoded.images) == 1


def test_large_files_make_chunks_of_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = put(tmp_path / "blob", [shade(number) for number in range(10)])
    size = max(member.size for member in members)
    for limit, lengths in ((3 * size, [3, 3, 3, 1]), (size // 2, [1] * 10)):
        monkeypatch.setattr(decoding, "_CHUNK_BYTES", limit)
        with decoders(tmp_path / "blob", LIMIT) as pool:
            assert [len(chunk) for chunk in pool.inspect(members)] == lengths


def test_nothing_to_decode_gives_nothing(tmp_path: Path) -> None:
    with decoders(tmp_path / "blob", LIMIT) as pool:
        assert list(pool.inspect([])) == []
        assert list(pool.decode([], GREY)) == []


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("at", [0, 33, 199])
def test_a_process_that_dies_of_a_picture_is_told_and_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    files = [shade(number) for number in range(200)]
    real = pictures.decode

    def fragile(data: bytes, channels: int, *, max_pixels: int) -> object:
        if data == files[at]:
            os._exit(3)
        return real(data, channels, max_pixels=max_pixels)

    monkeypatch.setattr(pictures, "decode", fragile)
    members = put(tmp_path / "blob", files)
    with decoders(tmp_path / "blob", LIMIT) as pool:
        with pytest.raises(DecoderDied, match=r"possibly of one of them.*\d+\.png"):
            list(pool.decode(members, GREY))
        pids = children(pool)
    assert all(map(is_gone, pids))
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("waits", [False, True])
def test_a_process_that_is_killed_is_told_whenever_that_is_noticed(tmp_path: Path, waits: bool) -> None:
    """Waiting for its result, or when it is given more to do."""
    members = put(tmp_path / "blob", [shade(number) for number in range(1000)])
    with decoders(tmp_path / "blob", LIMIT) as pool:
        results = pool.decode(members, GREY)
        next(results)
        pids = children(pool)
        os.kill(pids[0], signal.SIGKILL)
        if waits:
            wait_until(lambda: all(map(is_gone, pids)))  # the pool ends the others when it has noticed
        with pytest.raises(DecoderDied):
            list(results)
    assert all(map(is_gone, pids))


@pytest.mark.usefixtures("small_chunks")
def test_who_leaves_early_leaves_no_process_behind(tmp_path: Path) -> None:
    members = put(tmp_path / "blob", [shade(number) for number in range(1000)])
    pids: list[int] = []

    def stop_in_the_middle() -> None:
        with decoders(tmp_path / "blob", LIMIT) as pool:
            for _ in pool.inspect(members):
                pids.extend(children(pool))
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle()
    assert pids
    assert all(map(is_gone, pids))


def hold(blob: Path, members: list[Member], pipe: Connection) -> None:
    with decoders(blob, LIMIT) as pool:
        list(pool.inspect(members))
        pipe.send(children(pool))
        time.sleep(60)


def test_the_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    parent = context.Process(target=hold, args=(tmp_path / "blob", put(tmp_path / "blob", [shade(1)]), there))
    parent.start()
    assert here.poll(10)
    pids = here.recv()
    assert pids
    parent.kill()
    parent.join()
    with suppress(AssertionError):
        wait_until(lambda: all(map(is_gone, pids)))
    left = [pid for pid in pids if not is_gone(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def test_inspecting_holds_no_pictures_in_memory(tmp_path: Path) -> None:
    """300 MB of files: one large picture, many times."""
    data = encoded(Image.new("RGB", (1000, 1000)), "BMP")
    (tmp_path / "blob").write_bytes(data)
    members = [Member(PurePosixPath(f"{number}.bmp"), 0, len(data)) for number in range(100)]
    tracemalloc.start()
    try:
        with decoders(tmp_path / "blob", LIMIT) as pool:
            assert sum(len(chunk) for chunk in pool.inspect(members)) == 100
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20
