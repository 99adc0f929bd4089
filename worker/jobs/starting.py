"""How every process of ours starts: logging, settings, database. What is wrong is said in one sentence."""

import sys
from typing import NoReturn

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from . import logs
from .db import Database
from .errors import SchemaTooNew
from .settings import Settings

EXIT_SETTINGS = 2
EXIT_DATA = 1


def read_settings() -> Settings:
    """The settings, or the end of this process with exit code 2."""
    try:
        return Settings()
    except ValidationError as error:
        sentences = []
        for each in error.errors():
            variable = "".join(f"EPOCHD_{part}: ".upper() for part in each["loc"])
            sentences.append(variable + each["msg"].removeprefix("Value error, "))
        leave(EXIT_SETTINGS, *sentences)


def open_database(settings: Settings, busy_seconds: float | None = None) -> Database:
    """The database, its schema up to date, or the end of this process with exit code 1."""
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        db = Database(settings.resolved_database_url)
        db.migrate()
        if busy_seconds is not None:  # to migrate may take longer
            db.close()
            db = Database(settings.resolved_database_url, busy_seconds=busy_seconds)
    except OSError as error:
        leave(EXIT_DATA, f"cannot use the data folder {settings.data_dir}: {error.strerror}")
    except ImportError:
        leave(EXIT_DATA, "EPOCHD_DATABASE_URL needs the PostgreSQL driver: pip install 'epochd[postgres]'")
    except SchemaTooNew as error:
        leave(EXIT_DATA, error.detail)
    except SQLAlchemyError as error:
        leave(EXIT_DATA, f"cannot open the database: {str(error.__cause__ or error).splitlines()[0]}")
    return db


def start(process: str, busy_seconds: float | None = None) -> tuple[Settings, Database]:
    """All three, for a process that is about to work."""
    logs.configure(process)
    settings = read_settings()
    return settings, open_database(settings, busy_seconds)


def leave(code: int, *sentences: str) -> NoReturn:
    """Says why on standard error, and ends this process."""
    for sentence in sentences:
        sys.stderr.write(f"epochd: {sentence}\n")
    raise SystemExit(code)
