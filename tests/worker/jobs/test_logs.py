"""Logs: one line of JSON each, ours and the libraries', tracebacks included; and no line holds a secret."""

import json
import subprocess
import sys
from typing import Any

KEY = "epochd_" + "aB3-_" * 8 + "xYz"
SECRET = 'a "secret" of the house'
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


def lines(code: str, *arguments: str) -> list[dict[str, Any]]:
    """What a process that runs this logs."""
    begin = 'import logging, sys, structlog, worker.jobs.logs\nworker.jobs.logs.configure("a-process")\n'
    command = [sys.executable, "-c", begin + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_key_is_in_no_line_wherever_it_comes_from() -> None:
    code = """
key = sys.argv[1]
log = structlog.get_logger()
log.info("in a value", path=f"/jobs/{key}")
log.info(f"in the event {key}")
log.info("inside", list=[key, {key: key}])
log.info("in a name", **{key: 1})
log.info("as bytes", raw=key.encode())
structlog.contextvars.bind_contextvars(bound=key)
log.info("bound")
structlog.contextvars.unbind_contextvars("bound")
logging.getLogger("some.library").warning("in a library: %s", key)
def fail():
    raise ValueError(f"bad {key}")
for logger in (log, logging.getLogger("some.library")):
    try:
        fail()
    except ValueError:
        logger.exception("failed")
"""
    found = lines(code, KEY)
    assert len(found) == 9
    assert KEY not in json.dumps(found)
    for entry in found:
        assert "epochd_***" in json.dumps(entry), entry
    assert found[0]["path"] == "/jobs/epochd_***"


def test_a_secret_that_is_to_be_hidden_is_in_no_line() -> None:
    code = """
secret = sys.argv[1]
worker.jobs.logs.hide(secret)
structlog.get_logger().info("ours", value=f"<{secret}>")
logging.getLogger("some.library").warning("theirs: %s", secret)
try:
    raise ValueError(secret)
except ValueError:
    structlog.get_logger().exception("failed")
"""
    ours, theirs, failed = lines(code, SECRET)
    assert ours["value"] == "<***>"
    assert theirs["event"] == "theirs: ***"
    assert "ValueError: ***" in failed["exception"]


def test_the_secrets_of_the_settings_are_hidden_once_they_are_read() -> None:
    code = """
import os
os.environ.update(EPOCHD_API_KEY="the-key-of-the-settings", EPOCHD_WEBHOOK_SECRET="the-secret-of-webhooks")
from worker.jobs.starting import read_settings
settings = read_settings()
for secret in (settings.api_key, settings.webhook_secret):
    structlog.get_logger().info("shown", value=secret.get_secret_value())
"""
    assert [entry["value"] for entry in lines(code)] == ["***", "***"]
