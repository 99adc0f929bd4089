"""`python -m worker`: the worker, in the foreground."""

import os

# Before anything loads numpy: its OpenBLAS would give the preloaded process a second thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from worker.jobs import logs
from worker.jobs.db import Database
from worker.jobs.settings import Settings
from worker.launchers.local import LocalLauncher
from worker.supervisor import Supervisor


def main() -> None:
    logs.configure("worker")
    settings = Settings()
    db = Database(settings.resolved_database_url)
    db.migrate()
    Supervisor(settings, db, LocalLauncher(settings)).run()


if __name__ == "__main__":
    main()
