"""What a store of jobs, keys, outbox and usage must be able to do. Knows no database.

Four small protocols, because most users need one of them, and `Store`, which is all four. `tests.reference.memory_store` is the
in-memory twin, `pipeline.jobs.stores.sql.store` the one for SQLite and Postgres, `pipeline.jobs.stores.kv.store` the one for key-value maps;
tests/jobs holds all to one contract. Every method is one atomic step; all are safe to call from several threads. Where
a method takes `api_key_id`, a job of another key reads the same as one that does not exist; None is the operator, who sees
all.

Any method may raise `StoreUnavailable`: nothing was changed, and the same call may be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.jobs.model import (
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
)


class JobStore(Protocol):
    """Jobs from submit to their one final state."""

    def submit(self, new: NewJob) -> Submitted:
        """Record a job as queued, after its key's limits were checked in the same step.

        A repeated idempotency key gives the first job and costs nothing.

        Raises:
            InvalidRequest: the idempotency key was used with another body.
            RateLimited: the key's queue is full, or its minute is.
            QuotaSpent: the key's month is used up.
            Unauthorized: the key was revoked meanwhile.
        """
        ...

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        """The job as it stands.

        Raises:
            NotFound: there is none for this key.
        """
        ...

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        """Those of the jobs that exist, in any order: one query, for whoever waits on many."""
        ...

    def request_of(self, job_id: int) -> bytes:
        """The job's request as it was submitted.

        Raises:
            NotFound: there is no such job, or it has ended and its request was dropped.
        """
        ...

    def list_jobs(
        self,
        *,
        api_key_id: str | None,
        state: JobState | None = None,
        track_id: str | int | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Jobs, newest first.

        Args:
            before_seq: the `seq` of the last job of the page before.
            limit: at most so many.
        """
        ...

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        """Forget an ended job, its outbox and its attempts; the ledger stays. The caller removes the files.

        Raises:
            NotFound: there is none for this key.
            InvalidRequest: it has not ended.
        """
        ...

    def queue_position(self, job: Job) -> int:
        """How many jobs are taken up before this one, itself included; 0 unless queued."""
        ...

    def timings(self) -> Timings:
        """Means over the last few successful jobs, for the estimate of a wait."""
        ...

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        """Cancel a queued job at once, ask a running one to stop; an ended one stays as it is.

        Raises:
            NotFound: there is none for this key.
        """
        ...

    def cancel_queued(self, *, api_key_id: str) -> int:
        """Cancel all queued jobs of a key; returns how many."""
        ...

    def claim(self, worker_id: str, *, lease_s: float, job_id: int | None = None) -> Job | None:
        """Take up a job: one whose lease expired, else the oldest queued one whose key may run more.

        A job whose lease expired at its last attempt is failed on the way, one that was to be cancelled is cancelled.

        Args:
            lease_s: how long the job is this worker's without a `renew`.
            job_id: take this one or none, for deployments that dispatch jobs themselves.

        Returns:
            The job, now running, or None where there is nothing to do.
        """
        ...

    def renew(self, lease: Lease, *, lease_s: float) -> bool:
        """Heartbeat: keep the job for another `lease_s`; returns whether the caller asked for it to stop.

        Raises:
            LeaseLost: the job ended or is another worker's.
        """
        ...

    def report(self, lease: Lease, progress: Progress) -> None:
        """Record how far the job is.

        Raises:
            LeaseLost: the job ended or is another worker's.
        """
        ...

    def requeue(self, lease: Lease) -> Job:
        """Queue the job again at its old place, for another worker; the attempt does not count. For a graceful stop.

        Raises:
            LeaseLost: the job ended or is another worker's.
        """
        ...

    def expire_leases(self, worker_id: str) -> int:
        """Let the leases of a worker that is known to be dead expire now; returns how many."""
        ...

    def complete(self, lease: Lease, result: JobResult) -> Job:
        """The one final transition: state, outbox and ledger in one step. Repeating it under one lease is harmless.

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
        """Ended jobs whose retention is over and whose after-tasks are settled, for the cleaner to `delete`."""
        ...

    def metrics(self) -> StoreMetrics:
        """Counters and gauges for `/metrics`."""
        ...


class KeyStore(Protocol):
    """Keys, their limits, and what belongs to a key alone."""

    def add_key(self, key: ApiKey) -> ApiKey:
        """Keep a key; one with the same SHA-256 that exists is given back as it is.

        Raises:
            InvalidRequest: its name is taken by another key in use.
        """
        ...

    def find_key(self, sha256: str) -> ApiKey | None:
        """The key with this hash, revoked ones included."""
        ...

    def list_keys(self) -> list[ApiKey]:
        """All keys, oldest first."""
        ...

    def revoke_key(self, api_key_id: str) -> ApiKey:
        """End a key; its jobs run on.

        Raises:
            NotFound: there is no such key.
        """
        ...

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        """Replace a key's limits from now on.

        Raises:
            NotFound: there is no such key.
        """
        ...

    def key_use(self, api_key_id: str) -> KeyUse:
        """What the key has in use now."""
        ...

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        """Keep the key's bucket, already encrypted by the caller; the store never sees what is inside."""
        ...

    def s3_of(self, api_key_id: str) -> bytes | None:
        """What `save_s3` kept last."""
        ...

    def reset_s3(self, api_key_id: str) -> bool:
        """Forget the key's bucket; returns whether there was one."""
        ...


