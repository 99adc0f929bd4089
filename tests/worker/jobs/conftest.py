"""An empty database for each test, on SQLite and on PostgreSQL.

Each is migrated once and emptied before a test: its engine then remembers the compiled statements.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Server
from tests.worker.jobs.making import BACKENDS, empty
from worker.jobs.db import Database


@pytest.fixture(params=BACKENDS)
def db(request: pytest.FixtureRequest) -> Database:
    db: Database = request.getfixturevalue(f"{request.param}_of_session")
    empty(db)
    return db


@pytest.fixture(scope="session")
def sqlite_of_session(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    path = shutil.copy(migrated_sqlite, tmp_path_factory.mktemp("sqlite"))
    db = Database(f"sqlite:///{path}")
    yield db
    db.close()


@pytest.fixture(scope="session")
def postgresql_of_session(postgres_server: Server) -> Iterator[Database]:
    db = Database(postgres_server.new_database())
    db.migrate()
    yield db
    db.close()


@pytest.fixture(params=BACKENDS)
def empty_url(request: pytest.FixtureRequest, sqlite_path: Path) -> str:
    """Of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{sqlite_path}"
    server: Server = request.getfixturevalue("postgres_server")
    return server.new_database()


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "epochd.db"
