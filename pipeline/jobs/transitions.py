"""Every decision about a job, as pure functions on records: a store finds rows, asks here, and persists the answer.

A decision takes the record as it is and the time, and returns the next record. Where a job may end instead, it returns
a `Decision`: the next record, or the `JobResult` that ends the job now, which the store passes to `completed`. Knows no
store, no SQL and no clock: `now` is seconds since 1970, as the store's clock reads.

`is_held`, `is_lease_due`, `is_task_due` and `is_expired` use only operators that SQLAlchemy columns share with plain
values, so that the SQL store builds its WHERE clauses from the same rule. Their arguments are therefore `Any`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.errors import IdempotencyKeyReused, InvalidRequest, LeaseLost, NotFound, is_caller_error
from pipeline.jobs import histograms
from pipeline.jobs.histograms import Series
from pipeline.jobs.limits import day_of, month_of
from pipeline.jobs.model import (
    AttemptResult,
    Job,
    JobResult,
    JobState,
    KeyLimits,
    Lease,
    NewJob,
    OutboxTask,
    Progress,
    TaskAttempt,
    TaskKind,
    Timings,
    UsageDay,
    UsageRow,
    may_follow,
)

MAX_ATTEMPTS = 3
"""How often a job is claimed without progress before it is given up as failed."""
REQUEST_LIFETIME_S = 86400.0
"""How long the request of a job that failed through no fault of its caller is kept at most, with its images."""
PASSIVE = "generation-"
"""What the name of a passive holder begins with."""
PASSIVE_LEASE_S = 900.0
"""How long a passive holder holds a job. No process renews such a lease but the scheduled functions, every minute."""
MAX_PAUSE_S = 7200.0
"""No outbox task is scheduled further ahead: a later due time was written before the clock stepped back."""
MAX_SKEW_S = 60.0
"""Clocks of one deployment differ by less: a task scheduled further in the future predates a step of the clock."""
EXPORT_STAGE = "load"
"""The stage that only exports have."""
TIMED_JOBS = 20
"""How many successful jobs the estimate of a wait is averaged over."""

Decision = Job | JobResult
"""What becomes of a job: its next record (the same one where nothing changes), or the result that ends it now."""

CANCELLED = JobResult(JobState.CANCELLED, message="The job was cancelled.", error_code="cancelled")
"""The result of a job that is cancelled while no worker holds it."""
GIVEN_UP = JobResult(
    JobState.FAILED,
    message=f"The job was interrupted {MAX_ATTEMPTS} times and given up.",
    error_code="interrupted",
    retryable=True,
)
"""The result of a job whose workers died too often."""


@dataclass(frozen=True)
class Retention:
    """How long records, webhook retries and late uploads last after a job has ended.

    Attributes:
        record_lifetime_s: how long the record stays.
        webhook_window_s: how long its webhook is retried.
        upload_window_s: how long an upload to the caller's bucket is retried; the temporary copy expires then.
        failed_requests_bytes: what the requests of failed jobs that are kept may occupy together.
        failed_requests_bytes_per_key: the same for the jobs of one key.
    """

    record_lifetime_s: float = 7 * 86400.0
    webhook_window_s: float = 7200.0
    upload_window_s: float = 86400.0
    failed_requests_bytes: int = 2 << 30
    failed_requests_bytes_per_key: int = 256 << 20


DEFAULT_RETENTION = Retention()


# ---- submit ----


def queued(new: NewJob, *, job_id: int, seq: int, now: float) -> Job:
    """The record of a submitted job."""
    return Job(
        id=job_id,
        seq=seq,
        api_key_id=new.api_key_id,
        file_prefix=new.file_prefix,
        state=JobState.QUEUED,
        created_at=now,
        request_sha256=new.request_sha256,
        meta=new.meta,
        track_id=new.track_id,
        webhook_url=new.webhook_url,
        idempotency_key=new.idempotency_key,
        engine=new.engine,
    )


def repeated(first: Job, new: NewJob) -> Job:
    """The job that a submit with a known idempotency key repeats.

    Raises:
        IdempotencyKeyReused: the first submit had another body.
    """
    if first.request_sha256 != new.request_sha256:
        raise IdempotencyKeyReused("Idempotency-Key was used before with another body")
    return first


def visible(job: Job | None, job_id: int, *, api_key_id: str | None) -> Job:
    """The job, where this key may see it; None is the operator, who sees all.

    Raises:
        NotFound: there is none for this key.
    """
    if job is None or api_key_id not in (None, job.api_key_id):
        raise NotFound(f"There is no job with the id {job_id}.")
    return job


def oldest_queued_s(jobs: Iterable[tuple[int, float]], *, now: float) -> float:
    """The age of the job at the head of the queue; after the clock stepped back it need not be the oldest by time.

    Args:
        jobs: `seq` and `created_at` of queued jobs.
    """
    head = min(jobs, default=None)
    return 0.0 if head is None else max(0.0, now - head[1])


# ---- claims and leases ----


def may_run_more(limits: KeyLimits, *, running: int) -> bool:
    """Whether another job of a key may be claimed."""
    return limits.running is None or running < limits.running


def has_engine(job: Job, engines: Collection[str] | None) -> bool:
    """Whether a worker with these engines can run a job; None is every engine."""
    return engines is None or not job.engine or job.engine in engines


def lease_end(now: float, lease_s: float) -> float:
    """When a lease that is granted or renewed now expires."""
    return now + lease_s


def passive_holder(name: str) -> str:
    """The `worker_id` of a job that waits for a call of that name, and that no process works on."""
    return f"{PASSIVE}{name}"


def is_passive(worker_id: str | None) -> bool:
    """Whether a job with this holder may be taken over at once, by a worker that it is dispatched to."""
    return worker_id is not None and worker_id.startswith(PASSIVE)


def longest_lease_s(worker_id: str | None, lease_s: float) -> float:
    """For how long a lease of this holder is granted, where those of workers are granted for `lease_s`."""
    return max(lease_s, PASSIVE_LEASE_S) if is_passive(worker_id) else lease_s


def transferred(job: Job, worker_id: str, *, now: float, lease_s: float, progress: Progress | None = None) -> Job:
    """The job under a lease of another holder. The attempt goes on: it is not counted again."""
    return replace(renewed(job, now=now, lease_s=lease_s, progress=progress), worker_id=worker_id)


def waits_for_call(job: Job) -> bool:
    """Whether a passive holder has the job: a worker that it is dispatched to gets it, by `transferred`."""
    return job.state is JobState.RUNNING and is_passive(job.worker_id)


def claimed(job: Job, worker_id: str, *, now: float, lease_s: float) -> Job:
    """The job, running under a new lease. Every claim is an attempt."""
    return replace(
        job,
        state=JobState.RUNNING,
        worker_id=worker_id,
        attempts=job.attempts + 1,
        lease_expires_at=lease_end(now, lease_s),
        started_at=now if job.started_at is None else job.started_at,
    )


def is_lease_due(expires_at: Any, *, now: float, longest_s: Any) -> Any:
    """Whether `lease_checked` would change a running job: its lease has expired, or lies further ahead than any can.

    Args:
        longest_s: the `longest_lease_s` of its holder.
    """
    return (expires_at <= now) | (expires_at > now + 2 * longest_s)


def lease_checked(
    job: Job, worker_id: str, *, now: float, lease_s: float, engines: Collection[str] | None = None
) -> Decision:
    """What becomes of a running job when `worker_id`, which has these engines, looks for work.

    Returns:
        The job as it is while its lease holds; with its lease cut where the clock stepped back since it was written, so
        that it expires after its full length from now; the job claimed by `worker_id`; queued again, its attempts kept,
        where that worker lacks the engine; or the result that ends it.
    """
    expires_at, longest_s = job.lease_expires_at or 0.0, longest_lease_s(job.worker_id, lease_s)
    if not is_lease_due(expires_at, now=now, longest_s=longest_s):
        return job
    if expires_at > now:
        return replace(job, lease_expires_at=lease_end(now, longest_s))
    if job.is_cancel_requested:
        return CANCELLED
    if job.attempts >= MAX_ATTEMPTS:
        return GIVEN_UP
    if not has_engine(job, engines):
        return replace(job, state=JobState.QUEUED, lease_expires_at=None)
    return claimed(job, worker_id, now=now, lease_s=lease_s)


def is_claim(before: Job, decision: Decision) -> bool:
    """Whether a decision of `lease_checked` gives the job to the worker that asked."""
    return isinstance(decision, Job) and decision.attempts > before.attempts


def is_held(job: Any, lease: Lease) -> Any:
    """Whether the lease holds.

    Args:
        job: a record, or the columns of a table of them.
    """
    is_same_claim = (job.worker_id == lease.worker_id) & (job.attempts == lease.attempt)
    return (job.id == lease.job_id) & (job.state == str(JobState.RUNNING)) & is_same_claim


def held(job: Job | None, lease: Lease) -> Job:
    """The job, where the lease holds.

    Raises:
        LeaseLost: the job has ended, is another worker's, or does not exist.
    """
    if job is None or not is_held(job, lease):
        raise lease_lost(lease)
    return job


def lease_lost(lease: Lease) -> LeaseLost:
    """The error of a lease that no longer holds."""
    return LeaseLost(f"job {lease.job_id} is no longer held by {lease.worker_id}, attempt {lease.attempt}")


def renewed(job: Job, *, now: float, lease_s: float, progress: Progress | None = None) -> Job:
    """The job with its lease extended by a heartbeat, and its progress where that has changed."""
    progress = job.progress if progress is None else progress
    return replace(job, lease_expires_at=lease_end(now, lease_s), progress=progress)


def expired_now(job: Job) -> Job:
    """The job of a dead worker: its lease has expired."""
    return replace(job, lease_expires_at=0.0)


def requeued(job: Job) -> Decision:
    """The job queued again at its old position. The attempt does not count; a requested cancellation ends it."""
    if job.is_cancel_requested:
        return CANCELLED
    return replace(job, state=JobState.QUEUED, attempts=job.attempts - 1, worker_id=None, lease_expires_at=None)


# ---- cancellation and completion ----


def cancel_requested(job: Job) -> Decision:
    """A queued job ends at once, a running one is told to stop, an ended one stays as it is."""
    if job.state is JobState.QUEUED:
        return CANCELLED
    return replace(job, is_cancel_requested=True) if job.state is JobState.RUNNING else job


def completion(job: Job, lease: Lease, result: JobResult) -> Decision:
    """The result where the lease holds; the ended job where this lease ended it before, so that a repetition is safe.

    Raises:
        LeaseLost: the lease does not hold.
    """
    if job.state.is_final and job.worker_id is not None and job.lease == lease:
        return job
    held(job, lease)
    return result


@dataclass(frozen=True)
class Completion:
    """All that the end of a job writes: the record, its outbox, its row of the ledger.

    Attributes:
        keeps_request: whether the request is kept for a while, so that the operator can submit it again.
    """

    job: Job
    tasks: tuple[OutboxTask, ...]
    usage: UsageRow
    keeps_request: bool


def completed(
    job: Job, result: JobResult, *, now: float, retention: Retention, draw_task_id: Callable[[], str]
) -> Completion:
    """The one final transition of a job.

    Args:
        job: queued or running.
        draw_task_id: called once for each task of the outbox.
    """
    ended = replace(
        job,
        state=result.state,
        result=result,
        finished_at=now,
        expires_at=now + retention.record_lifetime_s,
        lease_expires_at=None,
        progress=Progress("", 100) if result.state is JobState.SUCCESS else job.progress,
    )

    wanted: list[tuple[TaskKind, str, float]] = []
    if job.webhook_url is not None:
        wanted.append(("webhook", job.webhook_url, retention.webhook_window_s))
    if result.upload_warning:
        wanted.append(("upload", "", retention.upload_window_s))
    tasks = tuple(
        OutboxTask(
            id=draw_task_id(),
            kind=kind,
            job_id=job.id,
            api_key_id=job.api_key_id,
            target=target,
            state="pending",
            attempts=0,
            created_at=now,
            next_attempt_at=now,
            give_up_at=now + window_s,
            scheduled_at=now,
        )
        for kind, target, window_s in wanted
    )
    usage = UsageRow(
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
    keeps_request = result.state is JobState.FAILED and not is_caller_error(result.error_code)
    return Completion(ended, tasks, usage, keeps_request)


@dataclass(frozen=True)
class FailedRequest:
    """The request that a failed job keeps, without its content."""

    job_id: int
    api_key_id: str
    finished_at: float
    size_bytes: int


def requests_to_delete(kept: Iterable[FailedRequest], *, now: float, retention: Retention) -> list[int]:
    """Which failed jobs keep their requests no longer: those of `REQUEST_LIFETIME_S` ago, and the oldest beyond the
    bounds of their key and of the deployment.

    Returns:
        The ids of the jobs, newest first.
    """
    deleted: list[int] = []
    most_of_key, most = retention.failed_requests_bytes_per_key, retention.failed_requests_bytes
    of_key: defaultdict[str, int] = defaultdict(int)
    total = 0
    for request in sorted(kept, key=lambda one: (one.finished_at, one.job_id), reverse=True):
        is_expired = request.finished_at <= now - REQUEST_LIFETIME_S
        if not is_expired and request.size_bytes <= min(most_of_key, most):  # one too large displaces no other
            of_key[request.api_key_id] += request.size_bytes
            if of_key[request.api_key_id] <= most_of_key:
                total += request.size_bytes
                if total <= most:
                    continue
        deleted.append(request.job_id)
    return deleted


def resubmission(job: Job, request: bytes, *, file_prefix: str) -> NewJob:
    """A failed job's request as a new job of the same key, with the same webhook and track_id."""
    return NewJob(
        api_key_id=job.api_key_id,
        file_prefix=file_prefix,
        request=request,
        request_sha256=job.request_sha256,
        meta=job.meta,
        track_id=job.track_id,
        webhook_url=job.webhook_url,
    )


