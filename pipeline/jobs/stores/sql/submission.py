"""What a submit reads and writes. Every function runs in the caller's transaction."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from pipeline.jobs import limits
from pipeline.jobs.limits import minute_of, month_of
from pipeline.jobs.model import MAX_JOB_ID, Job, KeyUse, NewJob
from pipeline.jobs.stores.sql.schema import job_columns, job_from_row, job_requests, jobs, key_months, keys
from pipeline.jobs.transitions import queued, repeated, usage_change

_COUNT_CALL = sa.text(
    "INSERT INTO key_months (key_id, month, accepted, calls) VALUES (:api_key_id, :month, 1, :calls)"
    " ON CONFLICT (key_id, month) DO UPDATE"
    " SET accepted = key_months.accepted + 1, calls = key_months.calls + excluded.calls"
)


def insert_job(connection: sa.Connection, new: NewJob, use: KeyUse, now: float) -> Job:
    """Record a job as queued under a random id, and count it.

    Args:
        use: what its key, whose row is locked, had in use before.

    Raises:
        sqlalchemy.exc.IntegrityError: the id is taken; the whole transaction must be repeated.
    """
    job = queued(new, job_id=secrets.randbelow(MAX_JOB_ID) + 1, seq=0, now=now)
    change = usage_change(None, job)
    counters = {"queued": keys.c.queued + change.queued, "minute": minute_of(now), "minute_calls": use.this_minute + 1}
    connection.execute(keys.update().where(keys.c.id == job.api_key_id).values(counters))
    month = {"api_key_id": job.api_key_id, "month": change.month, "calls": change.month_calls}
    connection.execute(_COUNT_CALL, month)
    seq = connection.execute(jobs.insert().returning(jobs.c.seq), job_columns(job)).scalar_one()
    connection.execute(job_requests.insert(), {"job_id": job.id, "body": new.request})
    return replace(job, seq=seq)


def find_by_idempotency_key(connection: sa.Connection, new: NewJob) -> Job | None:
    """The job that this submit repeats.

    Raises:
        InvalidRequest: it had another body.
    """
    if new.idempotency_key is None:
        return None
    is_same = (jobs.c.api_key_id == new.api_key_id) & (jobs.c.idempotency_key == new.idempotency_key)
    row = connection.execute(sa.select(jobs).where(is_same)).one_or_none()
    return None if row is None else repeated(job_from_row(row), new)


def key_use_of(connection: sa.Connection, key: sa.Row[Any], now: float) -> KeyUse:
    """What a key, a row of `keys`, has in use now."""
    of_month = (key_months.c.api_key_id == key.id) & (key_months.c.month == month_of(now))
    calls = connection.execute(sa.select(key_months.c.calls).where(of_month)).scalar_one_or_none()
    return limits.key_use(
        queued=key.queued,
        running=key.running,
        minute=key.minute,
        minute_calls=key.minute_calls,
        month_calls=calls or 0,
        now=now,
    )