class Outbox(Protocol):
    """What is to be done after a job's end until it works: webhooks and late uploads."""

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        """The task of this kind that is due longest, hidden from others for `claim_s`; None with nothing due.

        A sender that dies lets its claim run out, and the task is due again.
        """
        ...

    def settle_task(
        self, task: OutboxTask, *, status: int | None, error: str, seconds: float, retry_in_s: float | None
    ) -> OutboxTask:
        """Record one attempt of a claimed task.

        Args:
            status: the receiver's HTTP status, None without an answer.
            error: "" when it worked, which ends the task.
            seconds: how long the attempt took.
            retry_in_s: pause before the next attempt after an error; None gives the task up.

        Raises:
            NotFound: the job was deleted meanwhile.
        """
        ...

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        """The tasks of a job; none before its end."""
        ...

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        """Every try of a task, oldest first."""
        ...

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        """Make the job's webhook due now, under its old id and with a fresh set of attempts.

        Raises:
            NotFound: there is no such job for this key.
            InvalidRequest: it has not ended, or has no webhook.
        """
        ...


class Ledger(Protocol):
    """Ended calls, kept when the jobs' own records are gone."""

    def usage_rows(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None, limit: int = 10_000
    ) -> list[UsageRow]:
        """Ended calls with `since <= finished_at < until`, oldest first."""
        ...

    def usage_days(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None
    ) -> list[UsageDay]:
        """The same by key and day (UTC), oldest first."""
        ...


class WorkerRegistry(Protocol):
    """Which workers are there, and the wish that they start afresh."""

    def heartbeat_worker(self, worker: WorkerRecord) -> None:
        """A worker's own word; `seen_at` is set by the store."""
        ...

    def deregister_worker(self, worker_id: str) -> None:
        """The worker has ended."""
        ...

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        """Those that were heard of lately."""
        ...

    def request_restart(self) -> int:
        """Wish that every worker running now ends after its current job; returns how often this was wished."""
        ...

    def restarts_requested(self) -> int:
        """How often a restart was wished: a worker that started under a smaller number ends when idle."""
        ...


class Store(JobStore, KeyStore, Outbox, Ledger, WorkerRegistry, Protocol):
    """Everything that the service keeps."""

    def maintain(self, backup_dir: Path) -> None:
        """Run the upkeep that is due. Cheap when called often; nothing where the database maintains itself.

        Args:
            backup_dir: a durable folder. A store whose entries may be lost writes its backup there once a day, and
                restores it when it finds itself empty.
        """
        ...

    def close(self) -> None:
        """Let go of connections; the store is of no use afterwards."""
        ...