def result_replaced(job: Job, result: JobResult) -> Job:
    """An ended job with another result of the same state.

    Raises:
        InvalidRequest: the states differ.
    """
    if job.state is not result.state:
        raise InvalidRequest(f"Job {job.id} is {job.state}, not {result.state}.")
    return replace(job, result=result)


def check_deletable(job: Job) -> None:
    """Refuse to delete a job that has not ended.

    Raises:
        InvalidRequest: it has not.
    """
    if not job.state.is_final:
        raise InvalidRequest(f"Job {job.id} is {job.state}; cancel it before deleting it.")


def is_expired(expires_at: Any, *, now: float) -> Any:
    """Whether the retention of an ended job has ended."""
    return expires_at <= now


# ---- counters ----


@dataclass(frozen=True)
class UsageChange:
    """How a transition changes what a key has in use.

    Attributes:
        month: the month (UTC) that `month_calls` belongs to: the one in which the job was created.
        month_calls: 1 for a submit; -1 for a job that ends without success, which gives its part of the quota back;
            0 for an export, which generates nothing.
    """

    queued: int
    running: int
    month: str
    month_calls: int


def usage_change(before: Job | None, after: Job) -> UsageChange:
    """The change of a key's counters between two records of one job; `before` is None for a submit."""

    def change(state: JobState) -> int:
        return int(after.state is state) - int(before is not None and before.state is state)

    if before is None:
        month_calls = 1
    else:
        is_same = after.state is before.state
        assert is_same or may_follow(before.state, after.state), f"{before.state} -> {after.state}"
        month_calls = -1 if after.state in (JobState.FAILED, JobState.CANCELLED) and not is_same else 0
    if after.meta.export_of is not None:
        month_calls = 0
    return UsageChange(change(JobState.QUEUED), change(JobState.RUNNING), month_of(after.created_at), month_calls)


