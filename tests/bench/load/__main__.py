"""`make bench-load`: the API under load. Each part prints a table; the exit code is 1 when anything was lost or failed.

Neighbours on the machine spoil figures: run it alone.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from . import history, polling, soak, streams, submissions

_PARTS = {
    "submissions": submissions,
    "polling": polling,
    "streams": streams,
    "history": history,
    "soak": soak,
}
_FILE_WIDTH = 160  # a terminal knows its own


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.load", description=__doc__)
    parts = parser.add_subparsers(dest="part", metavar="PART")
    for name, part in _PARTS.items():
        part.options(parts.add_parser(name, help=part.__doc__, description=part.__doc__))
    arguments = parser.parse_args()
    wanted = [parser.parse_args([name]) for name in _PARTS] if arguments.part is None else [arguments]
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    is_good = True
    for each in wanted:
        with tempfile.TemporaryDirectory(prefix="epochd-bench-") as scratch:
            is_good &= _PARTS[each.part].run(console, Path(scratch), each)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
