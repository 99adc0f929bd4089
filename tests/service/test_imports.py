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

service.main.Predictor = FakePredictor
app = service.main.create_app(Settings(data_dir=Path(sys.argv[1])))
with TestClient(app) as client:
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


def rules_broken(path: str, code: str) -> set[str]:
    """What the linter says about a file with this code at this place."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format=json", "--stdin-filename", path, "-"]
    done = subprocess.run(command, cwd=ROOT, input=code, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return {each["code"] for each in json.loads(done.stdout)}


def lazily(statement: str) -> str:
    return f"def later() -> None:\n    {statement}\n"


@pytest.mark.parametrize(
    ("path", "statement"),
    [
        ("service/x.py", "import torch"),
        ("service/x.py", "import torch.nn"),
        ("service/x.py", "from torch import nn"),
        ("service/x.py", "import torchvision"),
        ("service/x.py", "from safetensors.torch import load"),
        ("service/x.py", "from worker import training"),
        ("service/x.py", "from worker.training import loops"),
        ("service/x.py", "from worker.inference.models import Models"),
        ("service/x.py", "import worker.supervisor"),
        ("service/routes/x.py", "import torch"),
        ("worker/jobs/x.py", "import torch"),
        ("worker/jobs/x.py", "from torchvision import io"),
        ("worker/jobs/x.py", "from service import errors"),
        ("worker/jobs/x.py", "from worker.training import loops"),
        ("worker/jobs/x.py", "from ..training import loops"),
        ("worker/jobs/x.py", "from .. import supervisor"),
        ("worker/jobs/migrations/x.py", "import torch"),
        ("worker/x.py", "import service"),
        ("worker/x.py", "from service.errors import STATUS"),
        ("worker/training/x.py", "import service.main"),
        ("worker/inference/x.py", "from service import errors"),
    ],
)
def test_an_arrow_that_points_up_is_refused_wherever_it_stands(path: str, statement: str) -> None:
    assert "TID251" in rules_broken(path, f"{statement}\n")
    assert "TID251" in rules_broken(path, lazily(statement))


@pytest.mark.parametrize("path", ["worker/x.py", "worker/supervisor.py", "worker/launchers/x.py", "worker/__main__.py"])
def test_a_parent_of_training_processes_does_not_load_torch_at_its_top(path: str) -> None:
    assert "TID253" in rules_broken(path, "import torch\n")
    assert "TID253" not in rules_broken(path, lazily("import torch"))


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
    assert not {"TID251", "TID253"} & rules_broken(path, f"{statement}\n")