Sums = list[tuple[str, str, float]]
"""Additions to counters that outlive the records: name, label, value."""


def completion_sums(end: Completion, result: JobResult) -> Sums:
    """What the end of a job adds to the counters of `/metrics`."""
    engine = result.engine or "none"
    turnaround_s = end.usage.finished_at - end.usage.created_at
    durations = histograms.additions(Series("job", str(result.state), engine), turnaround_s)
    for stage, seconds in result.stage_seconds.items():
        durations += histograms.additions(Series("stage", stage, engine), seconds)
    return [
        ("ended", str(result.state), 1),
        ("gpu_seconds", "", result.gpu_seconds),
        *(("stage_seconds", stage, seconds) for stage, seconds in result.stage_seconds.items()),
        *(("stage_runs", stage, 1) for stage in result.stage_seconds),
        *(("kernel_fallbacks", kernel, 1) for kernel in result.kernel_fallbacks),
        *durations,
    ]


def attempt_sums(task: OutboxTask, attempt: TaskAttempt) -> Sums:
    """What an attempt at a task adds to the counters of `/metrics`; the label is `kind outcome`."""
    return [("task_attempts", f"{task.kind} {'error' if attempt.error else 'ok'}", 1)]


def attempts_by_outcome(counter: Mapping[str, float]) -> dict[tuple[str, str], int]:
    """Attempts by kind and outcome, from the counter that `attempt_sums` adds to."""
    pairs = ((label.partition(" "), count) for label, count in counter.items())
    return {(kind, outcome): int(count) for (kind, _, outcome), count in pairs}


