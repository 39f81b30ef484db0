"""What the end of a job changes, as part of a transaction: its record, its key's counters, its tasks, the ledger, totals."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.jobs.limits import TIMED_CALLS, day_of, month_of
from pipeline.jobs.model import Job, JobResult, JobState, OutboxTask, Progress, TaskKind, UsageRow
from pipeline.jobs.stores.kv.state import (
    JOB,
    LISTED,
    PAGE_JOBS,
    PAGE_ROWS,
    ROWS,
    Head,
    JobDocument,
    ListedJob,
    PendingTask,
    Success,
    chunk_key,
    heartbeat_key,
    idempotency_key,
    job_key,
    page_key,
    rows_key,
)
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction


@dataclass(frozen=True)
class Retention:
    """How long things go on after an end."""

    record_lifetime_s: float
    webhook_window_s: float
    upload_window_s: float


def complete_job(transaction: Transaction, job: Job, result: JobResult, *, now: float, rules: Retention) -> Job:
    """The final transition with everything that goes with it.

    Args:
        job: open until now, as it stands.
    """
    head = transaction.head
    kept = head.open.pop(job.id)
    for number in range(kept.request.chunks):
        transaction.forget(chunk_key(kept.request.token, number))
    transaction.forget(heartbeat_key(job.id, kept.lease_epoch))
    ended = replace(
        job,
        state=result.state,
        result=result,
        finished_at=now,
        expires_at=now + rules.record_lifetime_s,
        lease_expires_at=None,
        progress=Progress("", 100) if result.state is JobState.SUCCESS else job.progress,
    )
    account = head.accounts[job.api_key_id]
    if job.state is JobState.QUEUED:
        account.queued -= 1
    else:
        account.running -= 1
    if result.state is not JobState.SUCCESS:
        account.months[month_of(job.created_at)] = account.months.get(month_of(job.created_at), 0) - 1
    document = JobDocument(ended, number=2 * sum(head.totals.ended.values()))
    if job.webhook_url is not None:
        _add_task(head, document, "webhook", job.webhook_url, now, rules.webhook_window_s)
    if result.upload_warning:
        _add_task(head, document, "upload", "", now, rules.upload_window_s)
    put_job(transaction, document)
    _list(transaction, ended)
    _count(head, result)
    _write_usage(transaction, ended, result, now)
    return ended


def find_document(snapshot: Snapshot, job_id: int) -> JobDocument | None:
    """An ended job with all that follows its end; tasks that are not settled are due when the head says."""
    found = snapshot.get(job_key(job_id))
    if found is None:
        return None
    document = JOB.from_plain(found)
    pending = snapshot.head.tasks
    document.tasks = [
        replace(task, next_attempt_at=pending[task.id].next_attempt_at) if task.id in pending else task
        for task in document.tasks
    ]
    return document


def put_job(transaction: Transaction, document: JobDocument) -> None:
    """Write an ended job's document."""
    transaction.put(job_key(document.job.id), JOB.to_plain(document))


def forget_job(transaction: Transaction, document: JobDocument) -> None:
    """Remove an ended job and what hangs on it; the ledger stays."""
    job, head = document.job, transaction.head
    for task in document.tasks:
        head.tasks.pop(task.id, None)
    transaction.delete(job_key(job.id))
    if job.idempotency_key is not None:
        transaction.delete(idempotency_key(job.api_key_id, job.idempotency_key))
    head.states[str(job.state)] -= 1
    number = job.seq // PAGE_JOBS
    page = read_page(transaction.get(page_key(number)))
    page.pop(job.seq, None)
    _put_page(transaction, number, page)


def read_page(document: object) -> dict[int, ListedJob]:
    """A page of the list by `seq`."""
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


def _count(head: Head, result: JobResult) -> None:
    totals = head.totals
    totals.ended[str(result.state)] = totals.ended.get(str(result.state), 0) + 1
    totals.gpu_seconds += result.gpu_seconds
    for stage, seconds in result.stage_seconds.items():
        totals.stage_seconds[stage] = totals.stage_seconds.get(stage, 0.0) + seconds
        totals.stage_runs[stage] = totals.stage_runs.get(stage, 0) + 1
    if result.state is JobState.SUCCESS:
        head.successes = [*head.successes, Success(result.seconds, dict(result.stage_seconds))][-TIMED_CALLS:]


def _add_task(head: Head, document: JobDocument, kind: TaskKind, target: str, now: float, window_s: float) -> None:
    job = document.job
    task = OutboxTask(
        id=f"msg_{job.id:08x}{secrets.token_hex(12)}",  # names its job, so that it is found without an index
        kind=kind,
        job_id=job.id,
        api_key_id=job.api_key_id,
        target=target,
        state="pending",
        attempts=0,
        created_at=now,
        next_attempt_at=now,
        give_up_at=now + window_s,
    )
    head.tasks[task.id] = PendingTask(kind, job.id, document.number + len(document.tasks), now, scheduled_at=now)
    document.tasks.append(task)


def job_id_of(task_id: str) -> int:
    """Whose task it is; 0 for what is no task's id."""
    digits = task_id.removeprefix("msg_")[:8]
    try:
        return int(digits, 16)
    except ValueError:
        return 0


def _write_usage(transaction: Transaction, job: Job, result: JobResult, now: float) -> None:
    row = UsageRow(
        api_key_id=job.api_key_id,
        job_id=job.id,
        state=result.state,
        engine=result.engine,
        seconds=result.seconds,
        gpu_seconds=result.gpu_seconds,
        created_at=job.created_at,
        finished_at=now,
        track_id=job.track_id,
    )
    day = day_of(now)
    pages = transaction.head.days.get(day, 0)
    rows = transaction.get(rows_key(day, pages - 1)) if pages else None
    if rows is None or len(rows) >= PAGE_ROWS:
        rows, pages = [], pages + 1
        transaction.head.days[day] = pages
    transaction.put(rows_key(day, pages - 1), [*rows, ROWS.to_plain([row])[0]])
