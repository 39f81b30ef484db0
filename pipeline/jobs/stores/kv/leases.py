"""Heartbeats beside the head, and what a worker finds to do.

A heartbeat comes every second and decides nothing, so it is an entry of its own with one writer, the worker. It counts
as long as the head's lease has the lease_epoch that it names. Whatever decides on a lease (taking up, handing back, result, a
heartbeat in the second half of its lease) is a transaction on the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from pipeline.errors import LeaseLost
from pipeline.jobs.limits import CANCELLED, GIVEN_UP
from pipeline.jobs.model import MAX_ATTEMPTS, Job, JobResult, JobState, Lease
from pipeline.jobs.stores.kv.state import HEARTBEAT, Head, OpenJob, heartbeat_key
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction


def with_heartbeats(snapshot: Snapshot, open_jobs: Iterable[OpenJob]) -> list[Job]:
    """Jobs that have not ended, with lease and progress as their workers wrote them last."""
    jobs = list(open_jobs)
    running = [kept for kept in jobs if kept.job.state is JobState.RUNNING]
    heartbeats = snapshot.entries.get_many([heartbeat_key(kept.job.id, kept.lease_epoch) for kept in running])
    beaten = {
        kept.job.id: replace(kept.job, **vars(HEARTBEAT.from_json(beat)))
        for kept, beat in zip(running, heartbeats, strict=True)
        if beat is not None
    }
    return [beaten.get(kept.job.id, kept.job) for kept in jobs]


def with_heartbeat(snapshot: Snapshot, kept: OpenJob) -> Job:
    """The same of one."""
    return with_heartbeats(snapshot, [kept])[0]


def held(head: Head, lease: Lease) -> OpenJob:
    """The job of a lease that still holds.

    Raises:
        LeaseLost: it holds no more.
    """
    kept = head.open.get(lease.job_id)
    if kept is None or kept.job.state is not JobState.RUNNING or kept.job.lease != lease:
        raise LeaseLost(f"job {lease.job_id} is no longer held by {lease.worker_id}, attempt {lease.attempt}")
    return kept


def set_lease(transaction: Transaction, job: Job) -> Job:
    """Write a job whose lease the head sets from here on: heartbeats written so far are void."""
    kept = transaction.head.open[job.id]
    transaction.forget(heartbeat_key(job.id, kept.lease_epoch))
    transaction.head.open[job.id] = replace(kept, job=job, lease_epoch=kept.lease_epoch + 1)
    return job


def claim(
    transaction: Transaction,
    worker_id: str,
    *,
    now: float,
    lease_s: float,
    job_id: int | None,
    end: Callable[[Job, JobResult], object],
) -> Job | None:
    """A job for a worker: one whose lease is over, else the oldest queued one whose key may run more.

    Args:
        job_id: this one or none.
        end: ends a job that was given up or cancelled.
    """
    head = transaction.head
    kept_jobs = sorted(head.open.values(), key=lambda kept: kept.job.seq)
    some = [kept for kept in kept_jobs if job_id in (None, kept.job.id)]
    running = [kept for kept in some if kept.job.state is JobState.RUNNING and _may_be_over(kept.job, now, lease_s)]
    for job in with_heartbeats(transaction, running):
        expires_at = job.lease_expires_at or 0.0
        if expires_at > now + 2 * lease_s:  # written before the clock stepped back: let it run out from here
            set_lease(transaction, replace(job, lease_expires_at=now + lease_s))
        elif expires_at > now:
            continue
        elif job.is_cancel_requested:
            end(job, CANCELLED)
        elif job.attempts >= MAX_ATTEMPTS:
            end(job, GIVEN_UP)
        else:
            return _take_up(transaction, job, worker_id, now=now, lease_s=lease_s)
    for job in (kept.job for kept in some if kept.job.state is JobState.QUEUED):
        account = head.accounts[job.api_key_id]
        limit = account.key.limits.running
        if limit is None or account.running < limit:
            account.queued -= 1
            account.running += 1
            started_at = now if job.started_at is None else job.started_at
            first = replace(job, state=JobState.RUNNING, started_at=started_at)
            return _take_up(transaction, first, worker_id, now=now, lease_s=lease_s)
    return None


def _take_up(transaction: Transaction, job: Job, worker_id: str, *, now: float, lease_s: float) -> Job:
    taken = replace(job, worker_id=worker_id, attempts=job.attempts + 1, lease_expires_at=now + lease_s)
    return set_lease(transaction, taken)


def _may_be_over(job: Job, now: float, lease_s: float) -> bool:
    """Whether a running job's heartbeat must be looked at; a heartbeat of the head's lease_epoch only lengthens its lease."""
    expires_at = job.lease_expires_at or 0.0
    return not now < expires_at <= now + lease_s
