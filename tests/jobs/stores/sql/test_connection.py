"""Group commit in SQLite: what the work of several threads shares, and what stays isolated."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from pipeline.errors import InvalidRequest, StoreUnavailable
from pipeline.jobs.stores.sql import connection as module
from pipeline.jobs.stores.sql.connection import Database

Work = Callable[[sa.Connection], Any]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'numbers.sqlite'}")
    with opened.write() as connection:
        connection.execute(sa.text("CREATE TABLE numbers (number INTEGER PRIMARY KEY, text TEXT)"))
    yield opened
    opened.close()


def put(number: int, *, refuse: bool = False, text: str = "") -> Work:
    def work(connection: sa.Connection) -> int:
        values = {"number": number, "text": text}
        connection.execute(sa.text("INSERT INTO numbers VALUES (:number, :text)"), values)
        if refuse:
            raise InvalidRequest(f"{number} is refused")
        return number * 10

    return work


def numbers(database: Database) -> list[int]:
    with database.read() as connection:
        return [row[0] for row in connection.execute(sa.text("SELECT number FROM numbers ORDER BY number"))]


def do_together(database: Database, works: list[Work]) -> list[Future[Any]]:
    """Queue all work behind one transaction, in order, then let it run."""
    with ThreadPoolExecutor(len(works)) as pool:
        futures = []
        with database._write_lock.held(timeout_s=10):
            for count, work in enumerate(works, start=1):
                futures.append(pool.submit(database.write_together, work))
                while len(database._write_lock._waiters) < count:
                    time.sleep(0.001)
    return futures


def test_work_that_waits_behind_one_commit_shares_the_next(database: Database) -> None:
    commits: list[object] = []
    sa.event.listen(database._durable_engine, "commit", commits.append)

    futures = do_together(database, [put(number) for number in range(8)])

    assert [future.result(10) for future in futures] == [number * 10 for number in range(8)]
    assert numbers(database) == list(range(8))
    assert len(commits) == 1


def test_more_work_than_one_commit_holds_takes_several(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOGETHER", 3)

    futures = do_together(database, [put(number) for number in range(8)])

    assert [future.result(10) for future in futures] == [number * 10 for number in range(8)]
    assert numbers(database) == list(range(8))


def test_work_that_raises_is_rolled_back_alone(database: Database) -> None:
    def break_down(connection: sa.Connection) -> None:
        put(4)(connection)
        raise ZeroDivisionError

    futures = do_together(database, [put(1), put(2, refuse=True), put(1), break_down, put(5)])

    assert futures[0].result(10) == 10 and futures[4].result(10) == 50
    with pytest.raises(InvalidRequest, match="2 is refused"):
        futures[1].result(10)
    with pytest.raises(sa.exc.IntegrityError):
        futures[2].result(10)
    with pytest.raises(ZeroDivisionError):
        futures[3].result(10)
    assert numbers(database) == [1, 5]


def test_a_full_disk_rolls_back_the_whole_group(database: Database) -> None:
    with database._durable_engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")

    futures = do_together(database, [put(1), put(2, text="x" * 100_000), put(3)])

    for future in futures:
        with pytest.raises(StoreUnavailable, match=r"busy or unavailable \(database or disk is full\)"):
            future.result(10)
    assert numbers(database) == []


def test_work_that_waited_too_long_is_not_done_later(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_S", 0.05)

    with ThreadPoolExecutor(1) as pool, database._write_lock.held(timeout_s=10):
        late = pool.submit(database.write_together, put(1))
        with pytest.raises(StoreUnavailable, match="busy or unavailable"):
            late.result(10)
    database.write_together(put(2))

    assert numbers(database) == [2]


def test_a_start_with_a_current_schema_does_not_load_the_migrations(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    Database(url).migrate()
    start = (
        "import sys; from pipeline.jobs.stores.sql.connection import Database;"
        f" Database({url!r}).migrate(); print('alembic' in sys.modules)"
    )

    answer = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)

    assert answer.stdout == "False\n"
