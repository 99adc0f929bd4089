"""`epochd admin`: a backup of an epochd that trains, brought back elsewhere, ends with the same bits."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.end_to_end.serving import environment, epochd

SPEC = {"model": {"hidden": [64], "dropout": 0.2}, "threads": 1, "epochs": 20}


def admin(data_dir: Path, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "service.cli", "admin", *arguments]
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)}
    return subprocess.run(command, env=env, input=stdin, capture_output=True, check=False)


def test_a_backup_of_a_training_goes_on_elsewhere_to_the_same_bits(
    fresh_data_dir: Callable[[], Path], tmp_path: Path
) -> None:
    data_dir, elsewhere = fresh_data_dir(), tmp_path / "elsewhere"
    with epochd(data_dir) as server:
        job_id = server.submit(**SPEC)
        server.wait(job_id, lambda job: job["progress"]["epoch"] >= 2)
        made = admin(data_dir, "backup", str(tmp_path / "backup.tar"))
        assert made.returncode == 0, made.stderr
        assert admin(data_dir, "backup", str(tmp_path / "backup.tar")).returncode == 1  # it is there already
        refused = admin(data_dir, "restore", str(tmp_path / "backup.tar"))
        assert (refused.returncode, b"already" in refused.stderr) == (1, True)
        assert server.wait_terminal(job_id)["status"] == "succeeded"
        (whole,) = [row for row in server.http.get(f"/jobs/{job_id}/checkpoints").json()["data"] if row["is_last"]]
        checked = admin(data_dir, "check", "--digests")
        assert (checked.returncode, checked.stdout) == (0, b"Nothing is wrong.\n"), checked.stderr
    restored = admin(elsewhere, "restore", str(tmp_path / "backup.tar"))
    assert restored.returncode == 0, restored.stderr
    assert admin(elsewhere, "check", "--digests").stdout == b"Nothing is wrong.\n"
    with epochd(elsewhere) as server:
        job = server.wait_terminal(job_id)
        assert job["status"] == "succeeded"
        assert [each["outcome"] for each in job["attempts"]] == ["released", "succeeded"]
        assert job["attempts"][1]["resumed_from"] >= 1
        (again,) = [row for row in server.http.get(f"/jobs/{job_id}/checkpoints").json()["data"] if row["is_last"]]
    assert again["weights_sha256"] == whole["weights_sha256"]


def test_a_backup_goes_through_a_pipe_and_damage_is_found(fresh_data_dir: Callable[[], Path], tmp_path: Path) -> None:
    data_dir, elsewhere = fresh_data_dir(), tmp_path / "elsewhere"
    with epochd(data_dir) as server:
        job_id = server.submit(**SPEC | {"epochs": 1})
        server.wait_terminal(job_id)
    piped = admin(data_dir, "backup", "-")
    assert piped.returncode == 0, piped.stderr
    cut_off = admin(elsewhere, "restore", "-", stdin=piped.stdout[:-20_000])
    assert (cut_off.returncode, b"not a whole backup" in cut_off.stderr) == (1, True), cut_off.stderr
    assert not (elsewhere / "jobs").exists()
    assert admin(elsewhere, "restore", "-", stdin=piped.stdout).returncode == 0
    (weights,) = (elsewhere / "jobs" / job_id / "checkpoints").glob("*.safetensors")
    weights.unlink()
    found = admin(elsewhere, "check")
    assert found.returncode == 1
    assert b"it is missing. It is of " + job_id.encode() in found.stdout
