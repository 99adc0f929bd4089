"""A real epochd for tests and the demo: `epochd serve` as a process on a free port, and a client to talk to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx2

START_SECONDS = 60.0
JOB_SECONDS = 300.0
PREDICTORS = frozenset({"predictor", "planner", "batch", "export", "parity", "import"})


class Epochd:
    """A running `epochd serve`."""

    def __init__(self, process: "subprocess.Popen[bytes]", url: str, log: Path, data_dir: Path) -> None:
        self.process, self.url, self.log, self.data_dir = process, url, log, data_dir
        self.http = httpx2.Client(base_url=url, timeout=60)

    def submit(self, **spec: Any) -> str:
        answer = self.http.post("/jobs", json=spec)
        assert answer.status_code == 201, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get(f"/jobs/{job_id}").raise_for_status().json()
        return body

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.http.get(f"/jobs/{job_id}/metrics").raise_for_status().json()["data"]
        return rows

    def upload(self, archive: Path, **form: Any) -> dict[str, Any]:
        with archive.open("rb") as file:
            files = {"archive": (archive.name, file)}
            answer = self.http.post("/datasets", files=files, data={"dataset": json.dumps(form)})
        assert answer.status_code == 202, answer.text
        body: dict[str, Any] = answer.json()
        return body

    def dataset(self, name: str) -> dict[str, Any]:
        body: dict[str, Any] = self.http.get(f"/datasets/{name}").raise_for_status().json()
        return body

    def wait_dataset(self, name: str) -> dict[str, Any]:
        """Polls the newest version until it is ready or invalid."""
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            dataset = self.dataset(name)
            if dataset["status"] in ("ready", "invalid"):
                return dataset
            time.sleep(0.02)
        raise AssertionError(f"the dataset never got there: {self.dataset(name)}")

    def wait(self, job_id: str, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Polls the job until it is as wanted."""
        deadline = time.monotonic() + JOB_SECONDS
        while time.monotonic() < deadline:
            job = self.job(job_id)
            if until(job):
                return job
            time.sleep(0.02)
        raise AssertionError(f"the job never got there: {self.job(job_id)}")

    def wait_terminal(self, job_id: str) -> dict[str, Any]:
        return self.wait(job_id, lambda job: job["status"] in ("succeeded", "failed", "cancelled"))

    def processes(self) -> dict[int, str]:
        """The pids of everything that this epochd started, with their command lines."""
        return {pid: _command(pid) for pid in _descendants(self.process.pid)}

    def pid_of(self, module: str) -> int:
        """The process that runs `python -m <module>`; not those that it forked."""
        running = {pid for pid, command in self.processes().items() if f"-m {module} " in f"{command} "}
        (pid,) = [pid for pid in running if _parent(pid) not in running and _name(pid) not in PREDICTORS]
        return pid

    def predictor_pid(self) -> int:
        """The process that answers pictures; there is a moment without one when it was killed."""
        deadline = time.monotonic() + START_SECONDS
        while not (found := [pid for pid in self.processes() if _name(pid) == "predictor"]):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return found[0]

    def resident_bytes(self, module: str) -> int:
        """Of the process that runs `python -m <module>`, at its largest."""
        status = Path(f"/proc/{self.pid_of(module)}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    def attempt_pids(self) -> list[int]:
        """The training processes: forked from the preloaded one, and each the leader of a session."""
        return [pid for pid in self._forkserver_pids() if os.getsid(pid) == pid]

    def trainings_of(self, job_id: str, *, under: int | None = None) -> list[int]:
        """The processes that train this job, and so write into its log; of another worker those `under` its process."""
        return [pid for pid in _descendants(under or self.process.pid) if f"/jobs/{job_id}/attempt-" in _output(pid)]

    def preloaded_pid(self) -> int:
        (pid,) = [pid for pid in self._forkserver_pids() if os.getsid(pid) != pid]
        return pid

    def _forkserver_pids(self) -> list[int]:
        return [pid for pid, command in self.processes().items() if "forkserver" in command]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(30)


def environment() -> dict[str, str]:
    """This process's, without what would point an epochd at somebody's own database, key or folder."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("EPOCHD_", "MAKE", "MFLAGS"))}


@contextmanager
def epochd(
    data_dir: Path,
    settings: Mapping[str, str] = MappingProxyType({}),
    *,
    log: Path | None = None,
    wait_ready: bool = True,
) -> Iterator[Epochd]:
    """Starts `epochd serve` on a free port; nothing of it is left afterwards."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log = log or data_dir / "serve.log"
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir), "EPOCHD_PORT": "0"} | dict(settings)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"], env=env, stderr=output, stdout=output
        )
    started: dict[int, str] = {}
    try:
        running = Epochd(process, _url(process, log), log, data_dir)
        with running.http:
            if wait_ready:
                _wait_ready(running)
            yield running
    finally:
        started = {pid: _command(pid) for pid in _descendants(process.pid)}
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        _assert_gone(started)


def _url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and (entry := json.loads(line)).get("event") == "listening":
                url: str = entry["url"]
                return url
        time.sleep(0.02)
    raise RuntimeError(f"epochd did not start:\n{log.read_text()[-2000:]}")


def _wait_ready(running: Epochd) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if running.http.get("/readyz").status_code == 200:
            return
        time.sleep(0.05)
    raise RuntimeError(f"epochd did not get ready:\n{running.log.read_text()[-2000:]}")


def _assert_gone(started: dict[int, str], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while left := {pid: command for pid, command in started.items() if command and _command(pid) == command}:
        if time.monotonic() > deadline:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise RuntimeError(f"left running: {left}")
        time.sleep(0.02)


def _command(pid: int) -> str:
    """Empty when there is no such process, or only its zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _output(pid: int) -> str:
    """The file that a process writes its standard output to."""
    try:
        return str(Path(f"/proc/{pid}/fd/1").readlink())
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _descendants(pid: int) -> list[int]:
    return [each for child in _children(pid) for each in (child, *_descendants(child))]
