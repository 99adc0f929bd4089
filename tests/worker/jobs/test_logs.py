"""Logs: one line of JSON each, ours and the libraries', tracebacks included."""

import json
import subprocess
import sys

_SAY = """
import logging
import structlog
from worker.jobs import logs

logs.configure("worker")
structlog.get_logger().info("job_claimed", job="18c")
logging.getLogger("uvicorn.error").warning("from %s", "elsewhere")
logging.getLogger("alembic.runtime").info("not said")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger().exception("attempt_failed")
"""


def test_every_line_is_json_and_says_which_process_wrote_it() -> None:
    done = subprocess.run([sys.executable, "-c", _SAY], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["event"], line["level"], line["process"]) for line in lines] == [
        ("job_claimed", "info", "worker"),
        ("from elsewhere", "warning", "worker"),
        ("attempt_failed", "error", "worker"),
    ]
    assert lines[0]["job"] == "18c"
    assert all(line["timestamp"].endswith("Z") for line in lines)
    assert "ZeroDivisionError" in lines[2]["exception"]
