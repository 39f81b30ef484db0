"""After-tasks as steps and questions: claiming, settling, redelivering."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.errors import InvalidRequest, NotFound
from pipeline.jobs.limits import MAX_PAUSE_S, is_due
from pipeline.jobs.model import OutboxTask, TaskAttempt, TaskKind
from pipeline.jobs.stores.kv.completion import find_document, job_id_of, put_job
from pipeline.jobs.stores.kv.state import JobDocument, PendingTask
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction


def claim_task(transaction: Transaction, kind: TaskKind, *, now: float, claim_s: float) -> OutboxTask | None:
    """The task that is due longest, hidden for a while; only the head changes."""
    pending = transaction.head.tasks
    due = [
        task_id
        for task_id, task in pending.items()
        if task.kind == kind and is_due(task.next_attempt_at, scheduled_at=task.scheduled_at, now=now)
    ]
    for task_id in sorted(due, key=lambda task_id: (pending[task_id].next_attempt_at, pending[task_id].number)):
        pending[task_id] = replace(pending[task_id], next_attempt_at=now + min(claim_s, MAX_PAUSE_S), scheduled_at=now)
        found = find_task(transaction, task_id)
        if found is not None:
            return found[1]
        del pending[task_id]  # the map has lost its document
    return None


@dataclass(frozen=True)
class Attempt:
    """What came of one attempt at a task, in the words of `Outbox.settle_task`."""

    status: int | None
    error: str
    seconds: float
    retry_in_s: float | None


def settle_task(transaction: Transaction, task: OutboxTask, attempt: Attempt, *, now: float) -> OutboxTask:
    """Record one attempt."""
    found = find_task(transaction, task.id)
    if found is None:
        raise NotFound(f"There is no task {task.id}.")
    document, known = found
    tried = replace(known, attempts=known.attempts + 1, last_status=attempt.status, last_error=attempt.error)
    if not attempt.error:
        tried = replace(tried, state="done", done_at=now)
    elif attempt.retry_in_s is None or now + attempt.retry_in_s > known.give_up_at:
        tried = replace(tried, state="given_up", done_at=now)
    else:
        tried = replace(tried, state="pending", next_attempt_at=now + min(attempt.retry_in_s, MAX_PAUSE_S))
    number = 1 + sum(one.task_id == task.id for one in document.attempts)
    document.attempts.append(TaskAttempt(task.id, number, now, attempt.status, attempt.error, attempt.seconds))
    _put_task(transaction, document, tried, now)
    counts, label = transaction.head.totals.task_attempts, f"{task.kind} {'error' if attempt.error else 'ok'}"
    counts[label] = counts.get(label, 0) + 1
    return tried


def redeliver(transaction: Transaction, job_id: int, *, now: float, window_s: float) -> OutboxTask:
    """Make the job's webhook due now."""
    document = find_document(transaction, job_id)
    webhook = next((task for task in document.tasks if task.kind == "webhook"), None) if document else None
    if document is None or webhook is None:
        raise InvalidRequest(f"The call {job_id} has not ended, or has no webhook.")
    again = replace(webhook, state="pending", attempts=0, next_attempt_at=now, give_up_at=now + window_s, done_at=None)
    _put_task(transaction, document, again, now)
    return again


def find_task(snapshot: Snapshot, task_id: str) -> tuple[JobDocument, OutboxTask] | None:
    """A task and its job."""
    document = find_document(snapshot, job_id_of(task_id))
    if document is None:
        return None
    return next(((document, task) for task in document.tasks if task.id == task_id), None)


def _put_task(transaction: Transaction, document: JobDocument, task: OutboxTask, now: float) -> None:
    """Write a changed task: into its document, and among those that are due as long as it is pending."""
    place = next(place for place, known in enumerate(document.tasks) if known.id == task.id)
    document.tasks[place] = task
    if task.state == "pending":
        number = document.number + place
        transaction.head.tasks[task.id] = PendingTask(
            task.kind, task.job_id, number, task.next_attempt_at, scheduled_at=now
        )
    else:
        transaction.head.tasks.pop(task.id, None)
    put_job(transaction, document)
