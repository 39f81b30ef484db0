"""The protocols of the store: jobs, API keys, outbox, ledger, workers. Knows no database.

Five small protocols, because most users need one of them, and `Store`, which is all five. `pipeline.jobs.stores.sql` is
for SQLite and Postgres, `pipeline.jobs.stores.kv` for key-value maps, `tests.reference.memory_store` for tests; the
tests in tests/jobs/stores run against all of them. Every method is one transaction, and safe to call from several
threads. Where a method takes `api_key_id`, a job of another key reads as missing; None is the operator, who sees all.

Any method may raise `StoreUnavailable`: nothing was changed, and the same method may be called again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from pipeline.jobs.model import (
    ApiKey,
    AttemptResult,
    Job,
    JobFilter,
    JobResult,
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


class JobStore(Protocol):
    """Jobs from submit to their one final state.

    Methods that take a `job_id` and an `api_key_id` raise `NotFound` where there is no such job for this key. Methods
    that take a lease raise `LeaseLost` where the job ended or is another worker's.
    """

    def submit(self, new: NewJob) -> Submitted:
        """Queue a job, if its key's limits allow it.

        A repeated idempotency key returns the first job and counts towards no limit.

        Raises:
            IdempotencyKeyReused: the idempotency key was used with another body.
            RateLimited: the key's queue is full, or its minute is.
            QuotaSpent: the key's monthly quota is used up.
            Unauthorized: the key was revoked, or does not exist.
        """
        ...

    def record(self, new: NewJob, result: JobResult) -> Job:
        """Record a job that has ended, as test keys get them: with its webhook, without limits, counters and ledger.

        A repeated idempotency key returns the first job.

        Raises:
            InvalidRequest: the idempotency key was used with another body.
        """
        ...

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        """The job as it is."""
        ...

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        """The jobs that exist, in any order; one query for all."""
        ...

    def ended(self, job_ids: Sequence[int]) -> list[Job]:
        """Those of the jobs that have ended, in any order: one query, the cheapest about unfinished jobs."""
        ...

    def request_of(self, job_id: int) -> bytes:
        """The job's request as it was submitted.

        Raises:
            NotFound: there is no such job, or it has ended and its request was deleted; a job that failed through no
                fault of its caller keeps it for a while.
        """
        ...

    def list_jobs(self, filters: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> list[Job]:
        """Jobs, newest first; `before_seq` is the `seq` of the last job of the page before."""
        ...

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        """Delete an ended job with its tasks and attempts; the ledger stays. The caller deletes the files.

        Raises:
            InvalidRequest: it has not ended.
        """
        ...

    def queue_position(self, job: Job) -> int:
        """How many jobs are claimed before this one, itself included; 0 unless queued."""
        ...

    def timings(self) -> Timings:
        """Means over the last few successful jobs, for the estimate of a wait."""
        ...

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        """Cancel a queued job at once, request a running one to stop; an ended one stays as it is."""
        ...

    def cancel_queued(self, *, api_key_id: str) -> int:
        """Cancel all queued jobs of a key; returns how many."""
        ...

    def claim(
        self, worker_id: str, *, lease_s: float, job_id: int | None = None, engines: Collection[str] | None = None
    ) -> Job | None:
        """Claim a job: one whose lease has expired, else the oldest queued one whose key may run more.

        A job whose lease expired in its last attempt fails, and one with a cancellation request is cancelled.

        Args:
            lease_s: how long the worker holds the job without a `renew`.
            job_id: claim this job or none, for deployments that dispatch jobs themselves. From a passive holder it is
                taken over at once, in the same attempt.
            engines: leave jobs that need another engine to other workers; None is every engine.

        Returns:
            The job, now running, or None where there is nothing to do.
        """
        ...

    def renew(self, lease: Lease, *, lease_s: float, progress: Progress | None = None) -> bool:
        """Heartbeat: extend the lease to `lease_s` from now; returns whether a cancellation was requested.

        Args:
            progress: recorded too, as by `report`; None where it has not changed.
        """
        ...

    def report(self, lease: Lease, progress: Progress) -> None:
        """Record the progress of the job."""
        ...

    def requeue(self, lease: Lease) -> Job:
        """Queue the job again at its old position; the attempt does not count. For a graceful stop."""
        ...

    def transfer(self, lease: Lease, *, worker_id: str, lease_s: float, progress: Progress | None = None) -> Job:
        """Give the job to another holder, in the same attempt; the lease of the caller is void afterwards.

        Args:
            worker_id: the new holder.
            lease_s: how long it holds the job without a `renew`.
            progress: recorded too; None where it has not changed.

        Returns:
            The job, still running, with its new lease.
        """
        ...

    def expire_leases(self, worker_id: str) -> int:
        """Expire the leases of a worker that is known to be dead; returns how many."""
        ...

    def complete(self, lease: Lease, result: JobResult) -> Job:
        """End the job: state, outbox and ledger in one transaction. A repetition under one lease changes nothing.

        Raises:
            LeaseLost: the job is another worker's, or ended under another lease.
        """
        ...

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        """Replace artifacts and warnings of an ended job after a late upload; its state must stay the same.

        Raises:
            NotFound: it was deleted.
            InvalidRequest: the states differ.
        """
        ...

    def expired(self, *, limit: int = 100) -> list[Job]:
        """Ended jobs whose retention has ended and whose tasks are settled, for the cleaner to `delete`."""
        ...

    def expire_requests(self) -> int:
        """Delete requests of failed jobs that were kept long enough; returns how many."""
        ...

    def metrics(self) -> StoreMetrics:
        """Counters and gauges for `/metrics`."""
        ...


class KeyStore(Protocol):
    """API keys, their limits, and the bucket of each key. A key that does not exist raises `NotFound`."""

    def add_key(self, key: ApiKey) -> ApiKey:
        """Add a key; one with the same SHA-256 that exists is returned as it is.

        Raises:
            InvalidRequest: its name is taken by another key in use.
        """
        ...

    def find_key(self, sha256: str) -> ApiKey | None:
        """The key with this hash, revoked ones included."""
        ...

    def get_key(self, api_key_id: str, *, max_age_s: float = 0.0) -> ApiKey:
        """The key with this id, revoked ones included.

        Args:
            max_age_s: accept the key as it was so long ago.
        """
        ...

    def list_keys(self) -> list[ApiKey]:
        """All keys, oldest first."""
        ...

    def revoke_key(self, api_key_id: str) -> ApiKey:
        """Revoke a key; its jobs continue."""
        ...

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        """Replace a key's limits from now on."""
        ...

    def rotate_secret(self, api_key_id: str) -> ApiKey:
        """Give a key its next webhook secret."""
        ...

    def key_use(self, api_key_id: str) -> KeyUse:
        """What the key has in use now."""
        ...

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        """Save the key's bucket, encrypted by the caller; the store cannot read it."""
        ...

    def s3_of(self, api_key_id: str) -> bytes | None:
        """What `save_s3` saved last."""
        ...

    def reset_s3(self, api_key_id: str) -> bool:
        """Delete the key's bucket; returns whether there was one."""
        ...


