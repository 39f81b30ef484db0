"""The first schema.

Revision: 0001
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ID = sa.String(length=32)


def required(kind: Any, *names: str, **options: Any) -> list[sa.Column[Any]]:
    """Columns of one type that hold a value in every row."""
    return [sa.Column(name, kind, nullable=False, **options) for name in names]


def optional(kind: Any, *names: str) -> list[sa.Column[Any]]:
    """Columns of one type that may be null."""
    return [sa.Column(name, kind, nullable=True) for name in names]


def create_index(name: str, table: str, columns: list[str], *, where: str | None = None, unique: bool = False) -> None:
    """Create an index, over some rows where a condition is given."""
    options = {} if where is None else {"sqlite_where": sa.text(where), "postgresql_where": sa.text(where)}
    op.create_index(name, table, columns, unique=unique, **options)


def upgrade() -> None:
    op.create_table(
        "job_requests",
        *required(sa.Integer(), "job_id", autoincrement=False),
        *required(sa.LargeBinary(), "body"),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_table(
        "jobs",
        *required(ROW_ID, "seq", autoincrement=True),
        *required(sa.Integer(), "id"),
        *required(ID, "key_id"),
        *required(sa.Text(), "file_prefix"),
        *required(sa.String(length=9), "state"),
        *required(sa.Double(), "created_at"),
        *required(sa.String(length=64), "request_sha256"),
        *required(sa.Text(), "meta"),
        *optional(sa.Text(), "track_id", "webhook_url", "idempotency_key"),
        *required(sa.Text(), "stage"),
        *required(sa.Integer(), "percent", "attempts"),
        *optional(sa.Text(), "worker_id"),
        *optional(sa.Double(), "lease_expires_at"),
        *required(sa.Boolean(), "is_cancel_requested"),
        *optional(sa.Double(), "started_at", "finished_at", "expires_at"),
        *optional(sa.Text(), "ending"),
        sa.PrimaryKeyConstraint("seq"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    create_index("jobs_expiring", "jobs", ["expires_at"])
    has_key = "idempotency_key IS NOT NULL"
    create_index("jobs_idempotency", "jobs", ["key_id", "idempotency_key"], where=has_key, unique=True)
    create_index("jobs_by_track_id", "jobs", ["track_id"], where="track_id IS NOT NULL")
    create_index("jobs_of_key", "jobs", ["key_id", "seq"])
    create_index("jobs_queued", "jobs", ["seq", "key_id"], where="state = 'queued'")
    create_index("jobs_running", "jobs", ["lease_expires_at"], where="state = 'running'")
    op.create_table(
        "key_buckets",
        *required(ID, "key_id"),
        *required(sa.LargeBinary(), "encrypted"),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "key_months",
        *required(ID, "key_id"),
        *required(sa.String(length=7), "month"),
        *required(sa.Integer(), "accepted", "calls"),
        sa.PrimaryKeyConstraint("key_id", "month"),
    )
    op.create_table(
        "keys",
        *required(ID, "id"),
        *required(sa.Text(), "name"),
        *required(sa.String(length=64), "sha256"),
        *required(sa.Text(), "shown"),
        *required(sa.Double(), "created_at"),
        *optional(sa.Double(), "revoked_at"),
        *optional(sa.Integer(), "max_queued", "max_running", "max_per_minute", "max_per_month"),
        *required(sa.Integer(), "queued", "running", "minute", "minute_calls"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("sha256"),
    )
    create_index("keys_name_in_use", "keys", ["name"], where="revoked_at IS NULL", unique=True)
    op.create_table(
        "task_attempts",
        *required(sa.String(length=40), "task_id"),
        *required(sa.Integer(), "number", autoincrement=False),
        *required(sa.Double(), "at"),
        *optional(sa.Integer(), "status"),
        *required(sa.Text(), "error"),
        *required(sa.Double(), "seconds"),
        sa.PrimaryKeyConstraint("task_id", "number"),
    )
    op.create_table(
        "tasks",
        *required(sa.String(length=40), "id"),
        *required(sa.String(length=8), "kind"),
        *required(sa.Integer(), "job_id"),
        *required(ID, "key_id"),
        *required(sa.Text(), "target"),
        *required(sa.String(length=8), "state"),
        *required(sa.Integer(), "attempts"),
        *required(sa.Double(), "created_at", "next_attempt_at", "give_up_at"),
        *optional(sa.Integer(), "last_status"),
        *required(sa.Text(), "last_error"),
        *optional(sa.Double(), "done_at"),
        sa.PrimaryKeyConstraint("id"),
    )
    create_index("ix_tasks_job_id", "tasks", ["job_id"])
    create_index("tasks_pending", "tasks", ["kind", "next_attempt_at"], where="state = 'pending'")
    op.create_table(
        "totals",
        *required(sa.String(length=32), "name"),
        *required(sa.String(length=64), "label"),
        *required(sa.Double(), "value"),
        sa.PrimaryKeyConstraint("name", "label"),
    )
    op.create_table(
        "usage",
        *required(ROW_ID, "job_seq", autoincrement=False),
        *required(ID, "key_id"),
        *required(sa.Integer(), "job_id"),
        *required(sa.String(length=9), "state"),
        *required(sa.Text(), "engine"),
        *required(sa.Double(), "seconds", "gpu_seconds"),
        *required(sa.Text(), "stage_seconds"),
        *required(sa.Double(), "created_at", "finished_at"),
        *required(sa.String(length=10), "day"),
        *optional(sa.Text(), "track_id"),
        sa.PrimaryKeyConstraint("job_seq"),
    )
    create_index("usage_by_time", "usage", ["finished_at"])
    create_index("usage_of_key", "usage", ["key_id", "finished_at"])
    op.create_table(
        "workers",
        *required(sa.String(length=80), "worker_id"),
        *required(sa.Text(), "engine"),
        *required(sa.Double(), "seen_at"),
        *required(sa.Boolean(), "is_ready"),
        *optional(sa.Integer(), "job_id"),
        sa.PrimaryKeyConstraint("worker_id"),
    )
