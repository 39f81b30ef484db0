"""The in-memory twin of the SQL store: the same contract, one lock, plain dicts. Gone with its process.

Slow and obvious on purpose: it counts by looking at every job where the SQL store keeps counters, so that the contract
tests hold one against the other.
"""

from __future__ import annotations

import secrets
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import InvalidRequest, LeaseLost, NotFound, Unauthorized
from pipeline.jobs.limits import (
    CANCELLED,
    GIVEN_UP,
    MAX_PAUSE_S,
    TIMED_CALLS,
    check_limits,
    is_due,
    minute_of,
    month_of,
)
from pipeline.jobs.model import (
    MAX_ATTEMPTS,
    MAX_JOB_ID,
    ApiKey,
    Job,
    JobResult,
    JobState,
    KeyLimits,
    KeyUse,
    Lease,
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
    may_follow,
)
from pipeline.jobs.usage import sum_by_day


class MemoryStore:
    """A `Store` in this process's memory.

    Args:
        clock: seconds since 1970.
        record_lifetime_s: how long an ended job stays on record.
        webhook_window_s: how long a webhook is tried.
        upload_window_s: how long an upload that a bucket refused is retried; the temporary copy expires then.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        record_lifetime_s: float = 7 * 86400.0,
        webhook_window_s: float = 7200.0,
        upload_window_s: float = 86400.0,
    ) -> None:
        self._clock = clock
        self._record_lifetime_s = record_lifetime_s
        self._webhook_window_s = webhook_window_s
        self._upload_window_s = upload_window_s
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._requests: dict[int, bytes] = {}
        self._keys: dict[str, ApiKey] = {}
        self._s3: dict[str, bytes] = {}
        self._minutes: dict[str, tuple[int, int]] = {}
        self._months: Counter[tuple[str, str]] = Counter()
        self._tasks: dict[str, OutboxTask] = {}
        self._planned_at: dict[str, float] = {}  # when each task's due time was written
        self._attempts: defaultdict[str, list[TaskAttempt]] = defaultdict(list)
        self._usage: list[UsageRow] = []
        self._results: list[JobResult] = []
        self._task_attempts: Counter[tuple[str, str]] = Counter()
        self._workers: dict[str, WorkerRecord] = {}
        self._submits = 0
        self._restarts = 0

    def close(self) -> None:
        """Nothing to let go of."""

    def maintain(self, backup_dir: Path) -> None:
        """Nothing to do."""

    # ---- jobs ----

    def submit(self, new: NewJob) -> Submitted:
        with self._lock:
            now = self._clock()
            first = self._find_by_idempotency_key(new)
            if first is not None:
                return Submitted(first, is_new=False, queue_position=self.queue_position(first))
            key = self._keys.get(new.api_key_id)
            if key is None or key.revoked_at is not None:
                raise Unauthorized("Invalid API key")
            use = self.key_use(key.id)
            rate = check_limits(key.limits, use, now=now)
            self._submits += 1
            job_id = 0
            while job_id == 0 or job_id in self._jobs:
                job_id = secrets.randbelow(MAX_JOB_ID) + 1
            job = Job(
                id=job_id,
                seq=self._submits,
                api_key_id=new.api_key_id,
                file_prefix=new.file_prefix,
                state=JobState.QUEUED,
                created_at=now,
                request_sha256=new.request_sha256,
                meta=new.meta,
                track_id=new.track_id,
                webhook_url=new.webhook_url,
                idempotency_key=new.idempotency_key,
            )
            self._jobs[job_id] = job
            self._requests[job_id] = new.request
            self._minutes[key.id] = (minute_of(now), use.this_minute + 1)
            self._months[key.id, month_of(now)] += 1
            return Submitted(job, is_new=True, queue_position=self.queue_position(job), rate=rate)

    def _find_by_idempotency_key(self, new: NewJob) -> Job | None:
        """The job that this submit repeats."""
        if new.idempotency_key is None:
            return None
        for job in self._jobs.values():
            if (job.api_key_id, job.idempotency_key) == (new.api_key_id, new.idempotency_key):
                if job.request_sha256 != new.request_sha256:
                    raise InvalidRequest("Idempotency-Key was used before with another body")
                return job
        return None

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or api_key_id not in (None, job.api_key_id):
                raise NotFound(f"There is no call with the id {job_id}.")
            return job

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        with self._lock:
            return [self._jobs[job_id] for job_id in dict.fromkeys(job_ids) if job_id in self._jobs]

    def request_of(self, job_id: int) -> bytes:
        with self._lock:
            if job_id not in self._requests:
                raise NotFound(f"There is no request of a call with the id {job_id}.")
            return self._requests[job_id]

    def list_jobs(
        self,
        *,
        api_key_id: str | None,
        state: JobState | None = None,
        track_id: str | int | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        with self._lock:
            jobs = [
                job
                for job in self._jobs.values()
                if api_key_id in (None, job.api_key_id)
                and state in (None, job.state)
                and (track_id is None or (job.track_id is not None and str(job.track_id) == str(track_id)))
                and (before_seq is None or job.seq < before_seq)
            ]
            return sorted(jobs, key=lambda job: -job.seq)[:limit]

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._lock:
            job = self.get(job_id, api_key_id=api_key_id)
            if not job.state.is_final:
                raise InvalidRequest(f"The call {job_id} is {job.state}; cancel it before deleting it.")
            for task in self.tasks_of(job_id):
                del self._tasks[task.id], self._planned_at[task.id]
                self._attempts.pop(task.id, None)
            return self._jobs.pop(job_id)

    def queue_position(self, job: Job) -> int:
        with self._lock:
            if job.state is not JobState.QUEUED:
                return 0
            return sum(other.state is JobState.QUEUED and other.seq <= job.seq for other in self._jobs.values())

    def timings(self) -> Timings:
        with self._lock:
            last = [result for result in self._results if result.state is JobState.SUCCESS][-TIMED_CALLS:]
            if not last:
                return Timings(0, 0.0)
            by_stage: defaultdict[str, list[float]] = defaultdict(list)
            for result in last:
                for stage, seconds in result.stage_seconds.items():
                    by_stage[stage].append(seconds)
            means = {stage: sum(values) / len(values) for stage, values in by_stage.items()}
            return Timings(len(last), sum(result.seconds for result in last) / len(last), means)

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._lock:
            job = self.get(job_id, api_key_id=api_key_id)
            if job.state is JobState.QUEUED:
                return self._end(job, CANCELLED)
            if job.state is JobState.RUNNING:
                return self._put(replace(job, is_cancel_requested=True))
            return job

    def cancel_queued(self, *, api_key_id: str) -> int:
        with self._lock:
            jobs = [job for job in self._jobs.values() if (job.api_key_id, job.state) == (api_key_id, JobState.QUEUED)]
            for job in jobs:
                self._end(job, CANCELLED)
            return len(jobs)

    def claim(self, worker_id: str, *, lease_s: float, job_id: int | None = None) -> Job | None:
        with self._lock:
            now = self._clock()
            for job in sorted(self._jobs.values(), key=lambda job: (job.state is JobState.QUEUED, job.seq)):
                if job_id not in (None, job.id) or job.state.is_final:
                    continue
                if job.state is JobState.RUNNING and not self._is_lease_over(job, now, lease_s):
                    continue
                if job.state is JobState.RUNNING and job.is_cancel_requested:
                    self._end(job, CANCELLED)
                elif job.state is JobState.RUNNING and job.attempts >= MAX_ATTEMPTS:
                    self._end(job, GIVEN_UP)
                elif job.state is JobState.RUNNING or self._may_run_more(job.api_key_id):
                    return self._put(
                        replace(
                            job,
                            state=JobState.RUNNING,
                            worker_id=worker_id,
                            attempts=job.attempts + 1,
                            lease_expires_at=now + lease_s,
                            started_at=now if job.started_at is None else job.started_at,
                        )
                    )
            return None

    def _is_lease_over(self, job: Job, now: float, lease_s: float) -> bool:
        """Whether a running job has lost its worker. A lease from before the clock stepped back is cut to `lease_s`."""
        expires_at = job.lease_expires_at or 0.0
        if expires_at > now + 2 * lease_s:
            self._put(replace(job, lease_expires_at=now + lease_s))
        return expires_at <= now

    def _may_run_more(self, api_key_id: str) -> bool:
        running = self.key_use(api_key_id).running
        limit = self._keys[api_key_id].limits.running
        return limit is None or running < limit

    def renew(self, lease: Lease, *, lease_s: float) -> bool:
        with self._lock:
            job = self._put(replace(self._held(lease), lease_expires_at=self._clock() + lease_s))
            return job.is_cancel_requested

    def report(self, lease: Lease, progress: Progress) -> None:
        with self._lock:
            self._put(replace(self._held(lease), progress=progress))

    def requeue(self, lease: Lease) -> Job:
        with self._lock:
            job = self._held(lease)
            if job.is_cancel_requested:
                return self._end(job, CANCELLED)
            return self._put(
                replace(job, state=JobState.QUEUED, attempts=job.attempts - 1, worker_id=None, lease_expires_at=None)
            )

    def expire_leases(self, worker_id: str) -> int:
        with self._lock:
            self._workers.pop(worker_id, None)
            held = [job for job in self._jobs.values() if (job.state, job.worker_id) == (JobState.RUNNING, worker_id)]
            for job in held:
                self._put(replace(job, lease_expires_at=0.0))
            return len(held)

    def complete(self, lease: Lease, result: JobResult) -> Job:
        with self._lock:
            job = self._jobs.get(lease.job_id)
            if job is not None and job.state.is_final and job.worker_id and job.lease == lease:
                return job
            return self._end(self._held(lease), result)

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        with self._lock:
            job = self.get(job_id, api_key_id=None)
            if job.state is not result.state:
                raise InvalidRequest(f"The call {job_id} ended as {job.state}, not as {result.state}.")
            self._jobs[job_id] = replace(job, result=result)
            return self._jobs[job_id]

    def expired(self, *, limit: int = 100) -> list[Job]:
        with self._lock:
            now = self._clock()
            pending = {task.job_id for task in self._tasks.values() if task.state == "pending"}
            jobs = [
                job
                for job in self._jobs.values()
                if job.expires_at is not None and job.expires_at <= now and job.id not in pending
            ]
            return sorted(jobs, key=lambda job: job.seq)[:limit]

    def metrics(self) -> StoreMetrics:
        with self._lock:
            now = self._clock()
            queued_at = [job.created_at for job in self._jobs.values() if job.state is JobState.QUEUED]
            seconds: Counter[str] = Counter()
            runs: Counter[str] = Counter()
            for result in self._results:
                seconds.update(result.stage_seconds)
                runs.update(list(result.stage_seconds))
            return StoreMetrics(
                submitted=self._submits,
                ended=Counter(str(result.state) for result in self._results),
                states=Counter(str(job.state) for job in self._jobs.values()),
                oldest_queued_s=max([0.0, *(now - at for at in queued_at)]),
                stage_seconds=seconds,
                stage_runs=runs,
                gpu_seconds=sum(result.gpu_seconds for result in self._results),
                task_attempts=dict(self._task_attempts),
                tasks_pending=Counter(task.kind for task in self._tasks.values() if task.state == "pending"),
            )

    def _held(self, lease: Lease) -> Job:
        """The job of a lease that still holds."""
        job = self._jobs.get(lease.job_id)
        if job is None or job.state is not JobState.RUNNING or job.lease != lease:
            raise LeaseLost(f"job {lease.job_id} is no longer held by {lease.worker_id}, attempt {lease.attempt}")
        return job

    def _put(self, job: Job) -> Job:
        before = self._jobs[job.id].state
        assert job.state is before or may_follow(before, job.state), f"{before} -> {job.state}"
        self._jobs[job.id] = job
        return job

    def _end(self, job: Job, result: JobResult) -> Job:
        """The final transition with everything that goes with it."""
        now = self._clock()
        ended = self._put(
            replace(
                job,
                state=result.state,
                result=result,
                finished_at=now,
                expires_at=now + self._record_lifetime_s,
                lease_expires_at=None,
                progress=Progress("", 100) if result.state is JobState.SUCCESS else job.progress,
            )
        )
        del self._requests[job.id]
        if result.state is not JobState.SUCCESS:
            self._months[job.api_key_id, month_of(job.created_at)] -= 1
        if job.webhook_url is not None:
            self._add_task(ended, "webhook", job.webhook_url, now, self._webhook_window_s)
        if result.upload_warning:
            self._add_task(ended, "upload", "", now, self._upload_window_s)
        self._results.append(result)
        self._usage.append(
            UsageRow(
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
        )
        return ended

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

    def _key(self, api_key_id: str) -> ApiKey:
        if api_key_id not in self._keys:
            raise NotFound(f"There is no key with the id {api_key_id}.")
        return self._keys[api_key_id]

    def key_use(self, api_key_id: str) -> KeyUse:
        with self._lock:
            now = self._clock()
            minute, calls = self._minutes.get(api_key_id, (0, 0))
            states = Counter(job.state for job in self._jobs.values() if job.api_key_id == api_key_id)
            return KeyUse(
                queued=states[JobState.QUEUED],
                running=states[JobState.RUNNING],
                this_minute=calls if minute == minute_of(now) else 0,
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

    # ---- after-tasks ----

    def _add_task(self, job: Job, kind: TaskKind, target: str, now: float, window_s: float) -> None:
        task = OutboxTask(
            id=f"msg_{uuid.uuid4().hex}",
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
        self._tasks[task.id] = task
        self._planned_at[task.id] = now

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        with self._lock:
            now = self._clock()
            due = [
                task
                for task in self._tasks.values()
                if task.kind == kind and task.state == "pending" and self._is_due(task, now)
            ]
            if not due:
                return None
            task = min(due, key=lambda task: task.next_attempt_at)
            self._tasks[task.id] = replace(task, next_attempt_at=now + min(claim_s, MAX_PAUSE_S))
            self._planned_at[task.id] = now
            return self._tasks[task.id]

    def _is_due(self, task: OutboxTask, now: float) -> bool:
        return is_due(task.next_attempt_at, scheduled_at=self._planned_at[task.id], now=now)

    def settle_task(
        self, task: OutboxTask, *, status: int | None, error: str, seconds: float, retry_in_s: float | None
    ) -> OutboxTask:
        with self._lock:
            now = self._clock()
            if task.id not in self._tasks:
                raise NotFound(f"There is no task {task.id}.")
            known = self._tasks[task.id]
            tried = replace(known, attempts=known.attempts + 1, last_status=status, last_error=error)
            if not error:
                tried = replace(tried, state="done", done_at=now)
            elif retry_in_s is None or now + retry_in_s > known.give_up_at:
                tried = replace(tried, state="given_up", done_at=now)
            else:
                tried = replace(tried, state="pending", next_attempt_at=now + min(retry_in_s, MAX_PAUSE_S))
            self._tasks[task.id] = tried
            self._planned_at[task.id] = now
            tries = self._attempts[task.id]
            tries.append(TaskAttempt(task.id, len(tries) + 1, now, status, error, seconds))
            self._task_attempts[task.kind, "error" if error else "ok"] += 1
            return tried

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        with self._lock:
            return [task for task in self._tasks.values() if task.job_id == job_id]

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        with self._lock:
            return list(self._attempts.get(task_id, ()))

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        with self._lock:
            self.get(job_id, api_key_id=api_key_id)
            for task in self.tasks_of(job_id):
                if task.kind == "webhook":
                    now = self._clock()
                    self._tasks[task.id] = replace(
                        task,
                        state="pending",
                        attempts=0,
                        next_attempt_at=now,
                        give_up_at=now + self._webhook_window_s,
                        done_at=None,
                    )
                    self._planned_at[task.id] = now
                    return self._tasks[task.id]
            raise InvalidRequest(f"The call {job_id} has not ended, or has no webhook.")

    # ---- ledger ----

    def usage_rows(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None, limit: int = 10_000
    ) -> list[UsageRow]:
        with self._lock:
            rows = [
                row
                for row in self._usage
                if api_key_id in (None, row.api_key_id)
                and (since is None or row.finished_at >= since)
                and (until is None or row.finished_at < until)
            ]
            return rows[:limit]

    def usage_days(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None
    ) -> list[UsageDay]:
        return sum_by_day(self.usage_rows(api_key_id=api_key_id, since=since, until=until, limit=2**31))

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
