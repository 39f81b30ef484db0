"""Rows of outbox tasks: claimed, settled, redelivered. Every function runs in the caller's transaction."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from pipeline.errors import NotFound
from pipeline.jobs.model import AttemptResult, OutboxTask, TaskKind
from pipeline.jobs.stores.sql.completion import add_to_totals
from pipeline.jobs.stores.sql.schema import IS_PENDING, task_attempts, task_from_row, tasks
from pipeline.jobs.transitions import (
    Retention,
    attempt_sums,
    is_task_due,
    redelivered,
    task_claimed,
    task_settled,
)


def due_tasks(kind: TaskKind, now: float) -> sa.Select[Any]:
    """The task of this kind that has been due longest."""
    is_due = is_task_due(tasks.c.next_attempt_at, scheduled_at=tasks.c.scheduled_at, now=now)
    found = sa.select(tasks).where(IS_PENDING, tasks.c.kind == kind, is_due)
    return found.order_by(tasks.c.next_attempt_at).limit(1)


def claim_task(connection: sa.Connection, due: sa.Select[Any], *, now: float, claim_s: float) -> OutboxTask | None:
    """The first of the due tasks that no other transaction has locked."""
    row = connection.execute(due.with_for_update(skip_locked=True)).one_or_none()
    return None if row is None else _save(connection, task_claimed(task_from_row(row), now=now, claim_s=claim_s))


def settle_task(connection: sa.Connection, task_id: str, result: AttemptResult, *, now: float) -> OutboxTask:
    """Record one attempt.

    Raises:
        NotFound: there is no such task.
    """
    row = connection.execute(sa.select(tasks).where(tasks.c.id == task_id).with_for_update()).one_or_none()
    if row is None:
        raise NotFound(f"There is no task {task_id}.")
    query = sa.select(sa.func.count()).where(task_attempts.c.task_id == task_id)
    attempts_before = connection.execute(query).scalar_one()
    settled, attempt = task_settled(task_from_row(row), result, attempts_before=attempts_before, now=now)
    connection.execute(task_attempts.insert().values(asdict(attempt)))
    add_to_totals(connection, attempt_sums(settled, attempt))
    return _save(connection, settled)


def redeliver(connection: sa.Connection, job_id: int, *, now: float, retention: Retention) -> OutboxTask:
    """Make the webhook of a job due now."""
    rows = connection.execute(sa.select(tasks).where(tasks.c.job_id == job_id).with_for_update())
    again = redelivered([task_from_row(row) for row in rows], job_id, now=now, retention=retention)
    return _save(connection, again)


def delete_tasks(connection: sa.Connection, job_id: int) -> None:
    """Delete the tasks of a job, and the record of their attempts."""
    ids = sa.select(tasks.c.id).where(tasks.c.job_id == job_id)
    connection.execute(task_attempts.delete().where(task_attempts.c.task_id.in_(ids)))
    connection.execute(tasks.delete().where(tasks.c.job_id == job_id))


def _save(connection: sa.Connection, task: OutboxTask) -> OutboxTask:
    connection.execute(tasks.update().where(tasks.c.id == task.id).values(asdict(task)))
    return task
