"""What a client may take of a real epochd: time, memory, connections. Each limit is small here, and shown to hold."""

import contextlib
import hashlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.raw import Answer, Headers, answer, connect, exchange, parsed, request, rest
from tests.end_to_end.serving import Epochd, epochd
from tests.worker.jobs.making import finish, job_with_status, make_ready, progress, result, running, saved
from worker.jobs import records
from worker.jobs.db import Database
from worker.jobs.states import Outcome, Status

MIB = 2**20
FILE_BYTES = 16 * MIB
SETTINGS = {
    "EPOCHD_HEADER_SECONDS": "1",
    "EPOCHD_BODY_SECONDS": "1",
    "EPOCHD_SEND_SECONDS": "1",
    "EPOCHD_MAX_REQUESTS": "8",
    "EPOCHD_SLOTS": "1",
}
SOON = 10  # after a second, on a machine that is busy; the usual settings are ten and thirty
SECURITY = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
FORM = "multipart/form-data; boundary=frontier"
HALF_A_FORM = b'--frontier\r\nContent-Disposition: form-data; name="archive"; filename="x.zip"\r\n\r\nPK\x03\x04'
HALF = request("POST", "/jobs", {"Content-Type": "application/json", "Content-Length": "100"}) + b'{"epochs"'


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    (folder / "epochd.db").write_bytes(migrated_sqlite.read_bytes())
    return folder


