"""Bad inputs, row by row, against a real epochd that is closed: status, code, and that it goes on as if nothing was.

Not here because it is elsewhere: archives that lie, burst or climb (`test_hostile_datasets.py`), pictures that are
bombs, broken or of kinds that are not taken (`test_pictures.py`), bodies and headers that are too large or too slow,
`Range` (`test_limits.py`), names that resolve to other addresses and redirects of webhooks
(`tests/service/test_webhooks.py`).
"""

import io
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.end_to_end.pictures import png, zip_files
from tests.end_to_end.raw import Answer, Headers, connect, exchange, request
from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import ready_tiny
from worker.jobs import keys
from worker.jobs.db import Database
from worker.jobs.states import Scope

SETTINGS = {
    "EPOCHD_SLOTS": "1",
    "EPOCHD_POLL_SECONDS": "0.01",
    "EPOCHD_MAX_STREAMS": "2",
    "EPOCHD_MAX_QUEUED_JOBS_PER_KEY": "2",
    "EPOCHD_MAX_IMAGE_BYTES": str(2**20),
    "EPOCHD_MAX_DATASET_BYTES": str(2**21),
    "EPOCHD_WEBHOOKS": "true",
    "EPOCHD_WEBHOOK_SECRET": "a-secret-that-is-long-enough",
}
TINY: dict[str, Any] = {"epochs": 1, "threads": 1, "model": {"hidden": [8]}}
NO_JOB = "0" * 24
PICTURE = png(np.zeros((28, 28), dtype=np.uint8))
JSON: Headers = {"Content-Type": "application/json"}
FORM: Headers = {"Content-Type": "multipart/form-data; boundary=frontier"}
END = b"--frontier--\r\n"
IS_LOOKED_INTO = "what the picture is says its contents; 415 is for a type that the request itself names"
FORM_HEAD = b'--frontier\r\nContent-Disposition: form-data; name="%b"; filename="x.png"\r\n\r\n'


class Row(NamedTuple):
    """`{job}` and the like in a target stand for what the server has."""

    name: str
    method: str
    target: str
    status: int
    code: str
    headers: Headers = MappingProxyType({})
    body: bytes = b""
    key: str | None = "own"
    note: str = ""  # why it is not as one might expect


def job_row(
    name: str,
    body: bytes | str | dict[str, Any],
    status: int = 422,
    code: str = "validation_error",
    note: str = "",
) -> Row:
    content = json.dumps(body) if isinstance(body, dict) else body
    content = content.encode() if isinstance(content, str) else content
    return Row(name, "POST", "/jobs?dry_run=true", status, code, JSON, content, note=note)


def predict_row(
    name: str, body: bytes, status: int, code: str, kind: str = "multipart/form-data; boundary=frontier"
) -> Row:
    return Row(name, "POST", "/predict?job={job}", status, code, {"Content-Type": kind}, body)


def part(name: str, contents: bytes = PICTURE) -> bytes:
    return FORM_HEAD % name.encode() + contents + b"\r\n"


def chunk(contents: bytes) -> bytes:
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(contents), contents)


