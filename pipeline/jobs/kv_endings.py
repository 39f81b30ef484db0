"""What the end of a job changes, as part of a step: its record, its key's counters, its tasks, the ledger, totals."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline.jobs.kv_state import (
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
    beat_key,
    chunk_key,
    idempotency_key,
    job_key,
    page_key,
    rows_key,
)
from pipeline.jobs.kv_step import Step, View
from pipeline.jobs.limits import TIMED_CALLS, day_of, month_of
from pipeline.jobs.record import AfterTask, Ending, Job, JobState, Progress, TaskKind, UsageRow


@dataclass(frozen=True)
class EndRules:
    """How long things go on after an end."""

    record_lifetime_s: float
    webhook_window_s: float


def end_job(
    step: Step, job: Job, ending: Ending, *, now: float, rules: EndRules, upload_for_s: float | None = None
) -> Job:
    """The final transition with everything that goes with it.

    Args:
        job: open until now, as it stands.
        upload_for_s: how long a late upload is to be tried; None for none.
    """
    head = step.head
    kept = head.open.pop(job.id)
    for number in range(kept.request.chunks):
        step.forget(chunk_key(kept.request.token, number))
    step.forget(beat_key(job.id, kept.term))
    ended = replace(
        job,
        state=ending.state,
        ending=ending,
        finished_at=now,
        expires_at=now + rules.record_lifetime_s,
        lease_expires_at=None,
        progress=Progress("", 100) if ending.state is JobState.SUCCESS else job.progress,
    )
    account = head.accounts[job.key_id]
    if job.state is JobState.QUEUED:
        account.queued -= 1
    else:
        account.running -= 1
    if ending.state is not JobState.SUCCESS:
        account.months[month_of(job.created_at)] = account.months.get(month_of(job.created_at), 0) - 1
    document = JobDocument(ended, number=2 * sum(head.totals.ended.values()))
    if job.webhook_url is not None:
        _add_task(head, document, "webhook", job.webhook_url, now, rules.webhook_window_s)
    if upload_for_s is not None:
        _add_task(head, document, "upload", "", now, upload_for_s)
    put_job(step, document)
    _list(step, ended)
    _count(head, ending)
    _write_usage(step, ended, ending, now)
    return ended


def find_document(view: View, job_id: int) -> JobDocument | None:
    """An ended job with all that follows its end; tasks that are not settled are due when the head says."""
    found = view.get(job_key(job_id))
    if found is None:
        return None
    document = JOB.validate_python(found)
    pending = view.head.tasks
    document.tasks = [
        replace(task, next_attempt_at=pending[task.id].next_attempt_at) if task.id in pending else task
        for task in document.tasks
    ]
    return document


def put_job(step: Step, document: JobDocument) -> None:
    """Write an ended job's document."""
    step.put(job_key(document.job.id), JOB.dump_python(document, mode="json"))


def forget_job(step: Step, document: JobDocument) -> None:
    """Remove an ended job and what hangs on it; the ledger stays."""
    job, head = document.job, step.head
    for task in document.tasks:
        head.tasks.pop(task.id, None)
    step.delete(job_key(job.id))
    if job.idempotency_key is not None:
        step.delete(idempotency_key(job.key_id, job.idempotency_key))
    head.states[str(job.state)] -= 1
    number = job.seq // PAGE_JOBS
    page = read_page(step.get(page_key(number)))
    page.pop(job.seq, None)
    _put_page(step, number, page)


def read_page(document: object) -> dict[int, ListedJob]:
    """A page of the list by `seq`."""
    return {} if document is None else LISTED.validate_python(document)


def _put_page(step: Step, number: int, page: Mapping[int, ListedJob]) -> None:
    if page:
        step.head.pages[number] = min(listed.expires_at for listed in page.values())
        step.put(page_key(number), LISTED.dump_python(dict(page), mode="json"))
    else:
        step.head.pages.pop(number, None)
        step.delete(page_key(number))


def _list(step: Step, job: Job) -> None:
    number = job.seq // PAGE_JOBS
    page = read_page(step.get(page_key(number))) if number in step.head.pages else {}
    page[job.seq] = ListedJob(job.id, job.key_id, job.state, job.track_id, job.expires_at or 0.0)
    _put_page(step, number, page)
    step.head.states[str(job.state)] = step.head.states.get(str(job.state), 0) + 1


def _count(head: Head, ending: Ending) -> None:
    totals = head.totals
    totals.ended[str(ending.state)] = totals.ended.get(str(ending.state), 0) + 1
    totals.gpu_seconds += ending.gpu_seconds
    for stage, seconds in ending.stage_seconds.items():
        totals.stage_seconds[stage] = totals.stage_seconds.get(stage, 0.0) + seconds
        totals.stage_runs[stage] = totals.stage_runs.get(stage, 0) + 1
    if ending.state is JobState.SUCCESS:
        head.successes = [*head.successes, Success(ending.seconds, dict(ending.stage_seconds))][-TIMED_CALLS:]


def _add_task(head: Head, document: JobDocument, kind: TaskKind, target: str, now: float, window_s: float) -> None:
    job = document.job
    task = AfterTask(
        id=f"msg_{job.id:08x}{secrets.token_hex(12)}",  # names its job, so that it is found without an index
        kind=kind,
        job_id=job.id,
        key_id=job.key_id,
        target=target,
        state="pending",
        attempts=0,
        created_at=now,
        next_attempt_at=now,
        give_up_at=now + window_s,
    )
    head.tasks[task.id] = PendingTask(kind, job.id, document.number + len(document.tasks), now, planned_at=now)
    document.tasks.append(task)


def job_id_of(task_id: str) -> int:
    """Whose task it is; 0 for what is no task's id."""
    digits = task_id.removeprefix("msg_")[:8]
    try:
        return int(digits, 16)
    except ValueError:
        return 0


def _write_usage(step: Step, job: Job, ending: Ending, now: float) -> None:
    row = UsageRow(
        key_id=job.key_id,
        job_id=job.id,
        state=ending.state,
        engine=ending.engine,
        seconds=ending.seconds,
        gpu_seconds=ending.gpu_seconds,
        created_at=job.created_at,
        finished_at=now,
        track_id=job.track_id,
    )
    day = day_of(now)
    pages = step.head.days.get(day, 0)
    rows = step.get(rows_key(day, pages - 1)) if pages else None
    if rows is None or len(rows) >= PAGE_ROWS:
        rows, pages = [], pages + 1
        step.head.days[day] = pages
    step.put(rows_key(day, pages - 1), [*rows, ROWS.dump_python([row], mode="json")[0]])
