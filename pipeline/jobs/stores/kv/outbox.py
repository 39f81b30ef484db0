"""Outbox tasks: claimed, settled, redelivered."""

from __future__ import annotations

from pipeline.errors import NotFound
from pipeline.jobs.model import AttemptResult, OutboxTask, TaskKind
from pipeline.jobs.stores.kv.completion import add_to_totals, find_document, pending_task, put_job
from pipeline.jobs.stores.kv.state import JobDocument
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction
from pipeline.jobs.transitions import (
    Retention,
    attempt_sums,
    is_task_due,
    redelivered,
    task_claimed,
    task_settled,
)


def claim_task(transaction: Transaction, kind: TaskKind, *, now: float, claim_s: float) -> OutboxTask | None:
    """The task of this kind that has been due longest; only the head changes."""
    pending = transaction.head.tasks
    due = [
        task_id
        for task_id, task in pending.items()
        if task.kind == kind and is_task_due(task.next_attempt_at, scheduled_at=task.scheduled_at, now=now)
    ]
    for task_id in sorted(due, key=lambda task_id: (pending[task_id].next_attempt_at, pending[task_id].number)):
        found = find_task(transaction, task_id)
        if found is not None:
            claimed = task_claimed(found[1], now=now, claim_s=claim_s)
            pending[task_id] = pending_task(claimed, pending[task_id].number)
            return claimed
        del pending[task_id]  # the map has lost its document
    return None


def settle_task(transaction: Transaction, task_id: str, result: AttemptResult, *, now: float) -> OutboxTask:
    """Record one attempt.

    Raises:
        NotFound: there is no such task.
    """
    found = find_task(transaction, task_id)
    if found is None:
        raise NotFound(f"There is no task {task_id}.")
    document, task = found
    attempts_before = sum(attempt.task_id == task_id for attempt in document.attempts)
    settled, attempt = task_settled(task, result, attempts_before=attempts_before, now=now)
    document.attempts.append(attempt)
    add_to_totals(transaction.head.totals, attempt_sums(settled, attempt))
    return _put_task(transaction, document, settled)


def redeliver(transaction: Transaction, job_id: int, *, now: float, retention: Retention) -> OutboxTask:
    """Make the webhook of a job due now.

    Raises:
        InvalidRequest: it has none, or has not ended.
    """
    document = find_document(transaction, job_id)
    again = redelivered([] if document is None else document.tasks, job_id, now=now, retention=retention)
    assert document is not None
    return _put_task(transaction, document, again)


def find_task(snapshot: Snapshot, task_id: str) -> tuple[JobDocument, OutboxTask] | None:
    """A task and the document of its job."""
    document = find_document(snapshot, _job_id_of(task_id))
    if document is None:
        return None
    return next(((document, task) for task in document.tasks if task.id == task_id), None)


def _job_id_of(task_id: str) -> int:
    """The job that a task belongs to; 0 for text that is not the id of a task."""
    try:
        return int(task_id.removeprefix("msg_")[:8], 16)
    except ValueError:
        return 0


def _put_task(transaction: Transaction, document: JobDocument, task: OutboxTask) -> OutboxTask:
    """Write a changed task to its document, and its schedule to the head while it is pending."""
    place = next(place for place, known in enumerate(document.tasks) if known.id == task.id)
    document.tasks[place] = task
    if task.state == "pending":
        transaction.head.tasks[task.id] = pending_task(task, document.number + place)
    else:
        transaction.head.tasks.pop(task.id, None)
    put_job(transaction, document)
    return task
