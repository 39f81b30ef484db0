"""Decisions about a job, written; most of it is what the end of a job writes. Runs in the caller's transaction."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import asdict

import sqlalchemy as sa

from pipeline.jobs.limits import day_of
from pipeline.jobs.model import Job, JobResult
from pipeline.jobs.stores.sql.leases import save
from pipeline.jobs.stores.sql.schema import as_text, job_requests, tasks, usage
from pipeline.jobs.transitions import Decision, Retention, completed, completion_sums

# The same statement in SQLite and Postgres.
_ADD_TO_TOTAL = sa.text(
    "INSERT INTO totals (name, label, value) VALUES (:name, :label, :value)"
    " ON CONFLICT (name, label) DO UPDATE SET value = totals.value + excluded.value"
)


def add_to_totals(connection: sa.Connection, sums: Iterable[tuple[str, str, float]]) -> None:
    """Add to counters that outlive the records, in the same order everywhere, which rules out deadlocks."""
    rows = [{"name": name, "label": label, "value": float(value)} for name, label, value in sorted(sums)]
    connection.execute(_ADD_TO_TOTAL, rows)


def apply(connection: sa.Connection, job: Job, decision: Decision, *, now: float, retention: Retention) -> Job:
    """Write a decision about a job whose row this transaction has locked; returns the job as it is then."""
    if isinstance(decision, JobResult):
        return complete_job(connection, job, decision, now=now, retention=retention)
    return save(connection, job, decision)


def complete_job(connection: sa.Connection, job: Job, result: JobResult, *, now: float, retention: Retention) -> Job:
    """The final transition of a job with all that it writes.

    Args:
        job: its row is locked by this transaction.
    """
    end = completed(job, result, now=now, retention=retention, draw_task_id=lambda: f"msg_{uuid.uuid4().hex}")
    save(connection, job, end.job)
    connection.execute(job_requests.delete().where(job_requests.c.job_id == job.id))
    if end.tasks:
        connection.execute(tasks.insert(), [asdict(task) for task in end.tasks])
    row = asdict(end.usage) | {
        "job_seq": job.seq,
        "state": str(end.usage.state),
        "stage_seconds": as_text(dict(result.stage_seconds)),
        "day": day_of(end.usage.finished_at),
        "track_id": as_text(end.usage.track_id),
    }
    connection.execute(usage.insert().values(row))
    add_to_totals(connection, completion_sums(result))
    return end.job
