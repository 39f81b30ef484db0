"""What a submit reads and writes, inside a transaction that somebody else opened."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from pipeline.errors import InvalidRequest
from pipeline.jobs.limits import minute_of, month_of
from pipeline.jobs.model import MAX_JOB_ID, Job, JobState, KeyLimits, KeyUse, NewJob
from pipeline.jobs.stores.sql.schema import as_text, job_from_row, job_requests, jobs, key_months


def insert_job(connection: sa.Connection, new: NewJob, now: float) -> Job:
    """Record a job as queued under an id drawn for it.

    Raises:
        sqlalchemy.exc.IntegrityError: the id is taken; everything must be tried again.
    """
    job = Job(
        id=secrets.randbelow(MAX_JOB_ID) + 1,
        seq=0,
        api_key_id=new.api_key_id,
        file_prefix=new.file_prefix,
        state=JobState.QUEUED,
        created_at=now,
        request_sha256=new.request_sha256,
        meta=new.meta,
        track_id=new.track_id,
        webhook_url=new.webhook_url,
        idempotency_key=new.idempotency_key,
    )
    row = {
        "id": job.id,
        "api_key_id": job.api_key_id,
        "file_prefix": job.file_prefix,
        "state": "queued",
        "created_at": now,
        "request_sha256": job.request_sha256,
        "meta": json.dumps(job.meta.to_stored()),
        "track_id": as_text(job.track_id),
        "webhook_url": job.webhook_url,
        "idempotency_key": job.idempotency_key,
        "stage": "",
        "percent": 0,
        "attempts": 0,
        "is_cancel_requested": False,
    }
    seq = connection.execute(jobs.insert().returning(jobs.c.seq), row).scalar_one()
    connection.execute(job_requests.insert(), {"job_id": job.id, "body": new.request})
    return replace(job, seq=seq)


def find_by_idempotency_key(connection: sa.Connection, new: NewJob) -> Job | None:
    """The job that this submit repeats."""
    if new.idempotency_key is None:
        return None
    is_same = (jobs.c.api_key_id == new.api_key_id) & (jobs.c.idempotency_key == new.idempotency_key)
    row = connection.execute(sa.select(jobs).where(is_same)).one_or_none()
    if row is not None and row.request_sha256 != new.request_sha256:
        raise InvalidRequest("Idempotency-Key was used before with another body")
    return None if row is None else job_from_row(row)


def key_use_of(connection: sa.Connection, key: sa.Row[Any], now: float) -> KeyUse:
    """What a key, a row of `keys`, has in use now."""
    of_month = (key_months.c.api_key_id == key.id) & (key_months.c.month == month_of(now))
    return KeyUse(
        queued=key.queued,
        running=key.running,
        this_minute=key.minute_calls if key.minute == minute_of(now) else 0,
        this_month=connection.execute(sa.select(key_months.c.calls).where(of_month)).scalar_one_or_none() or 0,
    )


def limit_columns(limits: KeyLimits) -> dict[str, int | None]:
    """A key's limits as columns of `keys`."""
    return {f"max_{name}": value for name, value in asdict(limits).items()}
