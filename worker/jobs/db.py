"""One place for the database's discipline: which driver, how a transaction begins, which schema it must have."""

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Final, TypeVar

import structlog
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlmodel import Session

from .errors import SchemaTooNew

T = TypeVar("T")

# A server that restarts, a connection that broke, a lock that was held for too long: worth another try.
DATABASE_AWAY: Final = (OperationalError, InterfaceError)

BUSY_SECONDS: Final = 30.0
_CONNECT_SECONDS = 10
_INSIST_SECONDS = 60.0  # how long a database may be away before an attempt gives up
_MIGRATION_LOCK = 0x65706F63  # any constant: PostgreSQL's advisory locks are named by numbers
_log = structlog.get_logger()


class Database:
    """Sessions that read and sessions that write; a writing one commits when its block ends well."""

    def __init__(self, url: str, *, busy_seconds: float | None = None) -> None:
        """`busy_seconds`: how long to wait for a lock; half a minute unless told otherwise."""
        self._busy_seconds = BUSY_SECONDS if busy_seconds is None else busy_seconds
        # SQLite lets one write at a time and does not queue: threads of one process had better not fight for that.
        self._turn = threading.Lock()
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        make = _sqlite_engine if self.is_sqlite else _postgres_engine
        self._engine = make(url, self._busy_seconds)
        self._writing = self._engine.execution_options(epochd_writes=True)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Reads everything as it is at one moment, whatever is written meanwhile."""
        options = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}  # SQLite's transactions are that
        with self._engine.connect().execution_options(**options) as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        with self._its_turn(), Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _its_turn(self) -> Iterator[None]:
        """Raises OperationalError when it does not come, as SQLite does when its lock is held for too long."""
        if not self.is_sqlite:
            yield
        elif self._turn.acquire(timeout=self._busy_seconds):
            try:
                yield
            finally:
                self._turn.release()
        else:
            raise OperationalError("BEGIN IMMEDIATE", {}, TimeoutError("other threads of this process write"))

    def migrate(self) -> None:
        """Brings the schema to this version; two processes that start together do it once.

        Raises SchemaTooNew when a newer epochd has been here.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._schema_transaction() as connection:
            if not self.is_sqlite:  # on SQLite the transaction itself is the lock
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise SchemaTooNew from error

    @contextmanager
    def _schema_transaction(self) -> Iterator[Connection]:
        """Without foreign keys on SQLite, which makes a table anew to change it: to drop the old one must not take
        with it what refers to its rows.
        """
        with self._writing.connect() as connection:
            raw: Any = connection.connection.dbapi_connection
            if self.is_sqlite:  # the switch does nothing inside a transaction
                raw.execute("PRAGMA foreign_keys=OFF")
            try:
                with connection.begin():
                    yield connection
            finally:
                if self.is_sqlite:
                    raw.execute("PRAGMA foreign_keys=ON")

    def close(self) -> None:
        self._engine.dispose()


def now(session: Session) -> datetime:
    """The time that leases are measured by: the database host's, so that workers need not agree on one."""
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    return session.execute(text("SELECT clock_timestamp()")).scalar_one()  # type: ignore[no-any-return]


def insist(write: Callable[[], T]) -> T:
    """Writes what must not get lost, again and again while the database is away (a restart, a lock held for long)."""
    deadline = time.monotonic() + _INSIST_SECONDS
    while True:
        try:
            return write()
        except DATABASE_AWAY:
            if time.monotonic() > deadline:
                raise
            _log.exception("database_away")
            time.sleep(1)


def one_at_a_time(session: Session, what: str) -> None:
    """Until this transaction ends, no other one gets past here with the same text. On SQLite none gets that far."""
    if session.get_bind().dialect.name != "sqlite":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(what))))


def journal_mode(sqlite_version: tuple[int, int, int]) -> str:
    """WAL, unless this SQLite can lose committed rows in it.

    3.7.0 to 3.51.2 have the WAL-reset bug (https://sqlite.org/wal.html); 3.44.6 and 3.50.7 carry the fix.
    """
    fixed = (
        sqlite_version >= (3, 51, 3)
        or (3, 50, 7) <= sqlite_version < (3, 51, 0)
        or (3, 44, 6) <= sqlite_version < (3, 45, 0)
    )
    return "WAL" if fixed else "DELETE"


def _sqlite_driver() -> ModuleType:
    try:
        return importlib.import_module("pysqlite3.dbapi2")  # bundles a fixed SQLite
    except ImportError:  # no wheel for this platform
        return importlib.import_module("sqlite3.dbapi2")


def _sqlite_engine(url: str, busy_seconds: float) -> Engine:
    path = make_url(url).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    driver = _sqlite_driver()
    mode = journal_mode(driver.sqlite_version_info)
    if mode != "WAL":
        _log.warning("sqlite_without_wal", sqlite=driver.sqlite_version, reason="WAL-reset bug")
    # FastAPI runs sync routes in 40 threads; a smaller pool would time out under load.
    engine = create_engine(
        url,
        module=driver,
        pool_size=40,
        max_overflow=0,
        connect_args={"timeout": busy_seconds, "isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: ConnectionPoolEntry) -> None:
        _set_journal_mode(connection, mode)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later fails at once under load, whatever the time-out.
        writes = connection.get_execution_options().get("epochd_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _set_journal_mode(connection: Any, mode: str) -> None:
    """Changing the mode asks for the file alone and does not heed the busy timeout, so two starts at once must wait."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute(f"PRAGMA journal_mode={mode}")
        except Exception as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _postgres_engine(url: str, busy_seconds: float) -> Engine:
    # pool_pre_ping: a restarted server costs a reconnect, not an error. Nobody waits for ever: neither for a server
    # that does not answer nor for a lock; the URL may say otherwise.
    limits = {"connect_timeout": _CONNECT_SECONDS, "options": f"-c lock_timeout={int(1000 * busy_seconds)}"}
    waits = {name: value for name, value in limits.items() if name not in make_url(url).query}
    return create_engine(url, pool_size=40, max_overflow=0, pool_pre_ping=True, connect_args=waits)
