import subprocess
import sys
from pathlib import Path

import pytest


def start(module: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Starts one of our processes where it is expected to refuse."""
    return subprocess.run(
        [sys.executable, "-m", module], env=env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", ["service", "worker"])
def test_every_process_says_in_a_sentence_why_it_cannot_start(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    done = start(module, EPOCHD_DATA_DIR=str(folder))
    assert (done.returncode, done.stderr) == (1, f"epochd: cannot use the data folder {folder}: File exists\n")
    done = start(module, EPOCHD_DATA_DIR=str(tmp_path), EPOCHD_API_KEY="s3cret")
    assert (done.returncode, done.stderr.partition(":")[0]) == (2, "epochd")
    assert "EPOCHD_API_KEY: " in done.stderr
    assert "s3cret" not in done.stderr
    done = start(module, EPOCHD_DATA_DIR=str(tmp_path), EPOCHD_SINKS="csv,excel")
    assert (done.returncode, done.stderr[:39]) == (2, "epochd: EPOCHD_SINKS: Input should be '")


def test_an_empty_variable_is_an_unset_one(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    done = start("worker", EPOCHD_DATA_DIR=str(folder), EPOCHD_API_KEY="", EPOCHD_DATABASE_URL="", EPOCHD_SLOTS="")
    assert done.returncode == 1  # it got past its settings
