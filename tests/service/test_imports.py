"""The API process stays small: no torch in it, neither at run time nor past the linter."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ["torch", "torchvision", "safetensors", "numpy"]

_SERVE_A_REQUEST = """
import sys, warnings
from pathlib import Path

import service.__main__, service.cli, service.main, service.serve
from fastapi.testclient import TestClient
from tests.service.predictor import FakePredictor
from worker.jobs.settings import Settings

service.main.Predictor = lambda _: FakePredictor()
app = service.main.create_app(Settings(data_dir=Path(sys.argv[1])))
with TestClient(app, base_url="http://localhost") as client:
    assert client.post("/jobs", json={}).status_code == 201
    assert client.get("/openapi.json").status_code == 200
"""
_SUPERVISE = "import worker.supervisor, worker.__main__"
_REPORT = """
import json
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def loaded_by(code: str, *arguments: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after `code`."""
    command = [sys.executable, "-W", "error", "-c", f"import sys\n{code}\n{_REPORT}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_service_answers_without_loading_torch(tmp_path: Path) -> None:
    loaded = loaded_by(_SERVE_A_REQUEST, str(tmp_path))
    assert {"fastapi", "service", "worker"} <= loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_supervisor_does_not_load_torch() -> None:
    loaded = loaded_by(_SUPERVISE)
    assert "worker" in loaded
    assert loaded.isdisjoint(["torch", "torchvision", "service"])


def refused(path: str, *statements: str) -> list[tuple[str, str]]:
    """Which imports the linter refuses in a file at this place: rule and line, at the top and inside a function."""
    code = "\n".join([*statements, "def later() -> None:", *(f"    {each}" for each in statements), ""])
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "--stdin-filename", path, "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    lines = code.splitlines()
    found = [(each["code"], lines[each["location"]["row"] - 1]) for each in json.loads(done.stdout)]
    return sorted((rule, line) for rule, line in found if rule in ("TID251", "TID253"))


@pytest.mark.parametrize(
    ("path", "statements"),
    [
        (
            "service/x.py",
            [
                "import torch",
                "import torch.nn",
                "from torch import nn",
                "import torchvision",
                "from safetensors.torch import load",
                "from worker import training",
                "from worker.training import loops",
                "from worker.inference.models import Models",
                "import worker.supervisor",
            ],
        ),
        ("service/routes/x.py", ["import torch", "from worker.networks import build"]),
        (
            "worker/jobs/x.py",
            [
                "import torch",
                "from torchvision import io",
                "from service import errors",
                "from worker.training import loops",
                "from ..training import loops",
                "from .. import supervisor",
            ],
        ),
        ("worker/jobs/migrations/x.py", ["import torch"]),
        ("worker/x.py", ["import service", "from service.errors import STATUS"]),
        ("worker/training/x.py", ["import service.main"]),
        ("worker/inference/x.py", ["from service import errors"]),
    ],
)
def test_an_arrow_that_points_up_is_refused_wherever_it_stands(path: str, statements: list[str]) -> None:
    expected = [("TID251", indent + each) for each in statements for indent in ("", "    ")]
    assert refused(path, *statements) == sorted(expected)


@pytest.mark.parametrize("path", ["worker/x.py", "worker/supervisor.py", "worker/launchers/x.py", "worker/__main__.py"])
def test_a_parent_of_training_processes_does_not_load_torch_at_its_top(path: str) -> None:
    assert refused(path, "import torch") == [("TID253", "import torch")]


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("service/x.py", "from worker.jobs import queue"),
        ("worker/training/x.py", "import torch"),
        ("worker/networks/x.py", "from torch import nn"),
        ("worker/x.py", "from worker.jobs import queue"),
    ],
)
def test_an_arrow_that_points_down_is_fine(path: str, statement: str) -> None:
    assert refused(path, statement) == []
