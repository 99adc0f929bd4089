"""What every tier may use: a PostgreSQL server of this session, and a SQLite file that is already migrated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from worker.jobs.db import Database


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    binaries = postgres.binaries()
    if binaries is None:
        pytest.skip(postgres.MISSING)
    with postgres.running(binaries) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be copied: that takes a hundredth of the time of a migration."""
    path = tmp_path_factory.mktemp("migrated") / "epochd.db"
    db = Database(f"sqlite:///{path}")
    db.migrate()
    db.close()
    return path