KEYS = [
    Row("no key", "GET", "/jobs", 401, "unauthenticated", key=None),
    Row("a wrong key", "GET", "/jobs", 401, "unauthenticated", {"Authorization": "Bearer wrong"}, key=None),
    Row("an empty key", "GET", "/jobs", 401, "unauthenticated", {"Authorization": "Bearer "}, key=None),
    Row(
        "a key of 10 kB", "GET", "/jobs", 401, "unauthenticated", {"Authorization": f"Bearer {'k' * 10_000}"}, key=None
    ),
    Row("a key in the query", "GET", "/jobs?key={own_key}&api_key={own_key}", 401, "unauthenticated", key=None),
    Row("a key beyond ASCII", "GET", "/jobs", 401, "unauthenticated", {"Authorization": b"Bearer \xff\xfe"}, key=None),
    Row("a missing scope", "POST", "/jobs", 403, "forbidden", JSON, b"{}", key="reader"),
    Row("a missing scope, to predict", "POST", "/predict", 403, "forbidden", FORM, part("image") + END, key="reader"),
]
OTHERS = [
    Row(f"another owner's: {method} {target}", method, target, 404, "not_found", headers, body, key="other")
    for method, target, headers, body in (
        ("GET", "/jobs/{job}", {}, b""),
        ("GET", "/jobs/{job}/metrics", {}, b""),
        ("GET", "/jobs/{job}/metrics?wait=1", {}, b""),
        ("GET", "/jobs/{job}/stream", {}, b""),
        ("GET", "/jobs/{job}/logs", {}, b""),
        ("GET", "/jobs/{job}/report", {}, b""),
        ("GET", "/jobs/{job}/deliveries", {}, b""),
        ("GET", "/jobs/{job}/checkpoints", {}, b""),
        ("GET", "/jobs/{job}/checkpoints/best", {}, b""),
        ("POST", "/jobs/{running}/cancel", {}, b""),
        ("POST", "/jobs/{running}/pause", {}, b""),
        ("DELETE", "/jobs/{job}", {}, b""),
        ("POST", "/predict?job={job}", {"Content-Type": "image/png"}, PICTURE),
        ("GET", "/datasets/one-class", {}, b""),
        ("DELETE", "/datasets/one-class", {}, b""),
    )
]
ADDRESSES = [
    Row("an unknown path", "GET", "/nowhere", 404, "not_found"),
    Row("a wrong method", "PUT", "/jobs", 405, "method_not_allowed"),
    Row("a path as host", "GET", "/jobs", 400, "bad_host", {"Host": "a/b?c"}),
    Row("somebody's name as host", "GET", "/jobs", 400, "bad_host", {"Host": "evil.example"}),
    Row("a host with a user", "GET", "/jobs", 400, "bad_host", {"Host": "localhost@evil.example"}),
    Row("an empty host", "GET", "/jobs", 400, "bad_host", {"Host": ""}),
    Row("two hosts", "GET", "/jobs", 400, "bad_host", {"host": "localhost"}),
    *(
        Row(f"job {name}", "GET", f"/jobs/{number}", 404, "not_found")
        for name, number in {
            "0": "0",
            "-1": "-1",
            "abc": "abc",
            "1.0": "1.0",
            "of 5000 digits": "9" * 5000,
            "2^63": str(2**63),
            "that there is not": NO_JOB,
            "in capitals": "{job_in_capitals}",
        }.items()
    ),
]
LISTS = [
    Row(f"list {query}", "GET", f"/jobs?{query}", 422, "validation_error")
    for query in (
        "limit=0",
        "limit=-1",
        "limit=1000000000",
        "limit=1e400",
        "after=nonsense",
        "after=%00",
        "sort=owner",
        "status='%20OR%201=1",
        "after='%20OR%201=1--",
        "created_after=%27%20OR%201=1",
        "created_after=0",
    )
] + [Row("list by a label that says OR", "GET", "/jobs?label.a='%20OR%201=1--", 200, "", note="it is only a value")]
LARGE = [
    Row(f"{how}, {target}", "POST", target, 413, "too_large", headers, body)
    for target, head, size, kind in (
        ("/jobs", b"", 2**20, "application/json"),
        ("/predict", b"", 2**20, "image/png"),
        ("/datasets", FORM_HEAD % b"archive" + b"PK\x03\x04", 2**21, "multipart/form-data; boundary=frontier"),
    )
    for how, headers, body in (
        ("a length above the limit", {"Content-Type": kind, "Content-Length": str(size + 1)}, head),
        ("chunks above the limit", {"Content-Type": kind, "Transfer-Encoding": "chunked"}, chunk(head.ljust(size + 1))),
    )
]
BODIES = [
    Row("a picture for JSON", "POST", "/jobs", 415, "unsupported_media_type", {"Content-Type": "image/png"}, PICTURE),
    job_row("truncated JSON", '{"epochs": 1', 400, "invalid_json"),
    job_row("deep JSON", "[" * 100_000, 400, "invalid_json"),
    job_row("deep JSON in a field", '{"labels": ' + '{"a":' * 100_000, 400, "invalid_json"),
    job_row("no UTF-8", b'{"name": "\xff"}', 400, "invalid_json"),
    job_row(
        "duplicate keys", '{"epochs": 1, "epochs": 2}', 200, "", note="the last one counts, as JSON readers have it"
    ),
    job_row("an unknown field", {"epoch": 3}),
    *(
        job_row(f"{number} as learning rate", f'{{"optimizer": {{"lr": {number}}}}}')
        for number in ("NaN", "1e999", "-Infinity", "Infinity")
    ),
    *(
        job_row(f"{number} in a field that there is not", f'{{"nothing": {number}}}')
        for number in ("NaN", "1e999", "-Infinity")
    ),
    *(
        job_row(f"{number} epochs", f'{{"epochs": {number}}}')
        for number in ("0", "-1", "1.5", '"3"', "true", "1e400", "1000000000", "9" * 400)
    ),
    job_row("an integer of 5000 digits", f'{{"epochs": {"9" * 5000}}}', 400, "invalid_json"),
    job_row("a lone surrogate", r'{"name": "\ud800"}'),
    job_row("a lone surrogate as a field's name", r'{"\ud800": 1}'),
    job_row("NUL in a name", r'{"name": "a\u0000b"}'),
    job_row("a name of a million letters", {"name": "n" * 1_000_000}),
    job_row("a control character in a name", r'{"name": "a\u001bb"}'),
    job_row("a name that turns the direction", r'{"name": "a\u202eb"}', 200, ""),
    job_row("a script as name", {"name": "<script>"}, 200, ""),
    job_row("a formula as name", {"name": "=cmd()"}, 200, ""),
    *(
        job_row(f"{field} called {name}", {field: {"name": name}})
        for field in ("model", "optimizer", "schedule", "loss")
        for name in ("nothing", "os.system", "https://example.com/x.pt", "../../x", "__class__")
    ),
    job_row("a transform that there is not", {"augmentation": {"os.system": True}}),
    job_row("a million pictures a batch", {"batch_size": 10**6}),
    job_row(
        "a network that never fits", {"model": {"name": "mlp", "hidden": [65_536] * 32}, "batch_size": 65_536}, 422
    ),
    job_row("no such dataset", {"dataset": {"name": "nothing"}}),
    job_row("a dataset of one class", {"dataset": {"name": "one-class"}}),
    job_row("a dataset without pictures", {"dataset": {"name": "no-pictures"}}),
    job_row("a dataset whose pictures are broken", {"dataset": {"name": "broken-pictures"}}),
    job_row("a URL that may be called", {"webhooks": [{"url": "https://hooks.example.com/x"}]}, 200, ""),
    *(
        job_row(f"webhook to {url}", {"webhooks": [{"url": url}]}, 422, "url_not_allowed")
        for url in (
            "file:///etc/passwd",
            "gopher://example.com/x",
            "http://example.com/x",
            "https://127.0.0.1/x",
            "https://localhost/x",
            "https://10.0.0.1/x",
            "https://192.168.1.1/x",
            "https://172.16.0.1/x",
            "https://169.254.169.254/latest/meta-data/",
            "https://[::ffff:127.0.0.1]/x",
            "https://[::1]/x",
            "https://2130706433/x",
            "https://0x7f.1/x",
            "https://user:secret@example.com/x",
            "https://example.com:22/x",
        )
    ),
]
CONTROL = [
    Row("cancel what has ended", "POST", "/jobs/{job}/cancel", 409, "conflict"),
    Row("delete what runs", "DELETE", "/jobs/{running}", 409, "conflict"),
    Row("cancel what there is not", "POST", f"/jobs/{NO_JOB}/cancel", 404, "not_found"),
]
FILES = [
    Row(f"checkpoint {name}", "GET", f"/jobs/{{job}}/checkpoints/{name}", status, code)
    for name, status, code in (
        ("../best", 404, "not_found"),
        ("../../../../etc/passwd", 404, "not_found"),
        ("%2e%2e%2f%2e%2e%2fepochd.db", 404, "not_found"),
        ("%252e%252e%252fepochd.db", 422, "validation_error"),
        ("..%5c..%5cepochd.db", 422, "validation_error"),
        ("best%00", 422, "validation_error"),
        ("%00", 422, "validation_error"),
        ("/etc/passwd", 404, "not_found"),
        ("%2fetc%2fpasswd", 404, "not_found"),
        ("99", 404, "not_found"),
        ("link.safetensors", 422, "validation_error"),
        ("%23", 422, "validation_error"),
    )
]
UPLOADS = [
    Row("no archive", "POST", "/datasets", 422, "bad_archive", FORM, part("archive", b"x" * 4000) + END),
    Row(
        "pickle as bundle", "POST", "/models/import", 422, "bad_archive", FORM, part("bundle", b"\x80\x04N.") + END
    )._replace(note="a bundle is a zip, and its weights are safetensors: pickle is not even looked at"),
]
PREDICTIONS = [
    predict_row("an empty file", part("image", b"") + END, 400, "invalid_request")._replace(
        note="as if there were no file"
    ),
    predict_row("no file", END, 400, "invalid_request"),
    predict_row("an empty body", b"", 400, "invalid_request"),
    predict_row("two files", part("image") + part("image") + END, 200, "")._replace(note="each gets its answer"),
    predict_row(
        "text in place of a file",
        b'--frontier\r\nContent-Disposition: form-data; name="image"\r\n\r\ntext\r\n' + END,
        400,
        "invalid_request",
    ),
    predict_row("a field of another name", part("file") + END, 400, "invalid_request"),
    predict_row("a thousand fields", part("field", b"x") * 1000 + END, 400, "invalid_request"),
    predict_row("a thousand pictures", part("image", b"x") * 1000 + END, 400, "invalid_request"),
    predict_row(
        "a header of a part that is large",
        b"--frontier\r\nX-Large: " + b"x" * 900_000 + b"\r\n" + part("image")[12:] + END,
        400,
        "invalid_request",
    ),
    predict_row("a boundary of 300 bytes", b"x", 400, "invalid_request", f"multipart/form-data; boundary={'b' * 300}"),
    predict_row("no boundary", part("image") + END, 400, "invalid_request", "multipart/form-data"),
    *(
        predict_row(f"{kind} that says PNG", head.ljust(4000, b"\0"), 422, "bad_image", "image/png")._replace(
            note=IS_LOOKED_INTO
        )
        for kind, head in {
            "FITS": b"SIMPLE  =                    T",
            "PSD": b"8BPS\0\1",
            "EPS": b"%!PS-Adobe-3.0 EPSF-3.0",
            "PDF": b"%PDF-1.7",
            "ICNS": b"icns\0\0\x10\0",
            "TIFF": b"II*\0\x08\0\0\0",
            "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        }.items()
    ),
    predict_row("a PDF that says so", b"%PDF-1.7", 415, "unsupported_media_type", "application/pdf"),
    predict_row("a job that is not finished", PICTURE, 409, "not_ready", "image/png")._replace(
        target="/predict?job={waiting}"
    ),
    predict_row("a checkpoint that was changed on disk", PICTURE, 409, "checkpoint_corrupt", "image/png")._replace(
        target="/predict?job={damaged}"
    ),
    predict_row("a job that was deleted", PICTURE, 404, "not_found", "image/png")._replace(
        target="/predict?job={deleted}"
    ),
    predict_row("an alias that there is not", PICTURE, 404, "not_found", "image/png")._replace(
        target="/predict?model=nothing"
    ),
]
STREAMS = [
    Row(f"Last-Event-ID {value!r}", "GET", "/jobs/{job}/stream", 422, "validation_error", {"Last-Event-ID": value})
    for value in ("abc", "-1", "1.5", str(2**63), "9" * 5000, b"\xff")
]
ROWS = [
    *(KEYS + OTHERS + ADDRESSES + LISTS + LARGE + BODIES + CONTROL + FILES + UPLOADS + PREDICTIONS + STREAMS),
]


class Closed(NamedTuple):
    """A server, its keys, and what it has."""

    server: Epochd
    keys: dict[str, str]
    has: dict[str, str]

    def send(self, row: Row) -> Answer:
        headers = dict(row.headers)
        if row.key is not None:
            headers["Authorization"] = f"Bearer {self.keys[row.key]}"
        target = re.sub(r"{(\w+)}", lambda found: self.has[found[1]], row.target)
        return exchange(self.server.url, request(row.method, target, headers, row.body))


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    data_dir = tmp_path_factory.mktemp("bad-inputs")
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    db.migrate()
    ready_tiny(db, data_dir)
    usual = [Scope.READ, Scope.SUBMIT, Scope.PREDICT]
    rights = {"own": usual, "other": usual, "crowd": usual, "reader": [Scope.READ]}
    made = {name: keys.create(db, scopes, name=name)[0] for name, scopes in rights.items()}
    db.close()
    with epochd(data_dir, SETTINGS) as server:
        server.http.headers["Authorization"] = f"Bearer {made['own']}"
        yield Closed(server, made, _having(server, data_dir) | {"own_key": made["own"]})


def _having(server: Epochd, data_dir: Path) -> dict[str, str]:
    """A job of each kind, and datasets that cannot be trained on."""
    kinds = {
        "one-class": [("cats/0.png", PICTURE), ("cats/1.png", PICTURE)],
        "no-pictures": [("cats/notes.txt", b"x"), ("dogs/notes.txt", b"x")],
        "broken-pictures": [(f"{kind}/{number}.png", PICTURE[:40]) for kind in ("cats", "dogs") for number in "01"],
    }
    for name, files in kinds.items():
        archive = zip_files(data_dir.parent / f"{data_dir.name}-{name}.zip", files)
        server.upload(archive, name=name)
    has = {}
    for name in ("deleted", "damaged", "job"):
        has[name] = server.submit(**TINY)
        assert server.wait_terminal(has[name])["status"] == "succeeded"
    for name in kinds:
        assert server.wait_dataset(name)["status"] == "invalid", name
    assert server.http.delete(f"/jobs/{has['deleted']}").status_code == 204
    (weights,) = (data_dir / "jobs" / has["damaged"]).rglob("*.safetensors")
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    (data_dir / "jobs" / has["job"] / "link.safetensors").symlink_to(data_dir / "epochd.db")
    has["running"] = server.submit(**TINY | {"epochs": 100_000, "checkpoints": {"keep": "best"}})
    server.wait(has["running"], lambda job: job["status"] == "running")
    has["waiting"] = server.submit(**TINY)
    return has | {"job_in_capitals": "A" + has["job"][1:].upper()}


@pytest.mark.parametrize("row", ROWS, ids=[row.name[:60] for row in ROWS])
def test_a_bad_input_gets_its_answer_and_harms_nothing(closed: Closed, row: Row) -> None:
    answer = closed.send(row)
    assert (answer.status, answer.code) == (row.status, row.code), answer.body[:500]
    if answer.status >= 400:
        assert answer.json.keys() == {"type", "title", "status", "detail", "code", "request_id", "errors"}
        assert len(answer.body) < 10_000
        assert not re.search(rb"Traceback|sqlite|SELECT |\.py|epochd\.db|site-packages", answer.body)
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if answer.status == 405:
        assert answer.headers["allow"] == "GET, POST"
    assert_well(closed)


def assert_well(closed: Closed) -> None:
    assert exchange(closed.server.url, request("GET", "/healthz")).status == 200


def test_a_name_in_another_direction_or_with_markup_comes_back_as_it_was(closed: Closed) -> None:
    for name in ("שלום", "<script>alert(1)</script>", "=cmd()|' /C calc'!A0"):
        job_id = closed.server.submit(**TINY, name=name)
        answer = closed.server.http.get(f"/jobs/{job_id}")
        assert answer.json()["name"] == name
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert closed.server.http.post(f"/jobs/{job_id}/cancel").status_code in (200, 202)


def test_a_queue_that_is_full_for_one_key_is_not_for_another(closed: Closed) -> None:
    spec = json.dumps(TINY).encode()
    row = Row("", "POST", "/jobs", 429, "too_many_jobs", JSON, spec, key="crowd")
    answers = [closed.send(row) for _ in range(3)]
    assert [(each.status, each.code) for each in answers] == [(201, ""), (201, ""), (429, "too_many_jobs")]
    assert int(answers[-1].headers["retry-after"]) > 0
    assert closed.send(row._replace(key="other")).status == 201


def test_of_two_who_cancel_at_once_nobody_gets_an_error(closed: Closed) -> None:
    job_id = closed.server.submit(**TINY)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: closed.server.http.post(f"/jobs/{job_id}/cancel").status_code, range(2)))
    assert set(answers) <= {200, 202, 409}, answers
    assert min(answers) < 300
    assert closed.server.wait_terminal(job_id)["status"] == "cancelled"


