"""Runs schemathesis on a place. One way for the short run of `make test` and the long one of `make contract`."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx2

from tests.contract.place import Place, server_errors
from tests.end_to_end.serving import environment

_CONFIG: Final = Path(__file__).with_name("schemathesis.toml")
_ROOT: Final = Path(__file__).parents[2]
# The last one alone: behind the others it stops after a few scenarios, however many are asked for.
_PHASES: Final = ("examples,coverage,fuzzing", "stateful")


@dataclass(frozen=True)
class Outcome:
    passed: bool
    said: str  # by schemathesis
    refusals: dict[str, int]  # of requests that the description allows, by rules beyond JSON Schema; how many
    server_errors: list[str]  # that the service logged


def fuzz(place: Place, folder: Path, *, examples: int, seed: int | None = None) -> Outcome:
    """All phases, all checks; so many examples an operation. What was sent and answered is left in the folder.

    With a `seed` the requests are the same each time.
    """
    config, description, refusals = (folder / name for name in ("schemathesis.toml", "openapi.json", "refusals.tsv"))
    config.write_text(_CONFIG.read_text() + _known(place) + _auth(place))
    description.write_text(json.dumps(_description(place)))
    refusals.touch()
    options = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", str(description)),
        *("--url", place.url, "--max-examples", str(examples), "--continue-on-failure", "--no-color"),
        *(("--generation-database", "none") if seed is None else ("--seed", str(seed), "--generation-deterministic")),
        *("--suppress-health-check", "all"),
    ]
    env = environment() | {"CONTRACT_FILES": str(place.files), "CONTRACT_REFUSALS": str(refusals)}
    ran = []
    for phases in _PHASES:
        report = ["--report", "ndjson", "--report-ndjson-path", str(folder / f"{phases}.ndjson")]
        command = [*options, "--phases", phases, *report]
        ran.append(
            subprocess.run(command, cwd=_ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    lines = refusals.read_text().splitlines()
    counts = {label: lines.count(label) for label in sorted(set(lines))}
    said = "\n".join(each.stdout for each in ran)
    return Outcome(all(each.returncode == 0 for each in ran), said, counts, server_errors(place.log))


def _description(place: Place) -> dict[str, Any]:
    """As the service gives it. Without a key, on loopback, it is open: what says that one is needed is left out."""
    description: dict[str, Any] = httpx2.get(f"{place.url}/openapi.json").raise_for_status().json()
    if place.key is None:
        del description["components"]["securitySchemes"]
        for methods in description["paths"].values():
            for operation in methods.values():
                del operation["security"]
    return description


def _known(place: Place) -> str:
    """What is there: half of all requests ask for it, else nearly every answer were a 404."""
    words = {
        "jobs": place.jobs,
        "datasets": place.datasets,
        "models": place.models,
        "which": ["best", "last", "1", "2"],
    }
    return "".join(f"[dictionaries.{name}]\nvalues = {values}\n" for name, values in words.items())


def _auth(place: Place) -> str:
    return f'[auth.openapi.HTTPBearer]\nbearer = "{place.key}"\n' if place.key else ""
