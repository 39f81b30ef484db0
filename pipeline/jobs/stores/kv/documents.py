"""Writes decisions to the head and to the documents of ended jobs, which hold their outbox tasks too."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

from pipeline.jobs import transitions
from pipeline.jobs.limits import day_of
from pipeline.jobs.model import Job, JobResult, JobState, NewJob, OutboxTask, TaskKind, UsageRow
from pipeline.jobs.stores.kv.state import (
    JOB,
    LISTED,
    PAGE_JOBS,
    PAGE_ROWS,
    ROWS,
    Head,
    JobDocument,
    KeptRequest,
    ListedJob,
    PendingTask,
    RequestPlace,
    Success,
    Totals,
    chunk_key,
    heartbeat_key,
    idempotency_key,
    job_key,
    page_key,
    rows_key,
)
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction
from pipeline.jobs.transitions import TIMED_JOBS, Decision, FailedRequest, Retention

_lease_fields = attrgetter("state", "attempts", "worker_id", "lease_expires_at")


def may_have_heartbeat(job: Job) -> bool:
    """Whether a worker may have written a heartbeat under the job's lease; a passive holder writes none."""
    return job.state is JobState.RUNNING and not transitions.is_passive(job.worker_id)


def save(transaction: Transaction, before: Job, after: Job) -> Job:
    """Write what a transition changed of a job that has not ended, and its key's counters.

    Args:
        before: the job with its heartbeat.
    """
    open_job = transaction.head.open[before.id]
    open_job.job = after
    if _lease_fields(after) != _lease_fields(before):
        if may_have_heartbeat(before):
            transaction.forget(heartbeat_key(before.id, open_job.lease_epoch))
        open_job.lease_epoch += 1
    transaction.head.accounts[before.api_key_id].count(transitions.usage_change(before, after))
    return after


def apply(transaction: Transaction, job: Job, decision: Decision, *, now: float, retention: Retention) -> Job:
    """Write a decision about a job: its next record, or its end. Returns the job as it is then."""
    if not isinstance(decision, JobResult):
        return save(transaction, job, decision) if decision is not job else job
    head = transaction.head
    open_job = head.open.pop(job.id)
    if may_have_heartbeat(job):
        transaction.forget(heartbeat_key(job.id, open_job.lease_epoch))
    # A task's id names its job, so that it is found without an index.
    end = transitions.completed(
        job, decision, now=now, retention=retention, draw_task_id=lambda: f"msg_{job.id:08x}{secrets.token_hex(12)}"
    )
    if end.keeps_request:
        head.kept[job.id] = KeptRequest(open_job.request, now, job.api_key_id)
        delete_requests(transaction, now=now, retention=retention)
    else:
        _forget_request(transaction, open_job.request)
    head.accounts[job.api_key_id].count(transitions.usage_change(job, end.job))
    document = JobDocument(end.job, number=2 * sum(head.totals.ended.values()), tasks=list(end.tasks))
    for number, task in enumerate(document.tasks, start=document.number):
        head.tasks[task.id] = pending_task(task, number)
    put_job(transaction, document)
    _list(transaction, end.job)
    add_to_totals(head.totals, transitions.completion_sums(end, decision))
    if decision.state is JobState.SUCCESS and transitions.is_timed(decision.stage_seconds):
        head.successes = [*head.successes, Success(decision.seconds, dict(decision.stage_seconds))][-TIMED_JOBS:]
    _write_usage(transaction, end.usage)
    return end.job


def add_ended_job(
    transaction: Transaction, new: NewJob, result: JobResult, job_id: int, *, now: float, retention: Retention
) -> Job:
    """Record a job that has ended, with its tasks, and count nothing."""
    head = transaction.head
    head.seq += 1
    end = transitions.completed(
        transitions.queued(new, job_id=job_id, seq=head.seq, now=now),
        result,
        now=now,
        retention=retention,
        draw_task_id=lambda: f"msg_{job_id:08x}{secrets.token_hex(12)}",
    )
    document = JobDocument(end.job, number=2 * sum(head.totals.ended.values()), tasks=list(end.tasks))
    for number, task in enumerate(document.tasks, start=document.number):
        head.tasks[task.id] = pending_task(task, number)
    put_job(transaction, document)
    _list(transaction, end.job)
    if new.idempotency_key is not None:
        transaction.put(idempotency_key(new.api_key_id, new.idempotency_key), job_id)
    return end.job


def pending_task(task: OutboxTask, number: int) -> PendingTask:
    """The schedule of a task, for the head."""
    return PendingTask(task.kind, task.job_id, number, task.next_attempt_at, task.scheduled_at)


def add_to_totals(totals: Totals, sums: Iterable[tuple[str, str, float]]) -> None:
    """Add to counters that outlive the records: numbers, or numbers by label."""
    for name, label, value in sums:
        counter: Any = getattr(totals, name)
        if label:
            counter[label] = counter.get(label, 0) + value
        else:
            setattr(totals, name, counter + value)


