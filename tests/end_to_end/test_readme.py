"""The README is followed word for word: its commands run, in its order, in a copy of the clone."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from service import admin
from service.cli import app
from tests.end_to_end.serving import environment
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec, SweepForm

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
WALK = [block for block in BLOCKS if not block.startswith("make ")]
MAKES = [block.split()[1] for block in BLOCKS if block.startswith("make ")]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This tree without what it made, beside this very virtual environment."""
    folder = tmp_path_factory.mktemp("clone") / "epochd"
    made = shutil.ignore_patterns(".git", ".venv", "epochd-data", ".*_cache", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=made)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".venv" / "installed").touch()
    return folder


@pytest.fixture(scope="module")
def demo(clone: Path) -> str:
    done = subprocess.run(["make", "demo"], cwd=clone, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_make_demo_does_what_it_says(demo: str) -> None:
    epochs = re.findall(r"^ +(\d) +\d\.\d{4} +\d\.\d{4} +(0\.\d{4})", demo, re.MULTILINE)
    assert [epoch for epoch, _ in epochs] == ["1", "2", "3", "4", "5"]
    assert float(epochs[-1][1]) > 0.6
    assert re.search(r"\d+ of 10 right", demo)
    assert "nothing is left running" in demo


@pytest.fixture
def served(clone: Path, demo: str) -> Iterator[int]:
    """`make serve`, on a free port; Ctrl-C at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    env = environment() | {"EPOCHD_PORT": str(port)}
    process = subprocess.Popen(["make", "serve"], cwd=clone, env=env, stderr=subprocess.DEVNULL, process_group=0)
    wait_for(port, "/readyz", lambda body: bool(body["ready"]))
    yield port
    os.killpg(process.pid, signal.SIGINT)
    process.wait(30)
    with pytest.raises(httpx2.TransportError):
        httpx2.get(f"http://127.0.0.1:{port}/healthz")


def wait_for(port: int, path: str, done: object, seconds: float = 300) -> None:
    assert callable(done)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if done(httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=30).json()):
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{path} never became as wanted")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the walk is in curl: apt-get install curl")
def test_the_walk(clone: Path, served: int) -> None:
    """All blocks in one shell, as a reader's terminal; before the downloads the first job has to be done."""
    said = []
    variables = ""
    for block in WALK:
        if "checkpoints" in block or "DELETE localhost:8000/datasets" in block:
            wait_for(served, "/jobs", lambda body: all(job["finished_at"] for job in body["data"]))
        command = block.replace("localhost:8000", f"127.0.0.1:{served}")
        script = f"set -euo pipefail\n{variables}\n{command}\necho; echo JOB=${{JOB:-}} >&3\n"
        read, write = os.pipe()
        done = subprocess.run(
            ["bash", "-c", f"exec 3>&{write}\n{script}"],
            cwd=clone,
            env=environment(),
            pass_fds=[write],
            capture_output=True,
            text=True,
            check=False,
        )
        os.close(write)
        with os.fdopen(read) as kept:
            variables = kept.read().strip()
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        said.append(done.stdout)
    submitted, looked, cancelled, listed, predicted, refused, commanded, planned, reported, *said = said
    seen, compared, *said = said
    answered, aliased, batched, certified, tensors, exported, *said = said
    found, followed, swept, controlled, extended, uploaded, shown, deleted, built_in, backed_up, table = said
    assert "succeeded" in commanded
    assert (clone / "metrics.csv").read_text().startswith("seq,epoch,")
    assert '"predicted":"T-shirt/top"' in seen
    assert '"verdict":"' in compared
    assert '"rung":0' in swept
    assert '"parameters":{"optimizer.lr":0.1,"seed":0}' in swept
    assert table.strip() == ""
    assert list(clone.glob("*metrics*.csv"))
    assert '"epochs":[{"checkpoint":{"epoch":1,' in answered
    assert '"name":"default"' in aliased
    assert '"done":1,"failed":0' in batched
    assert "number,file,true label" in batched
    assert '"passed":true' in certified
    assert '"name":"pixels"' in tensors
    assert '"status":"succeeded"' in exported
    assert (clone / "model.pt2").stat().st_size > 300_000
    assert 300_000 < (clone / "small.safetensors").stat().st_size < 2_000_000
    assert '"has_more":false' in found
    assert '"terminal":' in followed
    assert "event: end" in followed
    assert '"status":"queued"' in submitted
    assert '"next_since":' in looked
    assert re.search(r'"status":"(cancelled|cancelling)"', cancelled)
    assert '"is_best":true' in listed
    assert (clone / "best.safetensors").stat().st_size > 2_000_000
    assert predicted.count('"label":"Ankle boot"') >= 3
    assert '"pointer":"#/optimizer/lr"' in refused
    assert '"ready":true' in refused
    assert '"steps":1876' in planned
    assert '"confusion_matrix":[[' in reported
    statuses = re.findall(r'"name":"long",[^}]*},[^{]*?"status":"(\w+)"', controlled)
    assert statuses[0] in ("paused", "pausing")
    assert statuses[-1] in ("cancelled", "cancelling")
    assert '"attempt":' in controlled
    assert '"epochs":2' in extended
    assert '"name":"shapes","owner":"","version":1' in uploaded
    assert re.search(r'"status":"(uploaded|preparing|ready)"', shown)
    assert '"name":"cifar100"' in shown
    assert deleted.strip() == ""
    jobs = httpx2.get(f"http://127.0.0.1:{served}/jobs?status=succeeded").json()["data"]
    assert '"status":"ready"' in built_in
    assert "Nothing is wrong." in backed_up
    trained_on = [httpx2.get(f"http://127.0.0.1:{served}/jobs/{job['id']}").json()["spec"]["dataset"] for job in jobs]
    assert {"name": "shapes", "version": 1} in trained_on
    _assert_the_client_works(clone, served)


def _assert_the_client_works(clone: Path, port: int) -> None:
    (block,) = re.findall(r"^```python\n(from service\.client .*?)^```$", README, re.MULTILINE | re.DOTALL)
    env = environment() | {"EPOCHD_PORT": str(port), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", block]
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^succeeded 0\.\d+$", done.stdout, re.MULTILINE)
    assert "validation_error" in done.stdout


def test_the_sweep_that_it_shows_is_one() -> None:
    (shown,) = re.findall(r"^```json sweep\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert SweepForm.model_validate_json(shown).search.name == "halving"


def test_the_specs_that_it_shows_are_specs() -> None:
    shown = re.findall(r"^```json\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(shown) == 2
    for spec in shown:
        Spec.model_validate_json(spec)


def test_the_names_in_its_table_of_the_spec_are_those_that_there_are() -> None:
    table = README.partition("| Part | Choices |")[2].partition("```sh")[0]
    parts = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert set(parts) < Spec.model_fields.keys()
    rest = re.findall(r"^\| the rest \| (.*) \|$", table, re.MULTILINE)[0].split(", ")
    described = {"name", "labels", "dataset"}  # elsewhere
    assert {*parts, *rest, *described} == Spec.model_fields.keys()


def test_every_make_target_it_names_exists() -> None:
    named = set(MAKES) | set(re.findall(r"`make ([a-z-]+)`", README))
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "serve", "test", "image-check"} <= named <= targets


def test_the_docker_commands_name_files_and_arguments_that_exist() -> None:
    blocks = "".join(re.findall(r"^```sh docker\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
    named = re.findall(r"-f (\S+)", blocks)
    assert len(named) >= 4
    assert all((ROOT / name).is_file() for name in named)
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for argument in re.findall(r"--build-arg (\w+)=", README):
        assert f"ARG {argument}" in dockerfile


def test_every_setting_is_in_its_table_with_its_default() -> None:
    rows = re.findall(r"^\| `EPOCHD_(\w+)` \| (?:`(.*?)`)? ?\| (.+) \|$", README, re.MULTILINE)
    documented = {name.lower(): (default, text) for name, default, text in rows}
    assert documented.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        default, text = documented[name]
        shown = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
        unset = field.default in (None, ())
        assert default == ("" if unset else shown.lower() if shown in ("True", "False") else shown)
        assert text == field.description


def test_every_folder_and_file_of_its_map_exists() -> None:
    house = README.partition("## The house")[2].partition("Imports point down")[0]
    room = ""
    for line in house.splitlines():
        if match := re.match(r"^ {4}( {2})?(\S+/|\S+\.py)", line):
            inner, name = match.groups()
            room = "" if not inner else room
            assert (ROOT / room / name).exists(), line
            room = name if not inner else room
    assert "loops.py" in house


def test_every_command_it_names_is_a_command() -> None:
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    groups = {group.name for group in app.registered_groups}
    assert set(re.findall(r"`epochd (\w+)[ `]", README)) <= commands | groups
    of_admin = {command.name or getattr(command.callback, "__name__", "") for command in admin.app.registered_commands}
    assert set(re.findall(r"epochd admin (\w+)", README)) == of_admin
