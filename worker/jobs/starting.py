"""How every process of ours starts: logging, settings, database. What is wrong is said in one sentence."""

import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from . import logs
from .db import Database
from .errors import SchemaTooNew
from .settings import Settings

EXIT_SETTINGS = 2
EXIT_DATA = 1
# What the service alone needs; EPOCHD_WEBHOOKS because settings with it are refused without the secret.
OF_THE_SERVICE: Final = frozenset({"EPOCHD_API_KEY", "EPOCHD_WEBHOOK_SECRET", "EPOCHD_WEBHOOKS"})


def read_settings() -> Settings:
    """The settings, or the end of this process with exit code 2."""
    try:
        settings = Settings(**_secrets())
    except ValidationError as error:
        sentences = []
        for each in error.errors():
            variable = f"EPOCHD_{each['loc'][0]}: ".upper() if each["loc"] else ""  # behind it: which of its words
            sentences.append(variable + each["msg"].removeprefix("Value error, "))
        leave(EXIT_SETTINGS, *sentences)
    for secret in (settings.api_key, settings.webhook_secret):
        if secret is not None:
            logs.hide(secret.get_secret_value())
    return settings


def _secrets() -> dict[str, Any]:
    """Where the files of secrets are, if anywhere: Docker and Kubernetes put them into a folder."""
    folder = Path(os.environ.get("EPOCHD_SECRETS_DIR") or Settings.model_fields["secrets_dir"].default)
    return {"_secrets_dir": folder} if folder.is_dir() else {}


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
