"""`make contract`: the running product against its own description, on both databases, with and without a key."""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from tests import postgres
from tests.contract.client import TOOLS, use_a_generated_client
from tests.contract.fuzzing import Outcome, fuzz
from tests.contract.place import KEY, place


def main() -> int:
    parser = argparse.ArgumentParser(prog="make contract", description=__doc__)
    parser.add_argument("--examples", type=int, default=500, help="of each operation, in each of the four runs")
    parser.add_argument("--only", help="runs whose name has this word: sqlite, postgresql, key, open, client")
    arguments = parser.parse_args()
    console, failed = Console(), False
    binaries = postgres.binaries()
    if binaries is None:
        console.print(postgres.MISSING)
        return 1
    table = Table("run", "seconds", "passed", "5xx in the log", "refusals beyond JSON Schema", title="schemathesis")
    with postgres.running(binaries) as server:
        for database in ("sqlite", "postgresql"):
            for key in (None, KEY):
                name = f"{database}, {'key' if key else 'open'}"
                if arguments.only and arguments.only not in name:
                    continue
                url = server.new_database() if database == "postgresql" else None
                started = time.monotonic()
                outcome = _run(arguments.examples, url, key)
                seconds = f"{time.monotonic() - started:.0f}"
                refusals = "\n".join(f"{count} {label}" for label, count in outcome.refusals.items())
                passed = outcome.passed and not outcome.server_errors
                table.add_row(name, seconds, "yes" if passed else "no", str(len(outcome.server_errors)), refusals)
                failed |= not passed
                console.print(f"{name}:\n{outcome.said}", markup=False, highlight=False)
    console.print(table)
    if TOOLS.exists() and not (arguments.only and arguments.only != "client"):
        with TemporaryDirectory() as folder:
            console.print(use_a_generated_client(Path(folder)), markup=False)
    return int(failed)


def _run(examples: int, database_url: str | None, key: str | None) -> Outcome:
    with TemporaryDirectory() as folder, place(Path(folder, "data"), database_url=database_url, key=key) as there:
        return fuzz(there, Path(folder), examples=examples)


if __name__ == "__main__":
    sys.exit(main())
