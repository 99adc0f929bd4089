"""A client that a public generator makes of /openapi.json, used on a real service with a real worker."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx2

from tests.contract.place import KEY
from tests.end_to_end.serving import environment, epochd
from tests.tiny import prepare_tiny

TOOLS: Final = Path(sys.prefix) / "tools" / "bin"  # `make .venv/tools/installed`: it does not go with our versions
_PROGRAM: Final = Path(__file__).with_name("with_generated.py")


def use_a_generated_client(folder: Path) -> str:
    """What the generated client saw: it submits a job, polls it and reads it. Raises AssertionError."""
    data_dir, package = folder / "data", folder / "generated" / "epochd_client"
    prepare_tiny(data_dir)
    package.parent.mkdir()
    with epochd(data_dir, {"EPOCHD_API_KEY": KEY}) as running:
        description = folder / "openapi.json"
        description.write_bytes(httpx2.get(f"{running.url}/openapi.json").raise_for_status().content)
        paths: list[str | Path] = ["--path", description, "--output-path", package]
        made = _run([TOOLS / "openapi-python-client", "generate", "--meta", "none", *paths], folder)
        assert "Unable to" not in made, made
        return _run([TOOLS / "python", _PROGRAM, running.url, KEY], package.parent)


def _run(command: list[str | Path], folder: Path) -> str:
    env = environment() | {"PYTHONPATH": str(folder)}
    ran = subprocess.run(command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert ran.returncode == 0, ran.stdout
    return ran.stdout
