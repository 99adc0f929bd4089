"""The hostile corpus over HTTP: every archive gets its sentence, and epochd itself does not notice."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.serving import Epochd, epochd
from tests.worker.datasets.hostile import CASES, MAX_ENTRIES, Case, pictures, zipped

MIB = 2**20
SETTINGS = {"EPOCHD_POLL_SECONDS": "0.01", "EPOCHD_MAX_ENTRIES": str(MAX_ENTRIES)}
SECONDS = 60  # for one archive
OWN_FILES = {"epochd.db", "epochd.db-wal", "epochd.db-shm", "serve.log", "uploads", "datasets", "workers"}

Outcome = tuple[int | str, str]  # HTTP status or the dataset's own, and code


class Memory:
    """The most memory that each process of an epochd had, as far as it could be looked at before it ended."""

    def __init__(self, server: Epochd) -> None:
        self._server = server
        self._ended = threading.Event()
        self.peaks: dict[int, int] = {}
        self.commands: dict[int, str] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            for pid, command in self._server.processes().items():
                if command:  # it has not ended meanwhile
                    self.commands[pid] = command
                    self.peaks[pid] = max(peak(pid), self.peaks.get(pid, 0))

    def of_preparing(self) -> list[int]:
        """Of the processes that prepare, and of their decoders: all are forked from the preloaded one."""
        preloaded = self._server.preloaded_pid()
        return [most for pid, most in self.peaks.items() if "forkserver" in self.commands[pid] and pid != preloaded]


def peak(pid: int) -> int:
    """The most bytes that the process had in memory, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def snapshot(root: Path, *, without: Path) -> dict[str, str]:
    """Everything below `root` with its contents, but what lies in `without`."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in root.rglob("*")
        if without not in (path, *path.parents)
    }


def upload(server: Epochd, archive: Path, **form: Any) -> tuple[int, str, str]:
    """The answer's status, and where to look for what becomes of it, or the problem's code."""
    with archive.open("rb") as file:
        data = {"dataset": json.dumps(form)}
        answer = server.http.post("/datasets", data=data, files={"archive": (archive.name, file)})
    return answer.status_code, answer.headers.get("Location", ""), answer.json().get("code", "")


def settled(server: Epochd, url: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        body: dict[str, Any] = server.http.get(url).raise_for_status().json()
        if body["status"] in ("ready", "invalid"):
            return body
        time.sleep(0.01)
    raise AssertionError(f"it never got ready or invalid: {body}")


def outcomes(server: Epochd, folder: Path) -> tuple[Mapping[str, Outcome], Mapping[str, str]]:
    """What became of each case, and its sentence. All are sent before the first is waited for."""
    sent: dict[str, tuple[int, str, str]] = {}
    for number, case in enumerate(CASES):
        archive = folder / "hostile.archive"
        case.write(archive)
        sent[case.name] = upload(server, archive, name=f"case-{number}", **case.form)
        archive.unlink()
    found: dict[str, Outcome] = {}
    sentences: dict[str, str] = {}
    for name, (status, url, code) in sent.items():
        found[name] = (status, code)
        if status == 202:
            body = settled(server, url)
            error = body["error"] or {"code": "", "message": ""}
            found[name], sentences[name] = (body["status"], error["code"]), error["message"]
    return found, sentences


def expected(case: Case) -> Outcome:
    return (422 if case.at_once else "invalid", case.code)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder among folders that must stay as they are; the server runs in one of them."""
    for place in ("above.txt", "cat/0.png", "here/0.png", "data-2/datasets/x/card.json"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text("must stay")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "data"


def test_hostile_archives_are_refused_one_by_one_and_nothing_else_happens(
    data_dir: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = snapshot(tmp_path, without=data_dir)
    good = tmp_path_factory.mktemp("archives") / "good.zip"
    good.write_bytes(zipped(pictures()))
    with epochd(data_dir, SETTINGS) as server:
        usual = Memory(server)
        with usual.watched():
            _, url, _ = upload(server, good, name="good")
            assert settled(server, url)["status"] == "ready"
        service, preloaded = server.pid_of("service"), server.preloaded_pid()

        memory = Memory(server)
        with memory.watched():
            found, sentences = outcomes(server, good.parent)

        assert found == {case.name: expected(case) for case in CASES}
        said = {case.name: case.says in sentences[case.name] for case in CASES if not case.at_once}
        assert [name for name, is_said in said.items() if not is_said] == []

        preparing = memory.of_preparing()
        assert len(preparing) > len(CASES) / 2  # the others were too quick to be seen
        assert max(preparing) < max(usual.of_preparing()) + 512 * MIB
        assert memory.peaks[service] < usual.peaks[service] + 64 * MIB
        assert (server.pid_of("service"), server.preloaded_pid()) == (service, preloaded)

        status, url, _ = upload(server, good, name="good")
        assert (status, settled(server, url)["status"]) == (202, "ready")
        assert server.http.get("/healthz").status_code == 200

    assert snapshot(tmp_path, without=data_dir) == before
    assert not Path("/epochd-hostile.png").exists()
    assert {path.name for path in data_dir.iterdir()} <= OWN_FILES
    assert list((data_dir / "uploads").iterdir()) == []
    prepared = [path for path in (data_dir / "datasets").iterdir() if path.suffix != ".log"]  # those of the attempts
    assert len(prepared) == 2  # the good one's versions
