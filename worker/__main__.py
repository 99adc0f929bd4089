"""`python -m worker`: the worker, in the foreground."""

import os

# Before anything loads numpy: its OpenBLAS would give the preloaded process a second thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from worker.jobs.starting import start
from worker.launchers.local import LocalLauncher
from worker.supervisor import BUSY_SECONDS, Supervisor


def main() -> None:
    settings, db = start("worker", BUSY_SECONDS)
    Supervisor(settings, db, LocalLauncher(settings)).run()


if __name__ == "__main__":
    main()
