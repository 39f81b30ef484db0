"""A fixture for every kind of store, with a clock that the tests set."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey, KeyLimits, NewJob
from pipeline.jobs.store import Store
from pipeline.jobs.stores.kv.store import KvStore
from pipeline.jobs.stores.sql.schema import metadata
from pipeline.jobs.stores.sql.store import SqlStore
from pipeline.jobs.transitions import Retention
from tests.fakes.key_values import MemoryKeyValues
from tests.reference.memory_store import MemoryStore
from tests.servers.pgbouncer import pooler
from tests.servers.postgres import running_server

NOON = 1_780_315_200.0  # 2026-06-01 12:00:00 UTC, the beginning of a minute
_numbers = itertools.count(1)


@dataclass
class Clock:
    """Seconds since 1970, as the test sets them."""

    now: float = NOON
    latest: float = NOON

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.latest += abs(seconds)

    def ever_later(self) -> float:
        """Seconds that never go back, for what must not depend on a clock that does."""
        return self.latest


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    with running_server() as url:
        SqlStore(url).close()  # migrates
        yield url


@pytest.fixture(scope="session")
def pooled_postgres_url(postgres_url: str) -> Iterator[str]:
    """The same database through pgbouncer in transaction mode."""
    with pooler(postgres_url) as url:
        yield url


POSTGRES = pytest.param("postgres", marks=pytest.mark.xdist_group("postgres"))
POOLED = pytest.param("pooled-postgres", marks=pytest.mark.xdist_group("postgres"))


@pytest.fixture(params=["sqlite", POSTGRES, POOLED])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return _database_url(request, tmp_path)


@pytest.fixture(params=["memory", "sqlite", POSTGRES, POOLED, "key-value"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Store]:
    """An empty store of each kind."""
    retention = Retention(
        record_lifetime_s=1000.0,
        webhook_window_s=7200.0,
        failed_requests_bytes=20_000,
        failed_requests_bytes_per_key=12_000,
    )
    opened: Store
    if request.param == "memory":
        opened = MemoryStore(clock=clock, retention=retention)
    elif request.param == "key-value":
        opened = KvStore(MemoryKeyValues(), clock=clock, retention=retention)
    else:
        opened = SqlStore(_database_url(request, tmp_path), clock=clock, retention=retention)
    yield opened
    opened.close()


def _database_url(request: pytest.FixtureRequest, folder: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{folder / 'jobs.sqlite'}"
    engine = sa.create_engine(request.getfixturevalue("postgres_url"))
    with engine.begin() as connection:
        connection.execute(sa.text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
    engine.dispose()
    return request.getfixturevalue("postgres_url" if request.param == "postgres" else "pooled_postgres_url")


@pytest.fixture
def add_key(store: Store, clock: Clock) -> Callable[..., ApiKey]:
    """Adds keys with the given limits."""

    def add(**limits: int) -> ApiKey:
        _, record = make_key(f"key {next(_numbers)}", limits=KeyLimits(**limits), clock=clock)
        return store.add_key(record)

    return add


def new_job(key: ApiKey, **fields: object) -> NewJob:
    """A submit with a unique body."""
    number = next(_numbers)
    defaults = {
        "api_key_id": key.id,
        "file_prefix": f"prefix-{number}",
        "request": b'{"image": "x"}',
        "request_sha256": f"{number:064x}",
    }
    return NewJob(**{**defaults, **fields})  # pyright: ignore[reportArgumentType]
