"""Keys on a running service: made and revoked by the command, known within a second, read from a file of secrets."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.end_to_end.serving import Epochd, environment, epochd


def command(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = environment() | {"EPOCHD_DATA_DIR": str(data_dir)}
    whole = [sys.executable, "-m", "service.cli", "keys", *arguments]
    return subprocess.run(whole, env=env, capture_output=True, text=True, check=False, timeout=60)


def create(data_dir: Path, *arguments: str) -> str:
    made = command(data_dir, "create", *arguments)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def status(running: Epochd, key: str | None, method: str = "GET") -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return running.http.request(method, "/jobs", headers=headers).status_code


def assert_within_a_second(holds: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not holds():
        assert time.monotonic() - started < 1.5  # a second, and what a busy machine takes
        time.sleep(0.02)


def test_keys_open_and_close_a_running_service(tmp_path: Path) -> None:
    with epochd(tmp_path, wait_ready=False) as running:
        assert status(running, None) == 200
        assert "open_to_this_machine" in running.log.read_text()
        first = create(tmp_path, "ann")
        assert_within_a_second(lambda: status(running, None) == 401)
        assert status(running, first) == 200
        app = create(tmp_path, "app", "--scope", "predict", "--like", first[:13], "--expires", "1h")
        assert_within_a_second(lambda: status(running, app) == 403)
        listed = command(tmp_path, "list").stdout.splitlines()
        assert [line.split("\t")[2:4] for line in listed] == [["ann", "read submit predict"], ["app", "predict"]]
        revoked = command(tmp_path, "revoke", first[:13])
        assert revoked.stdout == f"{first[:13]}... is not accepted any more.\n"
        assert_within_a_second(lambda: status(running, first) == 401)
        shown = json.loads(command(tmp_path, "list", "--json").stdout)
        assert [each["state"] for each in shown] == ["revoked", "accepted"]
        assert shown[0]["owner"] == shown[1]["owner"] == shown[0]["id"]
        told = running.log.read_text() + json.dumps(shown)
        assert not [key for key in (first, app) if key in told]


def test_what_is_mistyped_is_told_in_a_sentence(tmp_path: Path) -> None:
    for arguments, code, sentence in (
        (["create", "--expires", "soon"], 2, "--expires takes a number and a unit"),
        (["create", "--expires", "0d"], 2, "--expires takes a number and a unit"),
        (["create", "a\nb"], 2, "the name must not contain control characters"),
        (["create", "--like", "nobody"], 1, "There is no key of this id or prefix"),
        (["revoke", "epochd_nobodyy"], 1, "There is no key of this id or prefix"),
        (["create", "--scope", "write"], 2, "Invalid value for '--scope'"),
    ):
        done = command(tmp_path, *arguments)
        assert (done.returncode, sentence in done.stderr, done.stdout) == (code, True, ""), done
        assert "Traceback" not in done.stderr
    assert command(tmp_path, "list", "--json").stdout == "[]\n"


def test_a_file_of_secrets_holds_the_key(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    key = "a-key-from-a-file-of-secrets"
    (secrets / "epochd_api_key").write_text(f"{key}\n")
    settings = {"EPOCHD_SECRETS_DIR": str(secrets)}
    with epochd(tmp_path / "data", settings, wait_ready=False) as running:
        assert (status(running, None), status(running, key), status(running, key[:-1])) == (401, 200, 401)
        assert key not in running.log.read_text()
