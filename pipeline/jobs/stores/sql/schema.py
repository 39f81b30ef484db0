"""The tables of `pipeline.jobs.stores.sql.store`, for SQLite and Postgres alike, and the records in their rows.

The migrations create the schema of a database; a test compares it with these tables. `meta`, `result` and `track_id`
are stored as JSON text. Queries repeat the conditions of partial indexes as literals, since neither database matches a
partial index against a bound value. A column whose stored name differs from the record's field has a `key`: the name is
that of version 0.1.0.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy import Boolean, Column, Double, Index, Integer, LargeBinary, MetaData, String, Table, Text

from pipeline.jobs.model import ApiKey, Job, JobMeta, JobResult, JobState, KeyLimits, OutboxTask, Progress

SCHEMA_REVISION = "0004"
"""The newest migration. From the next one on, a revision is named by its number and the oldest number whose code can go
on with it, as in `0006-0004`: a migration that only adds keeps the latter, so that an older version may start again."""


def oldest_code(revision: str) -> str:
    """The oldest revision whose code can use a database of this revision."""
    return revision.partition("-")[2] or revision


IS_QUEUED = sa.text("state = 'queued'")
IS_RUNNING = sa.text("state = 'running'")
HAS_IDEMPOTENCY_KEY = sa.text("idempotency_key IS NOT NULL")
HAS_TRACK_ID = sa.text("track_id IS NOT NULL")
IS_IN_USE = sa.text("revoked_at IS NULL")
IS_PENDING = sa.text("state = 'pending'")

# SQLite assigns growing row ids only to a column whose type is exactly INTEGER.
RowId = sa.BigInteger().with_variant(Integer(), "sqlite")

_RESULT = TypeAdapter(JobResult)

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", Text, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("shown", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("revoked_at", Double),
    Column("secret_number", Integer, nullable=False, server_default="0"),
    Column("secret_rotated_at", Double),
    Column("max_queued", Integer),
    Column("max_running", Integer),
    Column("max_per_minute", Integer),
    Column("max_per_month", Integer),
    # Counters, changed in the transactions that change the jobs they count.
    Column("queued", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("minute", Integer, nullable=False),
    Column("minute_calls", Integer, nullable=False),
)
Index("keys_name_in_use", keys.c.name, unique=True, sqlite_where=IS_IN_USE, postgresql_where=IS_IN_USE)

key_months = Table(
    "key_months",
    metadata,
    Column("key_id", String(32), primary_key=True, key="api_key_id"),
    Column("month", String(7), primary_key=True),
    Column("accepted", Integer, nullable=False),  # all submits
    Column("calls", Integer, nullable=False),  # without those that ended unsuccessfully
)

key_buckets = Table(
    "key_buckets",
    metadata,
    Column("key_id", String(32), primary_key=True, key="api_key_id"),
    Column("encrypted", LargeBinary, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", RowId, primary_key=True, autoincrement=True),
    Column("id", Integer, nullable=False, unique=True),
    Column("key_id", String(32), nullable=False, key="api_key_id"),
    Column("file_prefix", Text, nullable=False),
    Column("state", String(9), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("request_sha256", String(64), nullable=False),
    Column("meta", Text, nullable=False),
    Column("track_id", Text),
    Column("webhook_url", Text),
    Column("idempotency_key", Text),
    Column("stage", Text, nullable=False),
    Column("percent", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("worker_id", Text),
    Column("lease_expires_at", Double),
    Column("is_cancel_requested", Boolean, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("expires_at", Double),
    Column("ending", Text, key="result"),
    Column("engine", String(64), nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
Index("jobs_queued", jobs.c.seq, jobs.c.api_key_id, sqlite_where=IS_QUEUED, postgresql_where=IS_QUEUED)
Index("jobs_running", jobs.c.lease_expires_at, sqlite_where=IS_RUNNING, postgresql_where=IS_RUNNING)
Index("jobs_of_key", jobs.c.api_key_id, jobs.c.seq)
Index("jobs_expiring", jobs.c.expires_at)
Index(
    "jobs_idempotency",
    jobs.c.api_key_id,
    jobs.c.idempotency_key,
    unique=True,
    sqlite_where=HAS_IDEMPOTENCY_KEY,
    postgresql_where=HAS_IDEMPOTENCY_KEY,
)
Index("jobs_by_track_id", jobs.c.track_id, sqlite_where=HAS_TRACK_ID, postgresql_where=HAS_TRACK_ID)

job_requests = Table(
    "job_requests",
    metadata,
    Column("job_id", Integer, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("kind", String(8), nullable=False),
    Column("job_id", Integer, nullable=False, index=True),
    Column("key_id", String(32), nullable=False, key="api_key_id"),
    Column("target", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("next_attempt_at", Double, nullable=False),
    Column("give_up_at", Double, nullable=False),
    Column("last_status", Integer),
    Column("last_error", Text, nullable=False),
    Column("done_at", Double),
    Column("planned_at", Double, nullable=False, server_default="0", key="scheduled_at"),
)
Index("tasks_pending", tasks.c.kind, tasks.c.next_attempt_at, sqlite_where=IS_PENDING, postgresql_where=IS_PENDING)

task_attempts = Table(
    "task_attempts",
    metadata,
    Column("task_id", String(40), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("status", Integer),
    Column("error", Text, nullable=False),
    Column("seconds", Double, nullable=False),
)

usage = Table(
    "usage",
    metadata,
    # The job's own number: the database refuses a second row for one job.
    Column("job_seq", RowId, primary_key=True, autoincrement=False),
    Column("key_id", String(32), nullable=False, key="api_key_id"),
    Column("job_id", Integer, nullable=False),
    Column("state", String(9), nullable=False),
    Column("engine", Text, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("gpu_seconds", Double, nullable=False),
    Column("stage_seconds", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("day", String(10), nullable=False),
    Column("track_id", Text),
)
Index("usage_by_time", usage.c.finished_at)
Index("usage_of_key", usage.c.api_key_id, usage.c.finished_at)

totals = Table(
    "totals",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("label", String(64), primary_key=True),
    Column("value", Double, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("worker_id", String(80), primary_key=True),
    Column("engine", Text, nullable=False),
    Column("seen_at", Double, nullable=False),
    Column("is_ready", Boolean, nullable=False),
    Column("job_id", Integer),
)


def as_text(value: Any) -> str | None:
    """A value as it is stored in a JSON column."""
    return None if value is None else json.dumps(value, separators=(",", ":"))


def by_key(row: sa.Row[Any], table: Table) -> dict[str, Any]:
    """A row's values by the columns' keys: a row names them by the stored names, from which two columns differ."""
    values = row._mapping  # pyright: ignore[reportPrivateUsage]  # public in SQLAlchemy, in spite of its name
    return {column.key: values[column] for column in table.c}


def job_columns(job: Job, *, before: Job | None = None) -> dict[str, Any]:
    """A job as columns of `jobs`, without `seq`.

    Args:
        before: leaves out what is the same there.
    """
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Job) if field.name != "seq"):
        value = getattr(job, name)
        if before is not None and value == getattr(before, name):
            continue
        if isinstance(value, Progress):
            columns |= {"stage": value.stage, "percent": value.percent}
        elif isinstance(value, JobMeta):
            columns[name] = json.dumps(value.to_stored())
        elif isinstance(value, JobResult):
            columns[name] = _RESULT.dump_json(value, by_alias=True).decode()
        elif isinstance(value, JobState):
            columns[name] = str(value)
        else:
            columns[name] = as_text(value) if name == "track_id" else value
    return columns


def job_from_row(row: sa.Row[Any]) -> Job:
    """A row of `jobs` as a record."""
    columns = by_key(row, jobs)
    track_id, result = columns["track_id"], columns["result"]
    columns["state"] = JobState(columns["state"])
    columns["meta"] = JobMeta.from_stored(json.loads(columns["meta"]))
    columns["track_id"] = None if track_id is None else json.loads(track_id)
    columns["progress"] = Progress(columns.pop("stage"), columns.pop("percent"))
    columns["result"] = None if result is None else _RESULT.validate_json(result)
    return Job(**columns)


def limit_columns(limits: KeyLimits) -> dict[str, int | None]:
    """A key's limits as columns of `keys`."""
    return {f"max_{name}": value for name, value in asdict(limits).items()}


def key_from_row(row: sa.Row[Any]) -> ApiKey:
    """A row of `keys` as a record."""
    return ApiKey(
        id=row.id,
        name=row.name,
        sha256=row.sha256,
        shown=row.shown,
        created_at=row.created_at,
        limits=KeyLimits(row.max_queued, row.max_running, row.max_per_minute, row.max_per_month),
        revoked_at=row.revoked_at,
        secret_number=row.secret_number,
        secret_rotated_at=row.secret_rotated_at,
    )


def task_from_row(row: sa.Row[Any]) -> OutboxTask:
    """A row of `tasks` as a record. The columns have the names of the fields, so `asdict` is the way back."""
    return OutboxTask(**by_key(row, tasks))