# ---- outbox ----


def is_task_due(next_attempt_at: Any, *, scheduled_at: Any, now: float) -> Any:
    """Whether a pending task may be claimed: its time has come, or was written before the clock stepped back.

    Args:
        scheduled_at: when `next_attempt_at` was written.
    """
    return (next_attempt_at <= now) | (next_attempt_at > now + MAX_PAUSE_S) | (scheduled_at > now + MAX_SKEW_S)


def task_claimed(task: OutboxTask, *, now: float, claim_s: float) -> OutboxTask:
    """The task, hidden from other senders until the claim runs out."""
    return replace(task, next_attempt_at=now + min(claim_s, MAX_PAUSE_S), scheduled_at=now)


def task_settled(
    task: OutboxTask, result: AttemptResult, *, attempts_before: int, now: float
) -> tuple[OutboxTask, TaskAttempt]:
    """The task after an attempt, done, given up or pending again, and the record of that attempt.

    Args:
        attempts_before: attempts on record, those before a redelivery included.
    """
    tried = replace(task, attempts=task.attempts + 1, last_status=result.status, last_error=result.error)
    if not result.error:
        tried = replace(tried, state="done", done_at=now)
    elif result.retry_in_s is None or now + result.retry_in_s > task.give_up_at:
        tried = replace(tried, state="given_up", done_at=now)
    else:
        due_at = now + min(result.retry_in_s, MAX_PAUSE_S)
        tried = replace(tried, state="pending", next_attempt_at=due_at, scheduled_at=now)
    return tried, TaskAttempt(task.id, attempts_before + 1, now, result.status, result.error, result.seconds)