@pytest.fixture(scope="module")
def checkpoint(data_dir: Path) -> str:
    """The address of a large one, of a job that is over."""
    path = data_dir / "jobs" / "large.safetensors"
    path.parent.mkdir()
    contents = bytes(range(256)) * (FILE_BYTES // 256)
    path.write_bytes(contents)
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    make_ready(db)
    job = running(db)
    row = saved(1, path="jobs/large.safetensors", sha256=hashlib.sha256(contents).hexdigest(), bytes=FILE_BYTES)
    records.record_epoch(db, job.id, job.attempt, result(1), row, progress(1))
    finish(db, job, Outcome.SUCCEEDED)
    db.close()
    return f"/jobs/{job.id}/checkpoints/1"


@pytest.fixture(scope="module")
def paused(data_dir: Path, checkpoint: str) -> str:
    """A job to which nothing happens."""
    assert checkpoint  # whose job is claimed first
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    job = job_with_status(db, Status.PAUSED)
    db.close()
    return job.id


@pytest.fixture(scope="module")
def server(data_dir: Path, paused: str) -> Iterator[Epochd]:
    assert paused
    with epochd(data_dir, SETTINGS) as running_server:
        yield running_server


@pytest.fixture(autouse=True)
def alive(server: Epochd) -> Iterator[None]:
    """After each test it answers, and has nobody at work any more."""
    yield
    until(lambda: get(server, "/jobs").status == 200)
    assert "request_failed" not in server.log.read_text()


def get(server: Epochd, target: str, **headers: str) -> Answer:
    return exchange(
        server.url, request("GET", target, {name.replace("_", "-"): each for name, each in headers.items()})
    )


def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has let go of it, whatever of it has not been read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


@contextmanager
def dripping(connections: list[socket.socket], data: bytes) -> Iterator[None]:
    """Meanwhile each of them sends a byte now and then."""
    over = threading.Event()

    def drip() -> None:
        for position in range(len(data)):
            if over.wait(0.1):
                return
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(data[position : position + 1])

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("is_first", [True, False], ids=["first_request", "second_request"])
def test_fifty_that_never_finish_their_headers_keep_nobody_waiting_and_are_dropped(
    server: Epochd, is_first: bool
) -> None:
    with ExitStack() as opened:
        slow = [opened.enter_context(connect(server.url)) for _ in range(50)]
        for each in [] if is_first else slow:
            each.sendall(request("GET", "/healthz", {"Connection": "keep-alive"}))
            assert each.recv(MIB).startswith(b"HTTP/1.1 200 ")
        head = request("GET", "/jobs")[:-2]
        for each in slow:
            each.send(head[:20])
        with dripping(slow, b"X-Slow: " + b"x" * 1000):
            assert get(server, "/jobs").status == 200  # with room for eight
            assert not any(map(is_closed, slow))
            until(lambda: all(map(is_closed, slow)))
        for each in slow:
            late = answer(each)
            assert (late.status, late.code) == (408, "request_timeout")


def test_who_connects_and_says_nothing_is_dropped(server: Epochd) -> None:
    begun = time.monotonic()
    with connect(server.url) as connection:
        assert rest(connection) == b""
    assert time.monotonic() - begun < SOON


def test_half_a_body_is_refused_when_the_other_half_does_not_come(server: Epochd) -> None:
    for target, kind in (("/jobs", "application/json"), ("/predict", "image/png"), ("/datasets", FORM)):
        headers: Headers = {"Content-Type": kind, "Content-Length": "1000", "Connection": "keep-alive"}
        begun = time.monotonic()
        late = exchange(server.url, request("POST", target, headers) + HALF_A_FORM)
        assert time.monotonic() - begun < SOON
        assert (late.status, late.code) == (408, "request_timeout"), target
        assert late.headers["connection"] == "close"


def test_a_body_that_comes_slowly_but_steadily_is_taken(server: Epochd) -> None:
    body = b'{"epochs": 0}'
    with connect(server.url) as connection:
        connection.sendall(request("POST", "/jobs", {"Content-Type": "application/json", "Content-Length": "13"}))
        for position in range(len(body)):
            connection.send(body[position : position + 1])
            time.sleep(0.15)  # two seconds in all, and never one without a byte
        assert answer(connection).status == 422


def test_a_client_that_reads_nothing_is_dropped(server: Epochd, checkpoint: str) -> None:
    with connect(server.url, receive_buffer=4096) as connection:
        connection.sendall(request("GET", checkpoint))
        assert connection.recv(12) == b"HTTP/1.1 200"
        begun = time.monotonic()
        until(lambda: is_closed(connection))
        assert time.monotonic() - begun > 0.5
        assert len(rest(connection)) < FILE_BYTES


def test_a_client_that_reads_slowly_gets_everything(server: Epochd, checkpoint: str) -> None:
    with connect(server.url, receive_buffer=MIB) as connection:
        connection.sendall(request("GET", checkpoint))
        received = bytearray()
        while data := connection.recv(4 * MIB, socket.MSG_WAITALL):
            received += data
            time.sleep(0.4)  # longer than it may take nothing, all in all
        assert len(parsed(bytes(received)).body) == FILE_BYTES


def flood(server: Epochd, head: bytes, line: bytes) -> Answer:
    """Sends a head and then this over and over, 100 MB of it, unless it is stopped."""
    block = line * (MIB // len(line))
    with connect(server.url) as connection:
        connection.sendall(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(block)
        return answer(connection)


FLOODS = {
    "many headers": (request("GET", "/jobs")[:-2], b"X-More: 0123456789\r\n"),
    "one header": (request("GET", "/jobs")[:-2] + b"X-Large: ", b"x"),
    "a path": (b"GET /", b"x"),
    "trailers of a body": (
        request("POST", "/jobs", {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}) + b"0\r\n",
        b"X-More: 0123456789\r\n",
    ),
    "the extension of a chunk": (
        request("POST", "/jobs", {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}) + b"1;x=",
        b"x",
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_headers_without_end_are_refused_and_cost_no_memory(server: Epochd, name: str) -> None:
    before = server.resident_bytes("service")
    refused = flood(server, *FLOODS[name])
    assert (refused.status, refused.code) == (431, "headers_too_large")
    assert SECURITY.items() <= refused.headers.items()
    assert server.resident_bytes("service") - before < 16 * MIB


def test_headers_of_an_ordinary_size_are_taken(server: Epochd) -> None:
    assert get(server, "/jobs", X_Large="x" * 60_000).status == 200
    refused = get(server, "/jobs", X_Large="x" * 2**16)
    assert (refused.status, refused.code) == (431, "headers_too_large")


def test_a_body_beyond_its_limit_costs_no_memory(server: Epochd) -> None:
    before = server.resident_bytes("service")
    head = request("POST", "/jobs", {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
    refused = flood(server, head, b"10000\r\n" + b" " * 2**16 + b"\r\n")
    assert (refused.status, refused.code) == (413, "too_large")
    assert server.resident_bytes("service") - before < 16 * MIB


def test_after_a_body_that_is_too_large_the_rest_is_not_waited_for(server: Epochd) -> None:
    for target, kind in (("/jobs", "application/json"), ("/predict", "image/png"), ("/datasets", FORM)):
        headers: Headers = {"Content-Type": kind, "Content-Length": str(2**40), "Connection": "keep-alive"}
        begun = time.monotonic()
        refused = exchange(server.url, request("POST", target, headers) + b"{")
        assert (refused.status, refused.code) == (413, "too_large")
        assert refused.headers["connection"] == "close"
        assert SECURITY.items() <= refused.headers.items()
        assert time.monotonic() - begun < 1  # sooner than a body that does not come is given up


def test_clients_that_leave_a_stream_are_no_failure(server: Epochd, paused: str) -> None:
    for _ in range(100):
        with connect(server.url) as connection:
            connection.sendall(request("GET", f"/jobs/{paused}/stream"))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


def test_clients_that_leave_in_the_middle_of_a_body_are_no_failure(server: Epochd) -> None:
    for target, kind in (("/jobs", "application/json"), ("/predict", "image/png"), ("/datasets", FORM)):
        with connect(server.url) as connection:
            connection.sendall(request("POST", target, {"Content-Type": kind, "Content-Length": "1000"}) + HALF_A_FORM)
            time.sleep(0.1)


def test_no_more_requests_are_worked_on_than_may_be_and_health_answers_still(server: Epochd) -> None:
    with ExitStack() as opened:
        for _ in range(8):
            opened.enter_context(connect(server.url)).sendall(HALF)
        until(lambda: get(server, "/jobs").status == 503, seconds=0.9)
        refused = get(server, "/jobs")
        assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "busy", "1")
        assert get(server, "/healthz").status == 200
        assert get(server, "/readyz").status == 200
        until(lambda: get(server, "/jobs").status == 200)  # their bodies are late


def test_who_only_waits_is_not_at_work(server: Epochd, paused: str) -> None:
    with ExitStack() as opened:
        for target in [f"/jobs/{paused}/stream", f"/jobs/{paused}/metrics?wait=5"] * 8:
            opened.enter_context(connect(server.url)).sendall(request("GET", target))
        time.sleep(0.3)
        assert get(server, "/jobs").status == 200


def cpu_seconds(server: Epochd) -> float:
    stat = Path(f"/proc/{server.pid_of('service')}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / 100


@pytest.mark.parametrize("ranges", ["0-0,1-1", "0-0,2-2"], ids=["that_touch", "apart"])
def test_ten_thousand_ranges_cost_no_more_than_the_file(server: Epochd, checkpoint: str, ranges: str) -> None:
    begun = cpu_seconds(server)
    whole = get(server, checkpoint)
    usual = cpu_seconds(server) - begun
    assert (whole.status, len(whole.body)) == (200, FILE_BYTES)
    step = 1 if ranges == "0-0,1-1" else 2
    header = "bytes=" + ",".join(f"{step * number}-{step * number}" for number in range(10_000))
    begun = cpu_seconds(server)
    answer = get(server, checkpoint, Range=header[:65_000].rpartition(",")[0])  # as many as a head can hold
    assert (answer.status, len(answer.body)) == (200, FILE_BYTES)
    assert cpu_seconds(server) - begun < usual + 0.3


def test_a_few_ranges_are_honoured(server: Epochd, checkpoint: str) -> None:
    one = get(server, checkpoint, Range="bytes=10-19")
    assert (one.status, one.body) == (206, bytes(range(10, 20)))
    several = get(server, checkpoint, Range="bytes=" + ",".join(f"{start}-{start}" for start in range(0, 160, 10)))
    assert several.status == 206
    assert several.headers["content-type"].startswith("multipart/byteranges")
    one_more = get(server, checkpoint, Range="bytes=" + ",".join(f"{start}-{start}" for start in range(0, 170, 10)))
    assert (one_more.status, len(one_more.body)) == (200, FILE_BYTES)
    assert get(server, checkpoint, Range=f"bytes={FILE_BYTES}-").status == 416


def test_what_is_downloaded_is_saved_and_not_shown(server: Epochd, checkpoint: str) -> None:
    for each in (get(server, checkpoint), get(server, checkpoint, Range="bytes=0-1")):
        assert each.headers["content-disposition"].startswith("attachment; filename=")
        assert each.headers["content-type"] == "application/octet-stream"
        assert SECURITY.items() <= each.headers.items()


def test_a_name_that_leads_here_from_elsewhere_opens_nothing(server: Epochd) -> None:
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0"):
        refused = get(server, "/jobs", Host=host)
        assert (refused.status, refused.code) == (400, "bad_host"), host
    for host in ("localhost", "localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert get(server, "/jobs", Host=host).status == 200, host
    none = request("GET", "/jobs").replace(b"Host: localhost\r\n", b"")
    assert exchange(server.url, none).code == "bad_host"


def test_what_is_no_http_is_refused_in_the_usual_shape(server: Epochd) -> None:
    for sent in (b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", request("GET", "/jobs", {"Content-Length": "x"})):
        refused = exchange(server.url, sent)
        assert (refused.status, refused.code) == (400, "invalid_request"), sent
        assert SECURITY.items() <= refused.headers.items()


def test_hundreds_of_connections_at_once_are_all_answered(server: Epochd) -> None:
    with ThreadPoolExecutor(50) as pool:
        statuses = list(pool.map(lambda _: get(server, "/healthz").status, range(300)))
    assert statuses == [200] * 300
