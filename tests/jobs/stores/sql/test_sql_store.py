"""The SQL store alone: migrations, locks, several processes, a full disk."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from pipeline.errors import StoreUnavailable
from pipeline.jobs.api_keys import make_key
from pipeline.jobs.model import ApiKey, JobFilter, JobResult, JobState, KeyLimits, LedgerFilter
from pipeline.jobs.stores.sql import connection as database
from pipeline.jobs.stores.sql.connection import Database, FairLock
from pipeline.jobs.stores.sql.schema import SCHEMA_REVISION, metadata
from pipeline.jobs.stores.sql.statements import LARGE_REQUEST_BYTES
from pipeline.jobs.stores.sql.store import SqlStore
from tests.jobs.store_fixtures import new_job


def add_key(store: SqlStore) -> ApiKey:
    return store.add_key(make_key("tests", limits=KeyLimits())[1])


def test_the_migrations_create_the_tables_of_the_code(database_url: str) -> None:
    SqlStore(database_url).close()
    engine = sa.create_engine(database_url)

    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA_REVISION
    engine.dispose()


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'jobs.sqlite'}"
    code = f"from pipeline.jobs.stores.sql.store import SqlStore; print(SqlStore({url!r}).restarts_requested())"

    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]

    answers = [(process.communicate(timeout=60)[0], process.returncode) for process in processes]
    assert answers == [(b"0\n", 0)] * 3


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_new_database_that_another_process_writes_is_waited_for(begin: str, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE other (a)")
    other.execute(begin)  # while it is not yet in the mode of a write-ahead log
    threading.Timer(0.2, lambda: other.execute("COMMIT")).start()

    store = SqlStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")

    assert store.restarts_requested() == 0
    store.close()
    other.close()


@pytest.mark.parametrize("newer", ["9999", "9999-9998"])
def test_a_database_of_a_newer_version_that_did_not_only_add_is_refused(newer: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    SqlStore(url).close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (newer,))
    connection.close()

    with pytest.raises(StoreUnavailable, match=f"has revision {newer}; this version knows {SCHEMA_REVISION}"):
        SqlStore(url)


def test_a_version_from_before_a_migration_that_only_added_starts_and_works(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    SqlStore(url).close()
    engine = sa.create_engine(url)
    with engine.begin() as connection:  # what a later version's migration does
        connection.execute(sa.text("ALTER TABLE jobs ADD COLUMN colour VARCHAR(9) DEFAULT '' NOT NULL"))
        connection.execute(sa.text("ALTER TABLE tasks ADD COLUMN shape VARCHAR(9)"))
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '9999-{SCHEMA_REVISION}'"))

    store = SqlStore(url)
    store.submit(new_job(add_key(store), webhook_url="http://127.0.0.1/hook"))
    job = store.claim("w", lease_s=30)
    assert job is not None
    assert store.complete(job.lease, JobResult(JobState.SUCCESS)).state is JobState.SUCCESS
    assert store.claim_task("webhook", claim_s=60) is not None
    store.close()

    with engine.connect() as connection:
        assert MigrationContext.configure(connection).get_current_revision() == f"9999-{SCHEMA_REVISION}"
    engine.dispose()


def migrations() -> list[tuple[str, str]]:
    """The revision and the text of each migration, the first excepted."""
    folder = Path(database.__file__).with_name("migrations") / "versions"
    texts = {path: path.read_text() for path in folder.glob("*_0*.py")}
    found = [(re.findall(r'^revision = "(.+)"', text, re.MULTILINE)[0], text) for text in texts.values()]
    return sorted(found)[1:]


def test_every_migration_says_which_code_can_go_on_with_it() -> None:
    assert migrations()[-1][0] == SCHEMA_REVISION
    for revision, text in migrations():
        number, is_named, oldest = revision.partition("-")
        assert is_named or number <= "0004", f"{revision} does not name the oldest code that can use its schema"
        only_adds = not re.search(r"drop_|alter_|rename_|execute\(", text)
        assert only_adds or oldest == number, f"{revision} changes what older code uses"


def test_a_column_that_a_migration_added_needs_no_value_from_older_code(database_url: str) -> None:
    SqlStore(database_url).close()
    engine = sa.create_engine(database_url)
    found = sa.inspect(engine)

    for _, text in migrations():
        for table, column in re.findall(r'op\.add_column\("(\w+)", sa\.Column\("(\w+)"', text):
            stored = next(each for each in found.get_columns(table) if each["name"] == column)
            assert stored["nullable"] or stored["default"] is not None, f"{table}.{column}"
    engine.dispose()


def test_a_database_of_the_first_revision_goes_on_with_its_tasks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    store = SqlStore(url)
    store.submit(new_job(add_key(store), webhook_url="http://127.0.0.1/hook"))
    job = store.claim("w", lease_s=30)
    assert job is not None
    store.complete(job.lease, JobResult(JobState.SUCCESS))
    store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as connection:
        connection.execute("ALTER TABLE tasks DROP COLUMN planned_at")
        connection.execute("ALTER TABLE keys DROP COLUMN secret_number")
        connection.execute("ALTER TABLE keys DROP COLUMN secret_rotated_at")
        connection.execute("ALTER TABLE jobs DROP COLUMN engine")
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.close()

    store = SqlStore(url)

    task = store.claim_task("webhook", claim_s=60)
    assert task is not None and task.job_id == job.id
    store.close()


def test_a_failed_migration_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    upgrade = database._upgrade

    def fail_at_the_end(connection: sa.Connection) -> None:
        upgrade(connection)
        raise RuntimeError("power cut")

    monkeypatch.setattr(database, "_upgrade", fail_at_the_end)
    with pytest.raises(RuntimeError, match="power cut"):
        SqlStore(url)
    monkeypatch.undo()

    engine = sa.create_engine(url)
    assert sa.inspect(engine).get_table_names() == []
    engine.dispose()
    SqlStore(url).close()


def test_jobs_survive_their_process(database_url: str) -> None:
    first = SqlStore(database_url)
    key = add_key(first)
    done, waiting = (first.submit(new_job(key, webhook_url="http://127.0.0.1/h")).job for _ in range(2))
    claimed = first.claim("w1", lease_s=30)
    assert claimed is not None and claimed.id == done.id
    ended = first.complete(claimed.lease, JobResult(JobState.SUCCESS))
    first.close()

    second = SqlStore(database_url)

    assert second.get(done.id, api_key_id=key.id) == ended
    assert second.get(waiting.id, api_key_id=key.id) == waiting
    assert second.claim_task("webhook", claim_s=1) is not None
    assert second.list_keys() == [key]
    second.close()


def test_two_stores_on_one_database_share_the_queue(database_url: str) -> None:
    stores = [SqlStore(database_url) for _ in range(3)]
    key = add_key(stores[0])
    jobs = {stores[0].submit(new_job(key)).job.id for _ in range(30)}

    def drain(store: SqlStore) -> list[int]:
        ids = []
        for _ in range(60):
            job = store.claim("w", lease_s=60)
            if job is not None:
                ids.append(job.id)
                store.complete(job.lease, JobResult(JobState.SUCCESS))
        return ids

    with ThreadPoolExecutor(3) as pool:
        ids = [job_id for drained in pool.map(drain, stores) for job_id in drained]

    assert len(ids) == len(set(ids)) == 30
    assert set(ids) == jobs
    assert len(stores[1].usage_rows(LedgerFilter(None))) == 30
    for store in stores:
        store.close()


def test_a_locked_database_raises_store_unavailable_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "jobs.sqlite"
    store = SqlStore(f"sqlite:///{path}")
    key = add_key(store)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreUnavailable, match="busy or unavailable"):
        store.submit(new_job(key))
    assert store.list_jobs(JobFilter(key.id)) == []  # reads still succeed

    blocker.execute("ROLLBACK")
    blocker.close()
    assert store.submit(new_job(key)).is_new
    store.close()


def test_a_full_disk_raises_store_unavailable_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = SqlStore(f"sqlite:///{path}")
    key = add_key(store)
    with store._database.engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    store.close()
    store = SqlStore(f"sqlite:///{path}")

    @sa.event.listens_for(store._database.engine, "connect")
    def _limit(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages + 4}").close()

    store._database.engine.dispose()
    with pytest.raises(StoreUnavailable):
        store.submit(new_job(key, request=bytes(1_000_000)))

    assert store.list_jobs(JobFilter(key.id)) == []
    assert store.key_use(key.id).queued == 0
    store.close()


def test_an_unreachable_database_raises_store_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        SqlStore("postgresql+psycopg://nobody@127.0.0.1:1/jobs")


def test_database_errors_contain_no_values(tmp_path: Path) -> None:
    base = Database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")

    with pytest.raises(StoreUnavailable) as raised, base.write() as connection:
        connection.execute(sa.text("INSERT INTO nowhere VALUES (:key)"), {"key": "the-secret"})

    assert "the-secret" not in str(raised.value) + str(raised.value.__cause__)
    base.close()


@pytest.mark.xdist_group("postgres")
def test_a_pooler_may_give_each_transaction_another_session(pooled_postgres_url: str) -> None:
    base = Database(f"{pooled_postgres_url}?pgbouncer=true&connection_limit=1", pool_size=2, pool_overflow=0)
    sessions: set[int] = set()

    def ask(_: int) -> None:
        for _ in range(10):  # twice as often as psycopg repeats a statement before it prepares it
            with base.read() as connection:
                sessions.add(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())

    with ThreadPoolExecutor(4) as pool:
        [*pool.map(ask, range(4))]

    assert len(sessions) > 1
    with base.read() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
    base.close()


@pytest.mark.xdist_group("postgres")
@pytest.mark.parametrize(
    ("setup", "statement", "reason"),
    [
        (None, "SELECT * FROM nowhere", "UndefinedTable"),
        ("SET TRANSACTION READ ONLY", "DELETE FROM totals", "ReadOnlySqlTransaction"),
        ("SET LOCAL ROLE pg_monitor", "SELECT * FROM keys", "InsufficientPrivilege"),
        ("PREPARE twice AS SELECT 1", "PREPARE twice AS SELECT 1", "DuplicatePreparedStatement"),
        (None, "EXECUTE of_another_session", "InvalidSqlStatementName"),
    ],
)
def test_a_statement_that_postgres_refuses_raises_store_unavailable(
    postgres_url: str, setup: str | None, statement: str, reason: str
) -> None:
    base = Database(postgres_url)

    with pytest.raises(StoreUnavailable, match=rf"refused a statement \({reason}\)"), base.write() as connection:
        if setup is not None:
            connection.execute(sa.text(setup))
        connection.execute(sa.text(statement))

    base.close()


def test_the_first_process_decides_which_secret_the_deployment_has(database_url: str) -> None:
    stores = [SqlStore(database_url) for _ in range(2)]

    with ThreadPoolExecutor(2) as pool:
        answers = [*pool.map(lambda number: stores[number].knows_secret([f"secret {number}"]), range(2))]

    assert sorted(answers) == [False, True]  # whichever came first
    first, second = (f"secret {number}" for number in (answers.index(True), answers.index(False)))
    assert stores[0].knows_secret([first])
    assert stores[0].knows_secret([second, first])  # both are configured while the key is replaced
    assert stores[1].knows_secret([second])
    assert not stores[1].knows_secret(["another"])
    assert stores[1].knows_secret(["another"], adopt=True) and stores[0].knows_secret(["another"])
    for store in stores:
        store.close()


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        ("SELECT * FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT 1", "jobs_queued"),
        ("SELECT * FROM jobs WHERE state = 'running' AND lease_expires_at <= 1", "jobs_running"),
        ("SELECT * FROM jobs WHERE key_id = 'k' ORDER BY seq DESC LIMIT 50", "jobs_of_key"),
        ("SELECT * FROM jobs WHERE key_id = 'k' AND idempotency_key = 'x'", "jobs_idempotency"),
        ("SELECT * FROM jobs WHERE track_id IN ('1')", "jobs_by_track_id"),
        ("SELECT * FROM jobs WHERE expires_at <= 1", "jobs_expiring"),
        ("SELECT id FROM tasks WHERE state = 'pending' AND kind = 'webhook' ORDER BY next_attempt_at", "tasks_pending"),
        ("SELECT seconds FROM usage WHERE state = 'success' ORDER BY finished_at DESC LIMIT 20", "usage_by_time"),
    ],
)
def test_frequent_queries_use_their_index(tmp_path: Path, statement: str, index: str) -> None:
    SqlStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}").close()
    connection = sqlite3.connect(tmp_path / "jobs.sqlite")

    plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}"))

    connection.close()
    assert index in plan


def test_the_fair_lock_serves_its_waiters_in_order() -> None:
    lock, order = FairLock(), []

    def enter(number: int) -> None:
        with lock.held(timeout_s=10):
            order.append(number)

    with ThreadPoolExecutor(8) as pool:
        with lock.held(timeout_s=10):
            futures = []
            for number in range(8):
                futures.append(pool.submit(enter, number))
                while len(lock._waiters) <= number:
                    pass
        for future in futures:
            future.result(10)

    assert order == list(range(8))


def test_the_fair_lock_times_out() -> None:
    lock = FairLock()

    def enter(timeout_s: float) -> str:
        with lock.held(timeout_s=timeout_s):
            return "in"

    with ThreadPoolExecutor(2) as pool:
        with lock.held(timeout_s=10):
            patient = pool.submit(enter, 10)
            with pytest.raises(StoreUnavailable, match="busy or unavailable"):
                pool.submit(enter, 0.01).result(10)
        assert patient.result(10) == "in"
        assert enter(0.01) == "in"


@pytest.mark.parametrize(
    "size_bytes", [0, 1, LARGE_REQUEST_BYTES - 1, LARGE_REQUEST_BYTES, 2 * LARGE_REQUEST_BYTES + 7]
)
def test_a_request_of_any_size_is_read_as_it_was_written(database_url: str, size_bytes: int) -> None:
    store = SqlStore(database_url)
    content = bytes(range(256)) * (size_bytes // 256 + 1)
    job = store.submit(replace(new_job(add_key(store)), request=content[:size_bytes])).job

    assert store.request_of(job.id) == content[:size_bytes]
    store.close()
