"""`epochd serve` itself: starting, refusing to start, keys, stopping."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.end_to_end.serving import environment, epochd


def serve(data_dir: Path, **settings: str) -> "subprocess.CompletedProcess[str]":
    """Runs `epochd serve` where it is expected to refuse."""
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)} | settings
    command = [sys.executable, "-m", "service.cli", "serve"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_it_and_the_job_goes_back_to_the_queue(
    fresh_data_dir: Callable[[], Path], how: signal.Signals
) -> None:
    data_dir = fresh_data_dir()
    with epochd(data_dir) as server:
        job_id = server.submit(epochs=50)
        server.wait(job_id, lambda job: job["progress"]["batch"] > 0)
        assert server.stop(how) == 0
    with epochd(data_dir) as server:
        job = server.wait(job_id, lambda job: job["attempt"] == 2 and job["progress"]["batch"] > 0)
        assert job["attempts"][0]["outcome"] == "released"
        server.http.post(f"/jobs/{job_id}/cancel")
        server.wait_terminal(job_id)


def test_a_port_that_is_taken_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = serve(tmp_path, EPOCHD_PORT=str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"EPOCHD_PORT": "eighty"}, "EPOCHD_PORT: Input should be a valid integer"),
        ({"EPOCHD_LEASE_SECONDS": "1"}, "EPOCHD_LEASE_SECONDS must be at least twice"),
        ({"EPOCHD_API_KEY": "short"}, "EPOCHD_API_KEY: "),
        ({"EPOCHD_DATABASE_URL": "mysql://there/db"}, "EPOCHD_DATABASE_URL: "),
    ],
)
def test_a_wrong_setting_is_said_in_a_sentence(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    done = serve(tmp_path, **settings)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "short" not in done.stderr.replace("at least", "")


def test_a_data_folder_that_cannot_be_used_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    done = serve(tmp_path / "file")
    assert done.returncode == 1
    assert "cannot use the data folder" in done.stderr
    (tmp_path / "epochd.db").write_bytes(b"this is no database, and long enough to be looked at" * 100)
    done = serve(tmp_path)
    assert done.returncode == 1
    assert "cannot open the database: file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_others_can_reach_makes_a_key_and_shows_it_once(tmp_path: Path) -> None:
    """127.0.0.2 is loopback to the kernel, but not one of the addresses that stay open."""
    exposed = {"EPOCHD_HOST": "127.0.0.2"}
    with epochd(tmp_path, exposed) as server:
        (key,) = re.findall(r"shown only now: (\S+)", server.log.read_text())
        assert server.http.get("/jobs").status_code == 401
        assert httpx2.get(f"{server.url}/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    with epochd(tmp_path, exposed) as server:
        assert "shown only now" not in server.log.read_text()
        assert httpx2.get(f"{server.url}/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    database = (tmp_path / "epochd.db").read_bytes()
    assert key.encode() not in database


def test_a_configured_key_is_needed_and_reaches_neither_log_nor_predictor(tmp_path: Path) -> None:
    key = "a-key-of-my-own-choosing"
    with epochd(tmp_path, {"EPOCHD_API_KEY": key}) as server:
        assert server.http.get("/jobs").status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        assert server.http.get("/jobs", headers=headers).status_code == 200
        assert key not in server.log.read_text()
        predictor = Path(f"/proc/{server.pid_of('worker.inference')}/environ").read_bytes()
        assert key.encode() not in predictor