class Outbox(Protocol):
    """Work that is retried after a job's end until it succeeds: webhooks and late uploads."""

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        """The task of this kind that has been due longest, hidden from others for `claim_s`; None if none is due.

        The task of a sender that dies is due again when the claim expires.
        """
        ...

    def settle_task(self, task: OutboxTask, result: AttemptResult) -> OutboxTask:
        """Record one attempt of a claimed task.

        Raises:
            NotFound: the job was deleted meanwhile.
        """
        ...

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        """The tasks of a job; none before its end."""
        ...

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        """Every attempt at a task, oldest first."""
        ...

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        """Make the job's webhook due now, under its id and with a fresh set of attempts.

        Raises:
            NotFound: there is no such job for this key.
            InvalidRequest: it has not ended, or has no webhook.
        """
        ...


class Ledger(Protocol):
    """Ended jobs; the ledger outlives their records."""

    def usage_rows(self, filters: LedgerFilter, *, limit: int = 10_000) -> list[UsageRow]:
        """Ended jobs, oldest first."""
        ...

    def usage_days(self, filters: LedgerFilter) -> list[UsageDay]:
        """The same by key and day (UTC), oldest first."""
        ...


class WorkerRegistry(Protocol):
    """The running workers, and requests to restart them."""

    def heartbeat_worker(self, worker: WorkerRecord) -> None:
        """Record a worker's heartbeat; the store sets `seen_at`."""
        ...

    def deregister_worker(self, worker_id: str) -> None:
        """Delete the record of a worker that has ended."""
        ...

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        """Workers with a recent heartbeat."""
        ...

    def request_restart(self) -> int:
        """Request that every worker running now ends after its current job; returns the number of requests so far."""
        ...

    def restarts_requested(self) -> int:
        """The number of requests so far: a worker that started under a smaller number ends when idle."""
        ...


class Store(JobStore, KeyStore, Outbox, Ledger, WorkerRegistry, Protocol):
    """Everything that the service stores."""

    def maintain(self, backup_dir: Path) -> None:
        """Run the upkeep that is due. Cheap when called often; nothing where the database maintains itself.

        Args:
            backup_dir: a durable folder. A store whose entries may be lost writes its backup there once a day.
        """
        ...

    def close(self) -> None:
        """Close connections; the store cannot be used afterwards."""
        ...