def find_document(snapshot: Snapshot, job_id: int) -> JobDocument | None:
    """The document of an ended job; the head has the schedule of its pending tasks."""
    found = snapshot.get(job_key(job_id))
    if found is None:
        return None
    document = JOB.from_plain(found)
    pending = snapshot.head.tasks
    for place, task in enumerate(document.tasks):
        if task.id in pending:
            due = pending[task.id]
            document.tasks[place] = replace(task, next_attempt_at=due.next_attempt_at, scheduled_at=due.scheduled_at)
    return document


def put_job(transaction: Transaction, document: JobDocument) -> None:
    """Write the document of an ended job."""
    transaction.put(job_key(document.job.id), JOB.to_plain(document))


def forget_job(transaction: Transaction, document: JobDocument) -> None:
    """Delete an ended job with its tasks; the ledger stays."""
    job, head = document.job, transaction.head
    for task in document.tasks:
        head.tasks.pop(task.id, None)
    _forget_kept(transaction, job.id)
    transaction.delete(job_key(job.id))
    if job.idempotency_key is not None:
        transaction.delete(idempotency_key(job.api_key_id, job.idempotency_key))
    head.states[str(job.state)] -= 1
    number = job.seq // PAGE_JOBS
    page = read_page(transaction.get(page_key(number)))
    page.pop(job.seq, None)
    _put_page(transaction, number, page)


def failed_requests(head: Head) -> list[FailedRequest]:
    """The requests that failed jobs keep."""
    return [
        FailedRequest(job_id, kept.api_key_id, kept.finished_at, kept.request.size_bytes)
        for job_id, kept in head.kept.items()
    ]


def delete_requests(transaction: Transaction, *, now: float, retention: Retention) -> int:
    """Delete the requests that failed jobs keep no longer; returns how many."""
    deleted = transitions.requests_to_delete(failed_requests(transaction.head), now=now, retention=retention)
    for job_id in deleted:
        _forget_kept(transaction, job_id)
    return len(deleted)


def _forget_kept(transaction: Transaction, job_id: int) -> None:
    kept = transaction.head.kept.pop(job_id, None)
    if kept is not None:
        _forget_request(transaction, kept.request)


def _forget_request(transaction: Transaction, place: RequestPlace) -> None:
    for number in range(place.chunks):
        transaction.forget(chunk_key(place.token, number))


def read_page(document: object) -> dict[int, ListedJob]:
    """A page of the list of ended jobs, by `seq`."""
    return {} if document is None else LISTED.from_plain(document)


def _put_page(transaction: Transaction, number: int, page: Mapping[int, ListedJob]) -> None:
    if page:
        transaction.head.pages[number] = min(listed.expires_at for listed in page.values())
        transaction.put(page_key(number), LISTED.to_plain(dict(page)))
    else:
        transaction.head.pages.pop(number, None)
        transaction.delete(page_key(number))


def _list(transaction: Transaction, job: Job) -> None:
    number = job.seq // PAGE_JOBS
    page = read_page(transaction.get(page_key(number))) if number in transaction.head.pages else {}
    page[job.seq] = ListedJob(job.id, job.api_key_id, job.state, job.track_id, job.expires_at or 0.0)
    _put_page(transaction, number, page)
    transaction.head.states[str(job.state)] = transaction.head.states.get(str(job.state), 0) + 1


def _write_usage(transaction: Transaction, row: UsageRow) -> None:
    day = day_of(row.finished_at)
    pages = transaction.head.days.get(day, 0)
    rows = transaction.get(rows_key(day, pages - 1)) if pages else None
    if rows is None or len(rows) >= PAGE_ROWS:
        rows, pages = [], pages + 1
        transaction.head.days[day] = pages
    transaction.put(rows_key(day, pages - 1), [*rows, ROWS.to_plain([row])[0]])


# ---- outbox ----


def claim_task(transaction: Transaction, kind: TaskKind, *, now: float, claim_s: float) -> OutboxTask | None:
    """The task of this kind that has been due longest; only the head changes."""
    pending = transaction.head.tasks
    due = [
        task_id
        for task_id, task in pending.items()
        if task.kind == kind and transitions.is_task_due(task.next_attempt_at, scheduled_at=task.scheduled_at, now=now)
    ]
    for task_id in sorted(due, key=lambda task_id: (pending[task_id].next_attempt_at, pending[task_id].number)):
        found = find_task(transaction, task_id)
        if found is not None:
            claimed = transitions.task_claimed(found[1], now=now, claim_s=claim_s)
            pending[task_id] = pending_task(claimed, pending[task_id].number)
            return claimed
        del pending[task_id]  # the map has lost its document
    return None


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


def put_task(transaction: Transaction, document: JobDocument, task: OutboxTask) -> OutboxTask:
    """Write a changed task to its document, and its schedule to the head while it is pending."""
    place = next(place for place, known in enumerate(document.tasks) if known.id == task.id)
    document.tasks[place] = task
    if task.state == "pending":
        transaction.head.tasks[task.id] = pending_task(task, document.number + place)
    else:
        transaction.head.tasks.pop(task.id, None)
    put_job(transaction, document)
    return task
