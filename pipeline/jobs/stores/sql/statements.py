"""Finds, locks and writes the rows of jobs, keys and tasks, as transitions say, in the caller's transaction."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from pipeline.jobs import transitions
from pipeline.jobs.limits import day_of, minute_of, month_of, submits_this_minute
from pipeline.jobs.model import MAX_JOB_ID, Job, JobResult, JobState, KeyUse, NewJob, OutboxTask, TaskKind
from pipeline.jobs.stores.sql.schema import (
    IS_PENDING,
    IS_QUEUED,
    IS_RUNNING,
    as_text,
    job_columns,
    job_from_row,
    job_requests,
    jobs,
    key_buckets,
    key_months,
    keys,
    tasks,
    usage,
)
from pipeline.jobs.transitions import Decision, FailedRequest, Retention

# The same statements in SQLite and Postgres.
_COUNT_SUBMIT = sa.text(
    "INSERT INTO key_months (key_id, month, accepted, calls) VALUES (:api_key_id, :month, 1, :calls)"
    " ON CONFLICT (key_id, month) DO UPDATE"
    " SET accepted = key_months.accepted + 1, calls = key_months.calls + excluded.calls"
)
_ADD_TO_TOTAL = sa.text(
    "INSERT INTO totals (name, label, value) VALUES (:name, :label, :value)"
    " ON CONFLICT (name, label) DO UPDATE SET value = totals.value + excluded.value"
)

# What each submit executes is built once: a select that is built for each call takes 134 µs in place of 30. A parameter
# must not have the name of a column, which SQLAlchemy keeps for the values of an INSERT or UPDATE.
KEY_BY_ID = sa.select(keys).where(keys.c.id == sa.bindparam("of_key"))
LOCK_KEY = KEY_BY_ID.with_for_update()
KEY_BY_HASH = sa.select(keys).where(keys.c.sha256 == sa.bindparam("hash"))
BUCKET_OF_KEY = sa.select(key_buckets.c.encrypted).where(key_buckets.c.api_key_id == sa.bindparam("of_key"))
QUEUED_IN_ALL = sa.select(sa.func.sum(keys.c.queued))
_CALLS_OF_MONTH = sa.select(key_months.c.calls).where(
    key_months.c.api_key_id == sa.bindparam("of_key"), key_months.c.month == sa.bindparam("in_month")
)
_COUNT_QUEUED = (
    keys.update()
    .where(keys.c.id == sa.bindparam("of_key"))
    .values(
        queued=keys.c.queued + sa.bindparam("further"),
        minute=sa.bindparam("this_minute"),
        minute_calls=sa.bindparam("calls_in_minute"),
    )
)
_INSERT_JOB = jobs.insert().returning(jobs.c.seq)
_INSERT_REQUEST = job_requests.insert()
_REPEATED = sa.select(jobs).where(
    jobs.c.api_key_id == sa.bindparam("of_key"), jobs.c.idempotency_key == sa.bindparam("repeated")
)

LARGE_REQUEST_BYTES = 1 << 20


# ---- submit ----


def insert_job(connection: sa.Connection, new: NewJob, use: KeyUse, now: float) -> Job:
    """Record a job as queued under a random id, and count it.

    Args:
        use: what its key, whose row is locked, had in use before.

    Raises:
        sqlalchemy.exc.IntegrityError: the id is taken; the whole transaction must be repeated.
    """
    job = transitions.queued(new, job_id=secrets.randbelow(MAX_JOB_ID) + 1, seq=0, now=now)
    change = transitions.usage_change(None, job)
    minute = {"this_minute": minute_of(now), "calls_in_minute": use.this_minute + 1}
    connection.execute(_COUNT_QUEUED, {"of_key": job.api_key_id, "further": change.queued, **minute})
    connection.execute(
        _COUNT_SUBMIT, {"api_key_id": job.api_key_id, "month": change.month, "calls": change.month_calls}
    )
    seq = connection.execute(_INSERT_JOB, job_columns(job)).scalar_one()
    _insert_request(connection, job.id, new.request)
    return replace(job, seq=seq)


def insert_ended_job(
    connection: sa.Connection, new: NewJob, result: JobResult, *, now: float, retention: Retention
) -> Job:
    """Record a job that has ended, with its tasks, and count nothing.

    Raises:
        sqlalchemy.exc.IntegrityError: the id is taken.
    """
    end = transitions.completed(
        transitions.queued(new, job_id=secrets.randbelow(MAX_JOB_ID) + 1, seq=0, now=now),
        result,
        now=now,
        retention=retention,
        draw_task_id=lambda: f"msg_{uuid.uuid4().hex}",
    )
    seq = connection.execute(_INSERT_JOB, job_columns(end.job)).scalar_one()
    if end.tasks:
        connection.execute(tasks.insert(), [asdict(task) for task in end.tasks])
    return replace(end.job, seq=seq)


def _insert_request(connection: sa.Connection, job_id: int, body: bytes) -> None:
    """Insert a request; a large one into SQLite in pieces, which holds a row's value in memory twice otherwise.

    SQLite takes an integer primary key for the row's id, which `blobopen` needs.
    """
    if connection.dialect.name != "sqlite" or len(body) < LARGE_REQUEST_BYTES:
        connection.execute(_INSERT_REQUEST, {"job_id": job_id, "body": body})
        return
    connection.execute(job_requests.insert().values(job_id=job_id, body=sa.func.zeroblob(len(body))))
    driver: Any = connection.connection.driver_connection
    with driver.blobopen(job_requests.name, "body", job_id) as blob:
        for start in range(0, len(body), LARGE_REQUEST_BYTES):
            blob.write(memoryview(body)[start : start + LARGE_REQUEST_BYTES])


def find_by_idempotency_key(connection: sa.Connection, new: NewJob) -> Job | None:
    """The job that this submit repeats.

    Raises:
        IdempotencyKeyReused: it had another body.
    """
    if new.idempotency_key is None:
        return None
    same = {"of_key": new.api_key_id, "repeated": new.idempotency_key}
    row = connection.execute(_REPEATED, same).one_or_none()
    return None if row is None else transitions.repeated(job_from_row(row), new)


def key_use_of(connection: sa.Connection, key: sa.Row[Any], now: float) -> KeyUse:
    """What a key, a row of `keys`, has in use now."""
    of_month = {"of_key": key.id, "in_month": month_of(now)}
    calls = connection.execute(_CALLS_OF_MONTH, of_month).scalar_one_or_none()
    this_minute = submits_this_minute(key.minute, key.minute_calls, now=now)
    return KeyUse(key.queued, key.running, this_minute=this_minute, this_month=calls or 0)


# ---- jobs and leases ----


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
    change = transitions.usage_change(before, after)
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
    is_passive = jobs.c.worker_id.startswith(transitions.PASSIVE)
    passive_s = transitions.longest_lease_s(transitions.PASSIVE, lease_s)
    longest_s = sa.case((is_passive, passive_s), else_=transitions.longest_lease_s("", lease_s))
    is_due = transitions.is_lease_due(jobs.c.lease_expires_at, now=now, longest_s=longest_s)
    query = sa.select(jobs).where(IS_RUNNING, is_due)
    return query if job_id is None else query.where(jobs.c.id == job_id)


def queued_jobs(full_keys: set[str], job_id: int | None, engines: Collection[str] | None) -> sa.Select[Any]:
    """Queued jobs that `has_engine`, without those of some keys, and of keys that `may_run_more` would refuse."""
    has_capacity = keys.c.max_running.is_(None) | (keys.c.running < keys.c.max_running)
    query = sa.select(jobs).where(
        IS_QUEUED, jobs.c.api_key_id.in_(sa.select(keys.c.id).where(keys.c.queued > 0, has_capacity))
    )
    if full_keys:
        query = query.where(jobs.c.api_key_id.not_in(full_keys))
    if engines is not None:
        query = query.where(jobs.c.engine.in_({"", *engines}))
    return query if job_id is None else query.where(jobs.c.id == job_id)


def queue_position_of(connection: sa.Connection, job: Job) -> int:
    """How many jobs are claimed before this one, itself included; 0 unless queued."""
    if job.state is not JobState.QUEUED:
        return 0
    query = sa.select(sa.func.count()).select_from(jobs).where(IS_QUEUED, jobs.c.seq <= job.seq)
    return connection.execute(query).scalar_one()


# ---- completion ----


def add_to_totals(connection: sa.Connection, sums: Iterable[tuple[str, str, float]]) -> None:
    """Add to counters that outlive the records, in the same order everywhere, which rules out deadlocks."""
    rows = [{"name": name, "label": label, "value": float(value)} for name, label, value in sorted(sums)]
    connection.execute(_ADD_TO_TOTAL, rows)


def apply(connection: sa.Connection, job: Job, decision: Decision, *, now: float, retention: Retention) -> Job:
    """Write a decision about a job whose row this transaction has locked: its next record, or its end.

    Returns:
        The job as it is then.
    """
    if not isinstance(decision, JobResult):
        return save(connection, job, decision)
    end = transitions.completed(
        job, decision, now=now, retention=retention, draw_task_id=lambda: f"msg_{uuid.uuid4().hex}"
    )
    save(connection, job, end.job)
    if end.keeps_request:
        delete_requests(connection, now=now, retention=retention)
    else:
        connection.execute(job_requests.delete().where(job_requests.c.job_id == job.id))
    if end.tasks:
        connection.execute(tasks.insert(), [asdict(task) for task in end.tasks])
    row = asdict(end.usage) | {
        "job_seq": job.seq,
        "state": str(end.usage.state),
        "stage_seconds": as_text(dict(decision.stage_seconds)),
        "day": day_of(end.usage.finished_at),
        "track_id": as_text(end.usage.track_id),
    }
    connection.execute(usage.insert().values(row))
    add_to_totals(connection, transitions.completion_sums(end, decision))
    return end.job


def failed_requests(connection: sa.Connection) -> list[FailedRequest]:
    """The requests that failed jobs keep; their content is not read."""
    columns = jobs.c.id, jobs.c.api_key_id, jobs.c.finished_at, sa.func.length(job_requests.c.body)
    kept = job_requests.join(jobs, jobs.c.id == job_requests.c.job_id)
    query = sa.select(*columns).select_from(kept).where(jobs.c.finished_at.is_not(None))
    return [FailedRequest(*row) for row in connection.execute(query)]


def delete_requests(connection: sa.Connection, *, now: float, retention: Retention) -> int:
    """Delete the requests that failed jobs keep no longer; returns how many."""
    deleted = transitions.requests_to_delete(failed_requests(connection), now=now, retention=retention)
    if not deleted:
        return 0
    return connection.execute(job_requests.delete().where(job_requests.c.job_id.in_(deleted))).rowcount


# ---- outbox ----


def due_tasks(kind: TaskKind, now: float) -> sa.Select[Any]:
    """The task of this kind that has been due longest."""
    is_due = transitions.is_task_due(tasks.c.next_attempt_at, scheduled_at=tasks.c.scheduled_at, now=now)
    found = sa.select(tasks).where(IS_PENDING, tasks.c.kind == kind, is_due)
    return found.order_by(tasks.c.next_attempt_at).limit(1)


def save_task(connection: sa.Connection, task: OutboxTask) -> OutboxTask:
    """Write a task that is on record."""
    connection.execute(tasks.update().where(tasks.c.id == task.id).values(asdict(task)))
    return task
