"""Rows of jobs and the locks on them, inside a transaction that somebody else opened."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from pipeline.errors import LeaseLost, NotFound
from pipeline.jobs.model import Job, JobState, Lease, may_follow
from pipeline.jobs.stores.sql.schema import IS_QUEUED, IS_RUNNING, job_from_row, jobs, keys

MAY_RUN_MORE = keys.c.max_running.is_(None) | (keys.c.running < keys.c.max_running)


def get_job(connection: sa.Connection, job_id: int, api_key_id: str | None, *, for_update: bool = False) -> Job:
    """The job, where this key sees it.

    Args:
        api_key_id: None sees all.
        for_update: hold its row until the transaction ends.

    Raises:
        NotFound: there is none for this key.
    """
    query = sa.select(jobs).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    if row is None or api_key_id not in (None, row._mapping[jobs.c.api_key_id]):
        raise NotFound(f"There is no call with the id {job_id}.")
    return job_from_row(row)


def lock_job(connection: sa.Connection, job_id: int) -> Job | None:
    """The job, its row held, or None."""
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
    return None if row is None else job_from_row(row)


def lock_first(connection: sa.Connection, query: sa.Select[Any]) -> Job | None:
    """The first job of a query that no other transaction holds, locked for this one."""
    first = query.order_by(jobs.c.seq).limit(1).with_for_update(skip_locked=True)
    row = connection.execute(first).one_or_none()
    return None if row is None else job_from_row(row)


def change_job(connection: sa.Connection, job: Job, **changes: Any) -> Job:
    """Write some fields of a job whose row this transaction holds."""
    after = replace(job, **changes)
    assert after.state is job.state or may_follow(job.state, after.state), f"{job.state} -> {after.state}"
    row = {name: str(value) if name == "state" else value for name, value in changes.items()}
    connection.execute(jobs.update().where(jobs.c.seq == job.seq).values(row))
    return after


def stale_leases(now: float, lease_s: float, job_id: int | None) -> sa.Select[Any]:
    """Running jobs whose lease is over, or lies further ahead than any lease can."""
    is_over = (jobs.c.lease_expires_at <= now) | (jobs.c.lease_expires_at > now + 2 * lease_s)
    query = sa.select(jobs).where(IS_RUNNING, is_over)
    return query if job_id is None else query.where(jobs.c.id == job_id)


def waiting_jobs(full_keys: set[str], job_id: int | None) -> sa.Select[Any]:
    """Queued jobs of keys that may run more."""
    query = sa.select(jobs).where(
        IS_QUEUED, jobs.c.api_key_id.in_(sa.select(keys.c.id).where(keys.c.queued > 0, MAY_RUN_MORE))
    )
    if full_keys:
        query = query.where(jobs.c.api_key_id.not_in(full_keys))
    return query if job_id is None else query.where(jobs.c.id == job_id)


def take_first_time(connection: sa.Connection, job: Job, worker_id: str, now: float, lease_s: float) -> Job | None:
    """A queued job, now running; None where another worker took the last place of its key meanwhile."""
    place = keys.update().where(keys.c.id == job.api_key_id, MAY_RUN_MORE)
    counters = {"queued": keys.c.queued - 1, "running": keys.c.running + 1}
    if connection.execute(place.values(counters)).rowcount != 1:
        return None
    return change_job(
        connection,
        job,
        state=JobState.RUNNING,
        worker_id=worker_id,
        attempts=job.attempts + 1,
        lease_expires_at=now + lease_s,
        started_at=now if job.started_at is None else job.started_at,
    )


def is_held(lease: Lease) -> sa.ColumnElement[bool]:
    """Whether a row of `jobs` is the one that the lease still holds."""
    is_own = (jobs.c.worker_id == lease.worker_id) & (jobs.c.attempts == lease.attempt)
    return (jobs.c.id == lease.job_id) & (jobs.c.state == "running") & is_own


def held_job(connection: sa.Connection, lease: Lease) -> Job:
    """The job of a lease that still holds, locked."""
    row = connection.execute(sa.select(jobs).where(is_held(lease)).with_for_update()).one_or_none()
    if row is None:
        raise lease_lost(lease)
    return job_from_row(row)


def lease_lost(lease: Lease) -> LeaseLost:
    """The error for a lease that no longer holds."""
    return LeaseLost(f"job {lease.job_id} is no longer held by {lease.worker_id}, attempt {lease.attempt}")


def queue_position_of(connection: sa.Connection, job: Job) -> int:
    """How many jobs are taken up before this one, itself included; 0 unless queued."""
    if job.state is not JobState.QUEUED:
        return 0
    query = sa.select(sa.func.count()).select_from(jobs).where(IS_QUEUED, jobs.c.seq <= job.seq)
    return connection.execute(query).scalar_one()