def redelivered(tasks: Iterable[OutboxTask], job_id: int, *, now: float, retention: Retention) -> OutboxTask:
    """The webhook among a job's tasks, due now, under its old id and with a fresh set of attempts.

    Raises:
        InvalidRequest: there is none, because the job has not ended or has no webhook.
    """
    webhook = next((task for task in tasks if task.kind == "webhook"), None)
    if webhook is None:
        raise InvalidRequest(f"Job {job_id} has not ended, or has no webhook.")
    return replace(
        webhook,
        state="pending",
        attempts=0,
        next_attempt_at=now,
        scheduled_at=now,
        give_up_at=now + retention.webhook_window_s,
        done_at=None,
    )


# ---- ledger ----


@dataclass(frozen=True)
class UsageGroup:
    """Rows of the ledger of one key, day and state, added up; a database adds up more than one."""

    api_key_id: str
    day: str
    state: str
    calls: int
    seconds: float
    gpu_seconds: float


def usage_group(row: UsageRow) -> UsageGroup:
    """One row as a group."""
    return UsageGroup(row.api_key_id, day_of(row.finished_at), str(row.state), 1, row.seconds, row.gpu_seconds)


def usage_by_day(groups: Iterable[UsageGroup]) -> list[UsageDay]:
    """Ended jobs by day and key, oldest first."""
    days: defaultdict[tuple[str, str], list[UsageGroup]] = defaultdict(list)
    for group in groups:
        days[group.day, group.api_key_id].append(group)

    def count(groups: list[UsageGroup], state: JobState) -> int:
        return sum(group.calls for group in groups if group.state == state)

    return [
        UsageDay(
            api_key_id=api_key_id,
            day=day,
            calls=sum(group.calls for group in groups),
            succeeded=count(groups, JobState.SUCCESS),
            failed=count(groups, JobState.FAILED),
            cancelled=count(groups, JobState.CANCELLED),
            seconds=sum(group.seconds for group in groups),
            gpu_seconds=sum(group.gpu_seconds for group in groups),
        )
        for (day, api_key_id), groups in sorted(days.items())
    ]


def is_timed(stage_seconds: Mapping[str, float]) -> bool:
    """Whether a successful job says how long a generation takes; an export does not."""
    return EXPORT_STAGE not in stage_seconds


def mean_timings(runs: Iterable[Mapping[str, float]]) -> Timings:
    """Means over the stage seconds of the last successful jobs; a stage is averaged over the jobs that had it."""
    last = list(runs)
    if not last:
        return Timings(0, 0.0)
    by_stage: defaultdict[str, list[float]] = defaultdict(list)
    for run in last:
        for stage, seconds in run.items():
            by_stage[stage].append(seconds)
    means = {stage: sum(values) / len(values) for stage, values in by_stage.items()}
    return Timings(len(last), sum(sum(run.values()) for run in last) / len(last), means)
