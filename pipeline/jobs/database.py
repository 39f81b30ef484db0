"""A SQLite file or a Postgres server behind one way to read and to write, and its schema's migrations.

Knows nothing of jobs. SQLite runs in WAL mode with `BEGIN IMMEDIATE` for writes; the threads of a process queue at a
lock of ours before one of them asks for SQLite's.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from pipeline.errors import StoreUnavailable
from pipeline.jobs.tables import SCHEMA_REVISION

BUSY = "The service's database is busy or away; try again."
BUSY_TIMEOUT_S = 10.0
LOCK_POLL_S = 0.001
"""How often a process asks for SQLite's write lock: its own waiting backs off to 100 ms and starves under load."""
MIGRATION_LOCK = 0x1243D
"""Postgres advisory lock under which one process migrates and the others wait."""


class FairLock:
    """A lock that its waiters get in the order in which they came; `threading.Lock` lets a busy thread overtake."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_held = False
        self._waiters: deque[threading.Event] = deque()

    @contextmanager
    def held(self, *, timeout_s: float) -> Iterator[None]:
        """Hold the lock for the block.

        Raises:
            StoreUnavailable: it was not free in time.
        """
        self._acquire(timeout_s)
        try:
            yield
        finally:
            self._release()

    def _acquire(self, timeout_s: float) -> None:
        with self._guard:
            if not self._is_held:
                self._is_held = True
                return
            turn = threading.Event()
            self._waiters.append(turn)
        if turn.wait(timeout_s):
            return
        with self._guard:
            if not turn.is_set():
                self._waiters.remove(turn)
                raise StoreUnavailable(BUSY)

    def _release(self) -> None:
        with self._guard:
            if self._waiters:
                self._waiters.popleft().set()  # handed over without being let go
            else:
                self._is_held = False


class Database:
    """Connections to one database, safe to share between threads, not across a fork.

    Args:
        url: as SQLAlchemy reads it, `sqlite:///…` or `postgresql+psycopg://…`.
    """

    def __init__(self, url: str) -> None:
        address = sa.make_url(url)
        self.is_sqlite = address.get_backend_name() == "sqlite"
        if self.is_sqlite:
            Path(address.database or "").parent.mkdir(parents=True, exist_ok=True)
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}
        else:
            options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
        # A read waits for a connection rather than opening one per thread; none is held between statements of others.
        self.engine = sa.create_engine(
            address,
            pool_size=8,
            max_overflow=8,
            pool_timeout=BUSY_TIMEOUT_S,
            hide_parameters=True,  # requests and hashes stand in no traceback
            **options,
        )
        self._write_engine = self.engine.execution_options(is_write=True)
        self._write_lock = FairLock()
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self._write_engine, "begin", _begin_immediate)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection to read from; on SQLite each statement sees its own moment.

        Raises:
            StoreUnavailable: the database is locked, full or away.
        """
        with _translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that commits when the block ends and leaves nothing behind when it raises.

        Raises:
            StoreUnavailable: the database is locked, full or away; nothing was changed.
        """
        if not self.is_sqlite:
            with _translated(), self.engine.begin() as connection:
                yield connection
            return
        with self._write_lock.held(timeout_s=BUSY_TIMEOUT_S), _translated(), self._write_engine.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema to this version's; of several processes that try, one does it.

        Raises:
            StoreUnavailable: the database is away, or newer than this version of the service.
        """
        with self.read() as connection:
            if _revision(connection) == SCHEMA_REVISION:
                return
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            found = _revision(connection)
            if found is not None and found > SCHEMA_REVISION:
                raise StoreUnavailable(f"the database has revision {found}; this version knows {SCHEMA_REVISION}")
            _upgrade(connection)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # transactions are begun by us, not by the driver's guess
    for pragma in (
        "journal_mode = WAL",
        # Every commit reaches the disk: a submit that was answered survives a power cut.
        "synchronous = FULL",
        f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
        "cache_size = -16000",
        "journal_size_limit = 67108864",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_immediate(connection: sa.Connection) -> None:
    """Begin a write transaction as soon as no other process has one.

    Raises:
        sqlite3.OperationalError: that took longer than `BUSY_TIMEOUT_S`.
    """
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 0")
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    try:
        while True:
            try:
                cursor.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                    raise
                time.sleep(LOCK_POLL_S)
            else:
                return
    finally:
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        cursor.close()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError) as error:
        raise StoreUnavailable(BUSY) from error


def _revision(connection: sa.Connection) -> str | None:
    """The schema's revision, None in an empty database."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: sa.Connection) -> None:
    """Run the migrations that the database has not seen, inside the connection's transaction."""
    from alembic import command  # slow to import, and needed once in a database's life
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
