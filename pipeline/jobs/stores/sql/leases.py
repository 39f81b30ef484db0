"""Rows of jobs: found, locked, and written as transitions say. Every function runs in the caller's transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from pipeline.jobs.model import Job, JobState, Lease
from pipeline.jobs.stores.sql.schema import IS_QUEUED, IS_RUNNING, job_columns, job_from_row, jobs, key_months, keys
from pipeline.jobs.transitions import is_lease_due, usage_change


def find_job(connection: sa.Connection, job_id: int, *, for_update: bool = False) -> Job | None:
    """The job with this id.

    Args:
        for_update: lock its row until the transaction ends.
    """
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    return None if row is None else job_from_row(row)


def lock_first(connection: sa.Connection, query: sa.Select[Any]) -> Job | None:
    """The first job of a query that no other transaction has locked, locked for this one."""
    first = query.order_by(jobs.c.seq).limit(1).with_for_update(skip_locked=True)
    row = connection.execute(first).one_or_none()
    return None if row is None else job_from_row(row)


def save(connection: sa.Connection, before: Job, after: Job) -> Job:
    """Write what a transition changed, of the job and of its key's counters.

    Args:
        before: the job as it is on record, its row locked by this transaction.
    """
    columns = job_columns(after, before=before)
    if columns:
        connection.execute(jobs.update().where(jobs.c.seq == before.seq).values(columns))
    change = usage_change(before, after)
    if change.queued or change.running:
        counters = {"queued": keys.c.queued + change.queued, "running": keys.c.running + change.running}
        connection.execute(keys.update().where(keys.c.id == before.api_key_id).values(counters))
    if change.month_calls:
        of_month = (key_months.c.api_key_id == before.api_key_id) & (key_months.c.month == change.month)
        calls = key_months.c.calls + change.month_calls
        connection.execute(key_months.update().where(of_month).values(calls=calls))
    return after


def jobs_with_due_leases(now: float, lease_s: float, job_id: int | None) -> sa.Select[Any]:
    """Running jobs that `lease_checked` would change."""
    query = sa.select(jobs).where(IS_RUNNING, is_lease_due(jobs.c.lease_expires_at, now=now, lease_s=lease_s))
    return query if job_id is None else query.where(jobs.c.id == job_id)


def queued_jobs(full_keys: set[str], job_id: int | None) -> sa.Select[Any]:
    """Queued jobs, without those of some keys, and of keys whose number of running jobs has reached its limit."""
    has_capacity = keys.c.max_running.is_(None) | (keys.c.running < keys.c.max_running)
    query = sa.select(jobs).where(
        IS_QUEUED, jobs.c.api_key_id.in_(sa.select(keys.c.id).where(keys.c.queued > 0, has_capacity))
    )
    if full_keys:
        query = query.where(jobs.c.api_key_id.not_in(full_keys))
    return query if job_id is None else query.where(jobs.c.id == job_id)


def is_held(lease: Lease) -> sa.ColumnElement[bool]:
    """Whether a row of `jobs` is the job that the lease holds; for a heartbeat, which is one statement."""
    is_own = (jobs.c.worker_id == lease.worker_id) & (jobs.c.attempts == lease.attempt)
    return (jobs.c.id == lease.job_id) & (jobs.c.state == "running") & is_own


def queue_position_of(connection: sa.Connection, job: Job) -> int:
    """How many jobs are claimed before this one, itself included; 0 unless queued."""
    if job.state is not JobState.QUEUED:
        return 0
    query = sa.select(sa.func.count()).select_from(jobs).where(IS_QUEUED, jobs.c.seq <= job.seq)
    return connection.execute(query).scalar_one()
