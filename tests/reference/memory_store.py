"""A `Store` in memory, for tests: one lock and plain dicts, with every decision taken by `pipeline.jobs.transitions`.

Slow and obvious on purpose: it counts jobs by looking at all of them where the other stores keep counters, so that the
tests compare those counters with it.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InvalidRequest, NotFound
from pipeline.jobs import limits, transitions
from pipeline.jobs.histograms import COUNTER, histograms_of
from pipeline.jobs.limits import minute_of, month_of
from pipeline.jobs.model import (
    MAX_JOB_ID,
    ApiKey,
    AttemptResult,
    Job,
    JobFilter,
    JobResult,
    JobState,
    KeyLimits,
    KeyUse,
    Lease,
    LedgerFilter,
    NewJob,
    OutboxTask,
    Progress,
    StoreMetrics,
    Submitted,
    TaskAttempt,
    TaskKind,
    Timings,
    UsageDay,
    UsageRow,
    WorkerRecord,
)
from pipeline.jobs.transitions import DEFAULT_RETENTION, Decision, FailedRequest, Retention


class MemoryStore:
    """A `Store` in the memory of this process.

    Args:
        clock: seconds since 1970.
        retention: how long things go on after a job has ended.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time, retention: Retention = DEFAULT_RETENTION) -> None:
        self._clock = clock
        self._retention = retention
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._requests: dict[int, bytes] = {}
        self._keys: dict[str, ApiKey] = {}
        self._s3: dict[str, bytes] = {}
        self._minutes: dict[str, tuple[int, int]] = {}
        self._months: Counter[tuple[str, str]] = Counter()
        self._tasks: dict[str, OutboxTask] = {}
        self._attempts: defaultdict[str, list[TaskAttempt]] = defaultdict(list)
        self._usage: list[UsageRow] = []
        self._successes: list[JobResult] = []
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)
        self._workers: dict[str, WorkerRecord] = {}
        self._submits = 0
        self._recorded = 0
        self._restarts = 0

    def close(self) -> None:
        """Nothing to close."""

    def maintain(self, backup_dir: Path) -> None:
        """Nothing to do."""

    # ---- jobs ----

    def submit(self, new: NewJob) -> Submitted:
        with self._lock:
            now = self._clock()
            by_key = {(job.api_key_id, job.idempotency_key): job for job in self._jobs.values() if job.idempotency_key}
            known = by_key.get((new.api_key_id, new.idempotency_key))
            if known is not None:
                first = transitions.repeated(known, new)
                return Submitted(first, is_new=False, queue_position=self.queue_position(first))
            use = self.key_use(new.api_key_id)
            rate = limits.check_submit(
                self._keys.get(new.api_key_id), use, now=now, is_export=new.meta.export_of is not None
            )
            self._submits += 1
            job_id = secrets.randbelow(MAX_JOB_ID) + 1
            while job_id in self._jobs:
                job_id = secrets.randbelow(MAX_JOB_ID) + 1
            job = transitions.queued(new, job_id=job_id, seq=self._submits + self._recorded, now=now)
            self._requests[job_id] = new.request
            self._minutes[new.api_key_id] = (minute_of(now), use.this_minute + 1)
            self._put(None, job)
            return Submitted(job, is_new=True, queue_position=self.queue_position(job), rate=rate)

    def record(self, new: NewJob, result: JobResult) -> Job:
        with self._lock:
            for job in self._jobs.values():
                if new.idempotency_key and (job.api_key_id, job.idempotency_key) == (
                    new.api_key_id,
                    new.idempotency_key,
                ):
                    return transitions.repeated(job, new)
            now = self._clock()
            self._recorded += 1
            seq = self._submits + self._recorded
            job = transitions.queued(new, job_id=secrets.randbelow(MAX_JOB_ID) + 1, seq=seq, now=now)
            end = transitions.completed(
                job, result, now=now, retention=self._retention, draw_task_id=lambda: f"msg_{uuid.uuid4().hex}"
            )
            self._jobs[job.id] = end.job
            self._tasks |= {task.id: task for task in end.tasks}
            return end.job

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._lock:
            return transitions.visible(self._jobs.get(job_id), job_id, api_key_id=api_key_id)

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        with self._lock:
            return [self._jobs[job_id] for job_id in dict.fromkeys(job_ids) if job_id in self._jobs]

    def ended(self, job_ids: Sequence[int]) -> list[Job]:
        return [job for job in self.get_many(job_ids) if job.state.is_final]

    def request_of(self, job_id: int) -> bytes:
        with self._lock:
            if job_id not in self._requests:
                raise NotFound(f"There is no request of a job with the id {job_id}.")
            return self._requests[job_id]

    def list_jobs(self, filters: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> list[Job]:
        with self._lock:
            track_id = str(filters.track_id)
            jobs = [
                job
                for job in self._jobs.values()
                if filters.api_key_id in (None, job.api_key_id)
                and filters.state in (None, job.state)
                and (filters.track_id is None or (job.track_id is not None and str(job.track_id) == track_id))
                and (before_seq is None or job.seq < before_seq)
            ]
            return sorted(jobs, key=lambda job: -job.seq)[:limit]

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._lock:
            job = self.get(job_id, api_key_id=api_key_id)
            transitions.check_deletable(job)
            for task in self.tasks_of(job_id):
                del self._tasks[task.id]
                self._attempts.pop(task.id, None)
            self._requests.pop(job_id, None)
            return self._jobs.pop(job_id)

    def queue_position(self, job: Job) -> int:
        with self._lock:
            if job.state is not JobState.QUEUED:
                return 0
            return sum(other.state is JobState.QUEUED and other.seq <= job.seq for other in self._jobs.values())

    def timings(self) -> Timings:
        with self._lock:
            return transitions.mean_timings(
                result.stage_seconds for result in self._successes[-transitions.TIMED_JOBS :]
            )

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._lock:
            job = self.get(job_id, api_key_id=api_key_id)
            return self._apply(job, transitions.cancel_requested(job))

    def cancel_queued(self, *, api_key_id: str) -> int:
        with self._lock:
            jobs = [job for job in self._jobs.values() if (job.api_key_id, job.state) == (api_key_id, JobState.QUEUED)]
            for job in jobs:
                self._apply(job, transitions.cancel_requested(job))
            return len(jobs)

    def claim(
        self, worker_id: str, *, lease_s: float, job_id: int | None = None, engines: Collection[str] | None = None
    ) -> Job | None:
        with self._lock:
            now = self._clock()
            for job in sorted(self._jobs.values(), key=lambda job: (job.state is JobState.QUEUED, job.seq)):
                if job_id not in (None, job.id):
                    continue
                if job_id is not None and transitions.waits_for_call(job):
                    return self._put(job, transitions.transferred(job, worker_id, now=now, lease_s=lease_s))
                if job.state is JobState.RUNNING:
                    decision = transitions.lease_checked(job, worker_id, now=now, lease_s=lease_s, engines=engines)
                    after = self._apply(job, decision)
                    if transitions.is_claim(job, decision):
                        return after
                elif (
                    job.state is JobState.QUEUED
                    and transitions.has_engine(job, engines)
                    and transitions.may_run_more(
                        self._keys[job.api_key_id].limits, running=self.key_use(job.api_key_id).running
                    )
                ):
                    return self._put(job, transitions.claimed(job, worker_id, now=now, lease_s=lease_s))
            return None

    def renew(self, lease: Lease, *, lease_s: float, progress: Progress | None = None) -> bool:
        with self._lock:
            job = transitions.held(self._jobs.get(lease.job_id), lease)
            renewed = transitions.renewed(job, now=self._clock(), lease_s=lease_s, progress=progress)
            return self._put(job, renewed).is_cancel_requested

    def report(self, lease: Lease, progress: Progress) -> None:
        with self._lock:
            job = transitions.held(self._jobs.get(lease.job_id), lease)
            self._put(job, replace(job, progress=progress))

    def requeue(self, lease: Lease) -> Job:
        with self._lock:
            job = transitions.held(self._jobs.get(lease.job_id), lease)
            return self._apply(job, transitions.requeued(job))

    def transfer(self, lease: Lease, *, worker_id: str, lease_s: float, progress: Progress | None = None) -> Job:
        with self._lock:
            job = transitions.held(self._jobs.get(lease.job_id), lease)
            after = transitions.transferred(job, worker_id, now=self._clock(), lease_s=lease_s, progress=progress)
            return self._put(job, after)

    def expire_leases(self, worker_id: str) -> int:
        with self._lock:
            self._workers.pop(worker_id, None)
            held = [job for job in self._jobs.values() if (job.state, job.worker_id) == (JobState.RUNNING, worker_id)]
            for job in held:
                self._put(job, transitions.expired_now(job))
            return len(held)

    def complete(self, lease: Lease, result: JobResult) -> Job:
        with self._lock:
            job = self._jobs.get(lease.job_id)
            if job is None:
                raise transitions.lease_lost(lease)
            return self._apply(job, transitions.completion(job, lease, result))

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        with self._lock:
            job = self.get(job_id, api_key_id=None)
            return self._put(job, transitions.result_replaced(job, result))

    def expired(self, *, limit: int = 100) -> list[Job]:
        with self._lock:
            now = self._clock()
            pending = {task.job_id for task in self._tasks.values() if task.state == "pending"}
            jobs = [
                job
                for job in self._jobs.values()
                if job.expires_at is not None
                and transitions.is_expired(job.expires_at, now=now)
                and job.id not in pending
            ]
            return sorted(jobs, key=lambda job: job.seq)[:limit]

    def expire_requests(self) -> int:
        with self._lock:
            kept, now = self._failed_requests(), self._clock()
            deleted = transitions.requests_to_delete(kept, now=now, retention=self._retention)
            for job_id in deleted:
                del self._requests[job_id]
            return len(deleted)

    def _failed_requests(self) -> list[FailedRequest]:
        return [
            FailedRequest(job.id, job.api_key_id, job.finished_at, len(self._requests[job.id]))
            for job in self._jobs.values()
            if job.id in self._requests and job.finished_at is not None
        ]

    def metrics(self) -> StoreMetrics:
        with self._lock:
            now = self._clock()
            queued = ((job.seq, job.created_at) for job in self._jobs.values() if job.state is JobState.QUEUED)
            attempts = {label.partition(" "): count for label, count in self._sums["task_attempts"].items()}
            return StoreMetrics(
                submitted=self._submits,
                ended=self._sums["ended"],
                states=Counter(str(job.state) for job in self._jobs.values()),
                oldest_queued_s=transitions.oldest_queued_s(queued, now=now),
                stage_seconds=self._sums["stage_seconds"],
                stage_runs=self._sums["stage_runs"],
                kernel_fallbacks=self._sums["kernel_fallbacks"],
                gpu_seconds=self._sums["gpu_seconds"][""],
                task_attempts={(kind, outcome): count for (kind, _, outcome), count in attempts.items()},
                tasks_pending=Counter(task.kind for task in self._tasks.values() if task.state == "pending"),
                failed_requests_bytes=sum(kept.size_bytes for kept in self._failed_requests()),
                durations=histograms_of(self._sums[COUNTER]),
            )

    def _put(self, before: Job | None, after: Job) -> Job:
        change = transitions.usage_change(before, after)
        self._months[after.api_key_id, change.month] += change.month_calls
        self._jobs[after.id] = after
        return after

    def _apply(self, job: Job, decision: Decision) -> Job:
        if isinstance(decision, Job):
            return self._put(job, decision)
        end = transitions.completed(
            job,
            decision,
            now=self._clock(),
            retention=self._retention,
            draw_task_id=lambda: f"msg_{uuid.uuid4().hex}",
        )
        self._put(job, end.job)
        if end.keeps_request:
            self.expire_requests()
        else:
            del self._requests[job.id]
        self._tasks |= {task.id: task for task in end.tasks}
        self._usage.append(end.usage)
        self._add(transitions.completion_sums(end, decision))
        if decision.state is JobState.SUCCESS and transitions.is_timed(decision.stage_seconds):
            self._successes.append(decision)
        return end.job

    def _add(self, sums: transitions.Sums) -> None:
        for name, label, value in sums:
            self._sums[name][label] += value  # pyright: ignore[reportArgumentType]  # some counters are seconds

    # ---- keys ----

    def add_key(self, key: ApiKey) -> ApiKey:
        with self._lock:
            known = self.find_key(key.sha256)
            if known is not None:
                return known
            if any(other.name == key.name and other.revoked_at is None for other in self._keys.values()):
                raise InvalidRequest(f"There is a key named {key.name!r} already.")
            self._keys[key.id] = key
            return key

    def find_key(self, sha256: str) -> ApiKey | None:
        with self._lock:
            return next((key for key in self._keys.values() if key.sha256 == sha256), None)

    def get_key(self, api_key_id: str, *, max_age_s: float = 0.0) -> ApiKey:
        with self._lock:
            return self._key(api_key_id)

    def list_keys(self) -> list[ApiKey]:
        with self._lock:
            return list(self._keys.values())

    def revoke_key(self, api_key_id: str) -> ApiKey:
        with self._lock:
            key = self._key(api_key_id)
            self._keys[api_key_id] = replace(key, revoked_at=key.revoked_at or self._clock())
            return self._keys[api_key_id]

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        with self._lock:
            self._keys[api_key_id] = replace(self._key(api_key_id), limits=limits)
            return self._keys[api_key_id]

    def rotate_secret(self, api_key_id: str) -> ApiKey:
        with self._lock:
            key = self._key(api_key_id)
            self._keys[api_key_id] = replace(key, secret_number=key.secret_number + 1, secret_rotated_at=self._clock())
            return self._keys[api_key_id]

    def _key(self, api_key_id: str) -> ApiKey:
        if api_key_id not in self._keys:
            raise limits.no_such_key(api_key_id)
        return self._keys[api_key_id]

    def key_use(self, api_key_id: str) -> KeyUse:
        with self._lock:
            now = self._clock()
            minute, calls = self._minutes.get(api_key_id, (0, 0))
            states = Counter(job.state for job in self._jobs.values() if job.api_key_id == api_key_id)
            return KeyUse(
                queued=states[JobState.QUEUED],
                running=states[JobState.RUNNING],
                this_minute=limits.submits_this_minute(minute, calls, now=now),
                this_month=self._months[api_key_id, month_of(now)],
            )

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        with self._lock:
            self._s3[api_key_id] = encrypted

    def s3_of(self, api_key_id: str) -> bytes | None:
        with self._lock:
            return self._s3.get(api_key_id)

    def reset_s3(self, api_key_id: str) -> bool:
        with self._lock:
            return self._s3.pop(api_key_id, None) is not None

    # ---- outbox ----

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        with self._lock:
            now = self._clock()
            due = [
                task
                for task in self._tasks.values()
                if (task.kind, task.state) == (kind, "pending")
                and transitions.is_task_due(task.next_attempt_at, scheduled_at=task.scheduled_at, now=now)
            ]
            if not due:
                return None
            task = min(due, key=lambda task: task.next_attempt_at)
            self._tasks[task.id] = transitions.task_claimed(task, now=now, claim_s=claim_s)
            return self._tasks[task.id]

    def settle_task(self, task: OutboxTask, result: AttemptResult) -> OutboxTask:
        with self._lock:
            if task.id not in self._tasks:
                raise NotFound(f"There is no task {task.id}.")
            attempts = self._attempts[task.id]
            settled, attempt = transitions.task_settled(
                self._tasks[task.id],
                result,
                attempts_before=len(attempts),
                now=self._clock(),
            )
            attempts.append(attempt)
            self._add(transitions.attempt_sums(settled, attempt))
            self._tasks[task.id] = settled
            return settled

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        with self._lock:
            return [task for task in self._tasks.values() if task.job_id == job_id]

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        with self._lock:
            return list(self._attempts.get(task_id, ()))

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        with self._lock:
            self.get(job_id, api_key_id=api_key_id)
            again = transitions.redelivered(self.tasks_of(job_id), job_id, now=self._clock(), retention=self._retention)
            self._tasks[again.id] = again
            return again

    # ---- ledger ----

    def usage_rows(self, filters: LedgerFilter, *, limit: int = 10_000) -> list[UsageRow]:
        with self._lock:
            return [row for row in self._usage if filters.matches(row)][:limit]

    def usage_days(self, filters: LedgerFilter) -> list[UsageDay]:
        rows = self.usage_rows(filters, limit=2**31)
        return transitions.usage_by_day(map(transitions.usage_group, rows))

    # ---- workers ----

    def heartbeat_worker(self, worker: WorkerRecord) -> None:
        with self._lock:
            self._workers[worker.worker_id] = replace(worker, seen_at=self._clock())

    def deregister_worker(self, worker_id: str) -> None:
        with self._lock:
            self._workers.pop(worker_id, None)

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        with self._lock:
            now = self._clock()
            return [worker for worker in self._workers.values() if abs(now - worker.seen_at) <= seen_within_s]

    def request_restart(self) -> int:
        with self._lock:
            self._restarts += 1
            return self._restarts

    def restarts_requested(self) -> int:
        with self._lock:
            return self._restarts
