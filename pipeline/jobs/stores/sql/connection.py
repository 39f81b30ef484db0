"""Connections and transactions for SQLite and Postgres, and the migrations of the schema. Knows nothing of jobs.

SQLite runs in WAL mode with `BEGIN IMMEDIATE` for writes. The threads of a process queue at a fair lock before one of
them asks for SQLite's lock, and may share one commit.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import event, exc

from pipeline.errors import CannotStart, StoreUnavailable
from pipeline.jobs.stores.sql.schema import SCHEMA_REVISION, oldest_code
from pipeline.private_files import make_private_file, make_private_folder

BUSY = "The service's database is busy or unavailable; try again."
SQLITE_SAYS = "The service's database is busy or unavailable ({}); try again."
"""With SQLite's own words, such as `database or disk is full`. Postgres' words hold addresses and names of users."""
UNREACHABLE = "The service's database cannot be opened ({}); check DATABASE_URL, or the data folder."
NO_ADDRESS = "DATABASE_URL must be an address such as postgresql://user:password@host/name."
REFUSED = "The service's database refused a statement ({}); the service's log says which."
BUSY_TIMEOUT_S = 10.0
LOCK_POLL_S = 0.001
"""How often a process asks for SQLite's write lock: SQLite's own busy handler backs off to 100 ms and starves."""
MAX_TOGETHER = 64
"""Pieces of work in one shared transaction; bounds how long the other writers wait."""
START_LOCK = 0x1243D
"""Postgres advisory lock, held to the end of a transaction, under which processes that start take turns."""

DRIVERS = frozenset({"sqlite", "postgresql+psycopg"})
POOLER_OPTIONS = frozenset({"pgbouncer", "connection_limit", "pool_timeout"})
"""Options that hosters add to the address of their pooler for other clients; libpq refuses an address with them."""

Result = TypeVar("Result")

log = structlog.get_logger()


class FairLock:
    """A lock that is granted in the order of arrival; with `threading.Lock` a busy thread overtakes the others."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._is_held = False
        self._waiters: deque[threading.Event] = deque()

    @contextmanager
    def held(self, *, timeout_s: float) -> Generator[None]:
        """Hold the lock for the block.

        Raises:
            StoreUnavailable: the lock was not free in time.
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
                self._waiters.popleft().set()  # passed on while it stays held
            else:
                self._is_held = False


class _Piece(Generic[Result]):
    """Work that waits for a transaction that it shares with other work."""

    def __init__(self, work: Callable[[sa.Connection], Result]) -> None:
        self.work = work
        self.is_settled = threading.Event()
        self.is_committed = False
        self.failure = BUSY
        self._value: Result | None = None
        self._error: Exception | None = None

    def run(self, connection: sa.Connection) -> None:
        """Run the work in a savepoint: when it raises, only its own changes are undone."""
        try:
            with connection.begin_nested():
                self._value = self.work(connection)
        except (exc.OperationalError, exc.InterfaceError):
            raise  # the database failed, not this work: the whole transaction is rolled back
        except Exception as error:  # noqa: BLE001  # raised in the thread that waits for this work
            self._error = error

    def outcome(self) -> Result:
        """The result of the work, or its exception."""
        self.is_settled.wait()
        if not self.is_committed:
            raise StoreUnavailable(self.failure)
        if self._error is not None:
            raise self._error
        return self._value  # pyright: ignore[reportReturnType]


class Database:
    """Connections to one database, safe to share between threads, not across a fork.

    Postgres may be behind a pooler that gives each transaction another session (pgbouncer's transaction mode). So
    nothing outlives its transaction: no prepared statement, no session lock, no SET, no LISTEN, no temporary table.

    Args:
        url: as SQLAlchemy reads it, `sqlite:///…` or `postgresql+psycopg://…`.
        pool_size: connections that stay open once they were needed.
        pool_overflow: further connections under load.

    Raises:
        CannotStart: the address is none that this service can use.
    """

    def __init__(self, url: str, *, pool_size: int = 8, pool_overflow: int = 8) -> None:
        address = _read_address(url)
        self.is_sqlite = address.get_backend_name() == "sqlite"
        if self.is_sqlite:
            if address.database and address.database != ":memory:":
                make_private_folder(Path(address.database).parent)
                with suppress(OSError):  # SQLite says it in its own words
                    make_private_file(Path(address.database))  # its -wal and -shm files get the same mode
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}}
        else:
            address = address.difference_update_query(POOLER_OPTIONS)
            # psycopg would prepare a statement that is repeated, in a session that is another client's a moment later.
            options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, "prepare_threshold": None}}
        # A read waits for a pooled connection instead of opening one per thread.
        self.engine = sa.create_engine(
            address,
            pool_size=pool_size,
            max_overflow=pool_overflow,
            pool_timeout=BUSY_TIMEOUT_S,
            hide_parameters=True,  # keeps requests and hashes out of tracebacks
            **options,
        )
        self._durable_engine = self.engine.execution_options(is_durable=True)
        self._light_engine = self.engine.execution_options(is_durable=False)
        self._write_lock = FairLock()
        self._pieces: deque[_Piece[Any]] = deque()
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            for engine in (self._durable_engine, self._light_engine):
                event.listen(engine, "begin", _begin_immediate)

    @contextmanager
    def read(self) -> Generator[sa.Connection]:
        """A connection to read from; on SQLite each statement reads its own snapshot.

        Raises:
            StoreUnavailable: the database is locked, full or unavailable.
        """
        with _translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self, *, is_durable: bool = True) -> Generator[sa.Connection]:
        """A transaction that commits when the block ends, and rolls back when it raises.

        Args:
            is_durable: whether it must survive a power cut. SQLite then waits for the disk. Otherwise a power cut, but
                not a crash of the process, may lose it together with all later commits.

        Raises:
            StoreUnavailable: the database is locked, full or unavailable; nothing was changed.
        """
        if not self.is_sqlite:
            with _translated(), self.engine.begin() as connection:
                yield connection
            return
        engine = self._durable_engine if is_durable else self._light_engine
        with self._write_lock.held(timeout_s=BUSY_TIMEOUT_S), _translated(), engine.begin() as connection:
            yield connection

    def write_together(self, work: Callable[[sa.Connection], Result]) -> Result:
        """Run work in a transaction that it may share with work of other threads, and return its result.

        SQLite has one writer at a time, and each commit waits for the disk: work that queues behind one commit shares
        the next one (group commit). Work that raises is undone alone. Postgres commits in groups by itself.

        Raises:
            StoreUnavailable: the database is locked, full or unavailable; nothing was changed.
        """
        if not self.is_sqlite:
            with self.write() as connection:
                return work(connection)
        piece = _Piece(work)
        self._pieces.append(piece)
        try:
            with self._write_lock.held(timeout_s=BUSY_TIMEOUT_S):
                while not piece.is_settled.is_set():
                    self._run_pieces()
        except StoreUnavailable:
            with suppress(ValueError):  # another thread runs it already, and will settle it
                self._pieces.remove(piece)
                raise
        with _translated():
            return piece.outcome()

    def _run_pieces(self) -> None:
        """Run the waiting work in one transaction; the caller holds the write lock."""
        pieces = [self._pieces.popleft() for _ in range(min(len(self._pieces), MAX_TOGETHER))]
        is_committed = False
        try:
            with _translated(), self._durable_engine.begin() as connection:
                for piece in pieces:
                    piece.run(connection)
            is_committed = True
        except StoreUnavailable as error:
            for piece in pieces:
                piece.failure = str(error)
            raise
        finally:
            for piece in pieces:
                piece.is_committed = is_committed
                piece.is_settled.set()

    def migrate(self) -> None:
        """Migrate the schema to this version; of several processes, one does it and the others wait.

        A newer schema stays as it is, where this version can use it: after a rollback.

        Raises:
            StoreUnavailable: the database is unavailable, or of a newer version whose schema this one cannot use.
        """
        if _is_usable(self.revision()):
            return
        with self.write() as connection:
            self.take_turns(connection)
            if not _is_usable(_revision(connection)):
                _upgrade(connection)

    def revision(self) -> str | None:
        """The revision of this service's tables, None in an empty database. The first look at a database.

        Raises:
            StoreUnavailable: it cannot be reached; the reason is the driver's, which may name a user, never a password.
        """
        try:
            with self.read() as connection:
                return _revision(connection)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, exc.OperationalError):
                raise
            raise StoreUnavailable(UNREACHABLE.format(_first_line(error.__cause__))) from error

    def take_turns(self, connection: sa.Connection) -> None:
        """Wait in a write transaction until no other process is in one that took its turn here too."""
        if not self.is_sqlite:  # where every write transaction waits for the others
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": START_LOCK})

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def schema_revision(url: str) -> str | None:
    """The revision of this service's tables in a database, None if it holds none; changes nothing.

    Raises:
        StoreUnavailable: it cannot be reached.
    """
    database = Database(url)
    try:
        return database.revision()
    finally:
        database.close()


def _read_address(url: str) -> sa.URL:
    """The parts of a database's address.

    Raises:
        CannotStart: it is malformed, or another kind of database.
    """
    try:
        address = sa.make_url(url)
    except (exc.ArgumentError, ValueError):
        raise CannotStart(NO_ADDRESS) from None
    if address.drivername not in DRIVERS:
        raise CannotStart(f"{NO_ADDRESS[:-1]}; {address.drivername} is no kind of database that this service uses.")
    return address


def _first_line(error: exc.DBAPIError) -> str:
    """What the driver says, without the advice that follows it."""
    return next(iter(str(error.orig).strip().splitlines()), type(error.orig).__name__).rstrip(".")


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # this module begins transactions, not the driver
    cursor = connection.cursor()
    # SQLite does not wait for the lock that the change to a write-ahead log takes: processes that start together.
    _execute_when_free(cursor, "PRAGMA journal_mode = WAL")
    for pragma in (
        f"busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}",
        "cache_size = -16000",
        "journal_size_limit = 67108864",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    """Begin a write transaction as soon as no other process holds one.

    Raises:
        sqlite3.OperationalError: that took longer than `BUSY_TIMEOUT_S`.
    """
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA busy_timeout = 0")
    # FULL: what was committed survives a power cut.
    cursor.execute(f"PRAGMA synchronous = {'FULL' if connection.get_execution_options()['is_durable'] else 'NORMAL'}")
    try:
        _execute_when_free(cursor, "BEGIN IMMEDIATE")
    finally:
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
        cursor.close()


def _execute_when_free(cursor: Any, statement: str) -> None:
    """Execute a statement as soon as no other connection holds the lock that it needs.

    Raises:
        sqlite3.OperationalError: that took longer than `BUSY_TIMEOUT_S`.
    """
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute(statement)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
            time.sleep(LOCK_POLL_S)
        else:
            return


@contextmanager
def _translated() -> Generator[None]:
    try:
        yield
    except (exc.IntegrityError, exc.DataError):
        raise  # the statement's own: a key that is taken, a value out of range
    except (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError) as error:
        words = _words_of_sqlite(error)
        raise StoreUnavailable(BUSY if words is None else SQLITE_SAYS.format(words)) from error
    except exc.DBAPIError as error:  # a missing table or right, a pooler that breaks sessions, a read-only replica
        reason = type(error.orig).__name__
        log.error("database refused a statement", reason=reason, statement=error.statement)
        raise StoreUnavailable(REFUSED.format(reason)) from error


def _words_of_sqlite(error: Exception) -> str | None:
    """What SQLite said first: it drops the savepoints of a failed transaction, and says next that they are gone."""
    words: str | None = None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlite3.OperationalError):
            words = str(cause)
        cause = cause.__cause__ or cause.__context__
    return words


def _revision(connection: sa.Connection) -> str | None:
    """The schema's revision, None in an empty database."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _is_usable(found: str | None) -> bool:
    """Whether a database needs no migration.

    Raises:
        StoreUnavailable: it is of a newer version whose schema this one cannot use.
    """
    if found is None or found < SCHEMA_REVISION:
        return False
    if found != SCHEMA_REVISION and oldest_code(found) > SCHEMA_REVISION:
        raise StoreUnavailable(f"the database has revision {found}; this version knows {SCHEMA_REVISION}")
    if found != SCHEMA_REVISION:
        log.warning("database of a newer version, which this one can use", found=found, known=SCHEMA_REVISION)
    return True


def _upgrade(connection: sa.Connection) -> None:
    """Run the missing migrations inside the connection's transaction."""
    from alembic import command  # slow to import, and rarely needed
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
