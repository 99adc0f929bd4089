"""`make bench-predict`: answering pictures over HTTP, epochd beside a naive FastAPI endpoint and LitServe.

The same weights and the same pictures everywhere, load from wrk on the same machine. Each server is tried alone in
the ways that it can sensibly be set up; the fastest of each then take turns, A B C D A B C D. Neighbours on the machine
spoil figures: run it alone.
"""

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from worker.jobs.processes import cores

from .load import find_wrk
from .measuring import QUICK, Measured, Options, measure
from .subjects import SUBJECTS, has_photographs
from .tables import beside, floor, notes, servers, wrong
from .verdicts import verdicts

_FILE_WIDTH: Final = 200  # a terminal knows its own
_VERSIONS: Final = ("torch", "fastapi", "uvicorn", "uvloop", "httptools", "litserve", "pillow")


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    names = [name for name in SUBJECTS if not arguments.only or any(each in name for each in arguments.only)]
    if not names:
        parser.error(f"no network is called like that; there are: {', '.join(SUBJECTS)}")
    if find_wrk() is None or find_spec("litserve") is None or not has_photographs():
        parser.error("`make bench-predict` fetches what this needs: wrk, and the extra `bench`")
    given = {field.name: value for field in fields(Options) if (value := getattr(arguments, field.name, None))}
    options = replace(QUICK if arguments.quick else Options(), **given)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="epochd-bench-") as scratch:
        for name in names:
            found.append(measure(name, Path(scratch), options, lambda text: console.print(text, style="dim")))
            if arguments.json:
                arguments.json.write_text(json.dumps(_report(options, found), indent=1))
    for measured in found:
        console.print(servers(measured), "", floor(measured), "", beside(measured), "", *notes(measured), "", sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench-predict", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"networks whose names hold one of these: {', '.join(SUBJECTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="everything tiny: shows that it works, measures nothing")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write every number there, after each network")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=int, help="of each window of load")
    parser.add_argument("--trial-seconds", type=int, help="of each window in which a setup is tried alone")
    parser.add_argument("--concurrency", type=int, nargs="+", help="requests at a time")
    return parser


def _report(options: Options, found: list[Measured]) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(),
        "machine": {"cores": cores(), "machine": platform.machine(), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _VERSIONS},
        "options": asdict(options),
        "networks": {each.network: _numbers(each) for each in found},
    }


def _numbers(measured: Measured) -> dict[str, Any]:
    compared = [asdict(verdict) | {"ratio": verdict.ratio} for verdict in verdicts(measured)]
    return asdict(measured) | {"wrong": wrong(measured), "verdicts": compared}


if __name__ == "__main__":
    main()
