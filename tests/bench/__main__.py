"""`make bench`: one table of pairs, A B A B in one run: epochd beside what one would write without it.

The median of the pairs' ratios is what is quoted. What is measured is said where it is measured: jobs over HTTP in
`jobs.py`, the engine alone in `engine.py`; the yardsticks are `tutorial.py`, `reference.py` and `bare.py`, and
`limits.py` finds what the machine would allow. Neighbours on the machine spoil times: run it alone.
"""

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console

from worker.jobs.processes import cores

from .pairs import Findings, Line, table
from .rows import ROWS
from .workplace import QUICK, Options, Workplace

_FILE_WIDTH = 150  # a terminal knows its own


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    names = [name for name in ROWS if not arguments.only or any(each in name for each in arguments.only)]
    if not names:
        parser.error(f"no row is called like that; there are: {', '.join(ROWS)}")
    given = {field.name: value for field in fields(Options) if (value := getattr(arguments, field.name, None))}
    options = replace(QUICK if arguments.quick else Options(), **given)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    found: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="epochd-bench-") as scratch:
        place = Workplace(Path(scratch), options, say=lambda text: console.print(text, style="dim"))
        for name in names:
            found[name] = ROWS[name](place)
            if arguments.json:
                arguments.json.write_text(json.dumps(_report(options, found), indent=1))
    console.print(table(found.values()))
    for findings in found.values():
        for note in findings.notes:
            console.print(note)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"rows whose names hold one of these: {', '.join(ROWS)}"
    )
    parser.add_argument("--quick", action="store_true", help="everything tiny: shows that it works, measures nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every number there, after each row")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--epochs", type=int, help="of the tutorial's job")
    parser.add_argument("--seeds", type=int, help="of the convolutional jobs: one pair for each")
    parser.add_argument("--starts", type=int, help="jobs whose wait for the first step is measured")
    parser.add_argument("--cnn-epochs", type=int)
    parser.add_argument("--resnet18-epochs", type=int)
    return parser


def _report(options: Options, found: dict[str, Findings]) -> dict[str, object]:
    return {
        "at": datetime.now(UTC).isoformat(),
        "machine": {"cores": cores(), "machine": platform.machine(), "system": platform.platform()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "options": asdict(options),
        "rows": {name: _numbers(findings) for name, findings in found.items()},
    }


def _numbers(findings: Findings) -> dict[str, object]:
    ratios = {line.name: line.ratio for line in findings.lines if isinstance(line, Line)}
    return asdict(findings) | {"median_ratios": ratios}


if __name__ == "__main__":
    main()