def test_an_upload_that_breaks_off_leaves_nothing(closed: Closed) -> None:
    before = closed.server.http.get("/datasets").json()
    with connect(closed.server.url) as connection:
        headers = {**FORM, "Content-Length": "1000000", "Authorization": f"Bearer {closed.keys['own']}"}
        archive = io.BytesIO(b"PK\x03\x04" + b"x" * 300_000)
        connection.sendall(request("POST", "/datasets", headers) + part("archive", archive.getvalue()))
        time.sleep(0.2)
    deadline = time.monotonic() + 10
    while list((closed.server.data_dir / "uploads").iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert closed.server.http.get("/datasets").json() == before


def test_fifty_pictures_at_once_are_answered_or_told_to_come_again(closed: Closed) -> None:
    row = predict_row("", PICTURE, 200, "", "image/png")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: closed.send(row), range(50)))
    assert {each.status for each in answers} <= {200, 503}
    assert all("retry-after" in each.headers for each in answers if each.status == 503)
    assert any(each.status == 200 for each in answers)


def test_more_streams_than_may_be_are_refused_until_one_ends(closed: Closed) -> None:
    row = Row("", "GET", "/jobs/{running}/stream", 503, "too_many_streams")
    headers: Headers = {"Authorization": f"Bearer {closed.keys['own']}"}
    with ExitStack() as opened:
        for _ in range(2):
            connection = opened.enter_context(connect(closed.server.url))
            connection.sendall(request("GET", f"/jobs/{closed.has['running']}/stream", headers))
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        refused = closed.send(row)
        assert (refused.status, refused.code) == (503, "too_many_streams")
        assert int(refused.headers["retry-after"]) > 0
        waiting = closed.send(row._replace(target="/jobs/{waiting}/metrics?wait=5"))
        assert (waiting.status, waiting.code) == (503, "too_many_streams")
    deadline = time.monotonic() + 10
    while closed.send(row._replace(target="/jobs/{waiting}/metrics?wait=0.01")).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nothing_of_it_was_a_failure_of_the_service(closed: Closed) -> None:
    """The last one: it looks at what all others have left in the log."""
    log = closed.server.log.read_text()
    assert '"event": "request"' in log
    for failed in ("request_failed", "process_died", "Traceback", "Exception in ASGI"):
        assert failed not in log, log[log.index(failed) - 500 :][:3000]
