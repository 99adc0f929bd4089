"""The app in this process, on a SQLite file, with a predictor that needs no process.

One app serves all tests, each of which finds its tables empty; `serve` starts another one for other settings.
"""

import shutil
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

import service.auth
import service.main
import service.routes.jobs
from tests.service.predictor import FakePredictor
from tests.worker.jobs.making import empty
from worker.jobs.db import Database
from worker.jobs.settings import Settings

Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def data_dir(migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(migrated_sqlite, folder / "epochd.db")
    return folder


@pytest.fixture(scope="session")
def db_of_session(data_dir: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{data_dir / 'epochd.db'}")
    yield db
    db.close()


@pytest.fixture(scope="session")
def predictor_of_session() -> Iterator[FakePredictor]:
    """In place of the real one in every app."""
    fake = FakePredictor()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.main, "Predictor", lambda _: fake)
        patch.setattr(service.auth.Keys, "keep_looking", _idle)
        for background in ("certify", "give_way"):  # they would meddle with the rows of tests
            patch.setattr(service.main, background, _idle)
        for name in Settings.model_fields:
            patch.delenv(f"EPOCHD_{name.upper()}", raising=False)
        yield fake


@pytest.fixture(scope="session")
def client_of_session(data_dir: Path, predictor_of_session: FakePredictor) -> Iterator[TestClient]:
    with _started(data_dir) as client:
        yield client


@pytest.fixture(autouse=True)
def log() -> Iterator[list[MutableMapping[str, Any]]]:
    """What was logged."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def predictor(predictor_of_session: FakePredictor) -> FakePredictor:
    predictor_of_session.reset()
    service.routes.jobs._PLANNED.clear()  # what another test's predictor took
    return predictor_of_session


@pytest.fixture
def db(db_of_session: Database) -> Database:
    """The database of the app, for what a worker would write."""
    empty(db_of_session)
    return db_of_session


@pytest.fixture
def client(client_of_session: TestClient, db: Database, predictor: FakePredictor) -> TestClient:
    client_of_session.app.state.keys.look()  # type: ignore[attr-defined]
    client_of_session.app.state.resolver.forget()  # type: ignore[attr-defined]  # what it knows is of another test
    return client_of_session


@pytest.fixture
def serve(data_dir: Path, db: Database, predictor: FakePredictor) -> Iterator[Serve]:
    """Starts apps with the settings that it is given; stops them afterwards."""
    with ExitStack() as started:
        yield lambda **settings: started.enter_context(_started(data_dir, **settings))


async def _idle(*_: object) -> None:
    """In place of what an app does by itself."""


def _started(data_dir: Path, **settings: Any) -> TestClient:
    app = service.main.create_app(Settings(data_dir=data_dir, **settings))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
