"""The one final transition of a job, and the tasks that follow it, inside a transaction that somebody else opened."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from pipeline.jobs.limits import day_of, month_of
from pipeline.jobs.model import Job, JobResult, JobState, TaskKind
from pipeline.jobs.stores.sql.schema import as_text, job_requests, jobs, key_months, keys, result_as_text, tasks, usage

# The same words in SQLite and Postgres.
_ADD_TO_TOTAL = sa.text(
    "INSERT INTO totals (name, label, value) VALUES (:name, :label, :value)"
    " ON CONFLICT (name, label) DO UPDATE SET value = totals.value + excluded.value"
)


def add_to_totals(connection: sa.Connection, sums: Iterable[tuple[str, str, float]]) -> None:
    """Add to counters that outlive the records, in one order everywhere: two transactions never wait crosswise."""
    rows = [{"name": name, "label": label, "value": value} for name, label, value in sorted(sums)]
    connection.execute(_ADD_TO_TOTAL, rows)


def complete_job(
    connection: sa.Connection,
    job: Job,
    result: JobResult,
    *,
    now: float,
    record_lifetime_s: float,
    webhook_window_s: float,
    upload_window_s: float,
) -> None:
    """Everything that a job's end changes; the caller holds the job's row and has checked that it may end.

    Args:
        job: as it stood before.
    """
    changes: dict[str, Any] = {
        "state": str(result.state),
        "result": result_as_text(result),
        "finished_at": now,
        "expires_at": now + record_lifetime_s,
        "lease_expires_at": None,
    }
    if result.state is JobState.SUCCESS:
        changes |= {"stage": "", "percent": 100}
    connection.execute(jobs.update().where(jobs.c.seq == job.seq).values(changes))
    connection.execute(job_requests.delete().where(job_requests.c.job_id == job.id))
    counter = keys.c.queued if job.state is JobState.QUEUED else keys.c.running
    connection.execute(keys.update().where(keys.c.id == job.api_key_id).values({counter.name: counter - 1}))
    if result.state is not JobState.SUCCESS:
        of_month = (key_months.c.api_key_id == job.api_key_id) & (key_months.c.month == month_of(job.created_at))
        connection.execute(key_months.update().where(of_month).values(calls=key_months.c.calls - 1))
    if job.webhook_url is not None:
        _add_task(connection, job, "webhook", job.webhook_url, now, webhook_window_s)
    if result.upload_warning:
        _add_task(connection, job, "upload", "", now, upload_window_s)
    _write_usage(connection, job, result, now)
    add_to_totals(
        connection,
        [("ended", str(result.state), 1.0), ("gpu_seconds", "", result.gpu_seconds)]
        + [("stage_seconds", stage, seconds) for stage, seconds in result.stage_seconds.items()]
        + [("stage_runs", stage, 1.0) for stage in result.stage_seconds],
    )


def _write_usage(connection: sa.Connection, job: Job, result: JobResult, now: float) -> None:
    connection.execute(
        usage.insert().values(
            job_seq=job.seq,
            api_key_id=job.api_key_id,
            job_id=job.id,
            state=str(result.state),
            engine=result.engine,
            seconds=result.seconds,
            gpu_seconds=result.gpu_seconds,
            stage_seconds=as_text(dict(result.stage_seconds)),
            created_at=job.created_at,
            finished_at=now,
            day=day_of(now),
            track_id=as_text(job.track_id),
        )
    )


def _add_task(connection: sa.Connection, job: Job, kind: TaskKind, target: str, now: float, window_s: float) -> None:
    connection.execute(
        tasks.insert().values(
            id=f"msg_{uuid.uuid4().hex}",
            kind=kind,
            job_id=job.id,
            api_key_id=job.api_key_id,
            target=target,
            state="pending",
            attempts=0,
            created_at=now,
            next_attempt_at=now,
            scheduled_at=now,
            give_up_at=now + window_s,
            last_error="",
        )
    )
