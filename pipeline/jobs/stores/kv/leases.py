"""Heartbeats, and the search for a job to claim.

A worker sends a heartbeat every second. It decides nothing, so it is not a commit but a plain write to an entry that
only this worker writes. It is valid as long as the head's lease has the epoch that the entry names. Every decision
about a lease (a claim, a requeue, a completion, a heartbeat in the second half of the lease) is a commit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from pipeline.jobs import transitions
from pipeline.jobs.model import Job, JobState, Lease
from pipeline.jobs.stores.kv.documents import apply, may_have_heartbeat, save
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.stores.kv.state import HEARTBEAT, Head, Heartbeat, OpenJob, heartbeat_key
from pipeline.jobs.stores.kv.transaction import Snapshot, Transaction
from pipeline.jobs.transitions import Retention


def with_heartbeats(snapshot: Snapshot, open_jobs: Iterable[OpenJob]) -> list[Job]:
    """Jobs that have not ended, with lease and progress as their workers last wrote them."""
    jobs = list(open_jobs)
    running = [found for found in jobs if may_have_heartbeat(found.job)]
    heartbeats = snapshot.entries.get_many([heartbeat_key(found.job.id, found.lease_epoch) for found in running])
    updated = {
        found.job.id: replace(found.job, **vars(HEARTBEAT.from_json(heartbeat)))
        for found, heartbeat in zip(running, heartbeats, strict=True)
        if heartbeat is not None
    }
    return [updated.get(found.job.id, found.job) for found in jobs]


def with_heartbeat(snapshot: Snapshot, open_job: OpenJob) -> Job:
    """As `with_heartbeats`, for one job."""
    return with_heartbeats(snapshot, [open_job])[0]


def held(head: Head, lease: Lease) -> OpenJob:
    """The job of a valid lease.

    Raises:
        LeaseLost: the lease is not valid.
    """
    found = head.open.get(lease.job_id)
    transitions.held(None if found is None else found.job, lease)
    assert found is not None
    return found


class HeartbeatWriter:
    """Writes the heartbeats of this process's workers, and remembers the last of each lease."""

    def __init__(self, entries: KeyValues) -> None:
        self._entries = entries
        self._last: dict[Lease, tuple[int, Heartbeat]] = {}
        self._unwritten: dict[Lease, str] = {}

    def begin(self, lease: Lease, lease_epoch: int) -> None:
        """Note that a worker of this process was given a lease, under which nobody has written a heartbeat."""
        self._unwritten[lease] = heartbeat_key(lease.job_id, lease_epoch)

    def may_exist(self, key: str) -> bool:
        """Whether there may be an entry; False only for heartbeats of this process that it has not written."""
        return key not in tuple(self._unwritten.values())  # a copy: other threads begin and end

    def last(self, lease: Lease, open_job: OpenJob) -> Heartbeat:
        """The last heartbeat of the current epoch; without one, what the head says."""
        lease_epoch, heartbeat = self._last.get(lease, (-1, None))
        if heartbeat is not None and lease_epoch == open_job.lease_epoch:
            return heartbeat
        job, key = open_job.job, heartbeat_key(open_job.job.id, open_job.lease_epoch)
        found = self._entries.get(key) if self.may_exist(key) else None
        return Heartbeat(job.lease_expires_at or 0.0, job.progress) if found is None else HEARTBEAT.from_json(found)

    def write(self, lease: Lease, open_job: OpenJob, heartbeat: Heartbeat) -> None:
        """Write a heartbeat of the current epoch."""
        self._unwritten.pop(lease, None)  # before: a put that fails may have taken effect
        self._entries.put(heartbeat_key(open_job.job.id, open_job.lease_epoch), HEARTBEAT.to_json(heartbeat))
        self._last[lease] = (open_job.lease_epoch, heartbeat)

    def forget(self, lease: Lease) -> None:
        """Forget a lease that has ended."""
        self._last.pop(lease, None)
        self._unwritten.pop(lease, None)


def claim(
    transaction: Transaction,
    worker_id: str,
    *,
    now: float,
    lease_s: float,
    job_id: int | None,
    engines: Collection[str] | None,
    retention: Retention,
) -> Job | None:
    """A job for a worker: one whose lease has expired, else the oldest queued one whose key may run more.

    Args:
        job_id: this job or none; from a passive holder it is taken over.
        engines: those of the worker; None is every engine.
    """
    head = transaction.head
    open_jobs = sorted(head.open.values(), key=lambda found: found.job.seq)
    candidates = [found for found in open_jobs if job_id in (None, found.job.id)]
    if job_id is not None and candidates and transitions.waits_for_call(job := candidates[0].job):
        return save(transaction, job, transitions.transferred(job, worker_id, now=now, lease_s=lease_s))
    running = [found for found in candidates if _may_be_due(found.job, now, lease_s)]
    for job in with_heartbeats(transaction, running):
        decision = transitions.lease_checked(job, worker_id, now=now, lease_s=lease_s, engines=engines)
        after = apply(transaction, job, decision, now=now, retention=retention)
        if transitions.is_claim(job, decision):
            return after
    for job in (found.job for found in candidates if found.job.state is JobState.QUEUED):
        account = head.accounts[job.api_key_id]
        if transitions.has_engine(job, engines) and transitions.may_run_more(
            account.key.limits, running=account.running
        ):
            return save(transaction, job, transitions.claimed(job, worker_id, now=now, lease_s=lease_s))
    return None


def _may_be_due(job: Job, now: float, lease_s: float) -> bool:
    """Whether the heartbeat must be read to tell; heartbeats within the head's epoch only extend its lease."""
    expires_at = job.lease_expires_at or 0.0
    return job.state is JobState.RUNNING and not now < expires_at <= now + lease_s
