"""The store over any key-value map with an atomic create. Knows nothing of HTTP or Modal.

One cell, the head, is changed in atomic steps (`pipeline.jobs.stores.kv.commit_log`), so every method is one transaction and every limit
is exact; documents hang on it (`pipeline.jobs.stores.kv.transaction`). A process that dies between any two operations leaves the head
as it was or as it was to become, and at worst entries that nothing leads to, which `maintain` sweeps.

One head for all keys bounds the rate: a change costs three operations in a row, changes of one process that come
together share them, and of several processes one wins at a time. Where that is too slow, the store is Postgres.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from pipeline.errors import ImageTo3DError, InvalidRequest, LeaseLost, StoreUnavailable
from pipeline.jobs.limits import CANCELLED, day_of
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
from pipeline.jobs.stores.kv import api_keys, leases, outbox, reports, submission
from pipeline.jobs.stores.kv.commit_log import CommitLog
from pipeline.jobs.stores.kv.completion import Retention, complete_job, find_document, forget_job, put_job
from pipeline.jobs.stores.kv.leases import held, with_heartbeat
from pipeline.jobs.stores.kv.maintenance import (
    MaintenanceReport,
    backup_age_s,
    restore_backup,
    run_maintenance,
    write_backup,
)
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.stores.kv.state import HEARTBEAT, WORKERS, Heartbeat, OpenJob, bucket_key, heartbeat_key
from pipeline.jobs.stores.kv.transaction import Database, Snapshot, Transaction
from pipeline.jobs.usage import sum_by_day

ESTIMATE_AGE_S = 1.0
"""Queue positions, timings and the board of workers may be what they were so long ago: they feed estimates."""
CANCELS_AT_ONCE = 100
FORGET_WORKER_S = 3600.0
MAINTENANCE_INTERVAL_S = 86400.0
"""Entries of a Modal Dict expire after 7 days without a read or a write."""

log = structlog.get_logger()


class KvStore:
    """A `Store` in a key-value map that it has for itself.

    Args:
        clock: seconds since 1970.
        record_lifetime_s: how long an ended job stays on record.
        webhook_window_s: how long a webhook is tried.
        upload_window_s: how long an upload that a bucket refused is retried; the temporary copy expires then.
        wall_clock: seconds since 1970 for the age of what was written; the machines' clocks agree within 30 s.
    """

    def __init__(
        self,
        entries: KeyValues,
        *,
        clock: Callable[[], float] = time.time,
        record_lifetime_s: float = 7 * 86400.0,
        webhook_window_s: float = 7200.0,
        upload_window_s: float = 86400.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries = entries
        self._clock = clock
        self._wall_clock = wall_clock
        self._rules = Retention(record_lifetime_s, webhook_window_s, upload_window_s)
        self._database = Database(entries, wall_clock=wall_clock)
        self._workers: CommitLog[dict[str, WorkerRecord]] = CommitLog(
            entries,
            "workers",
            encode=WORKERS.to_json,
            decode=WORKERS.from_json,
            empty=WORKERS.to_json({}),
            wall_clock=wall_clock,
        )
        self._heartbeats: dict[Lease, tuple[int, Heartbeat]] = {}

    def close(self) -> None:
        """Nothing to let go of."""

    # ---- upkeep ----

    def maintain(self, backup_dir: Path) -> None:
        if self.restore_backup(backup_dir):
            log.warning("the shared map was empty: restored keys and ledger from the backup")
        if backup_age_s(backup_dir) >= MAINTENANCE_INTERVAL_S:
            self.run_maintenance()
            self.write_backup(backup_dir)

    def run_maintenance(self) -> MaintenanceReport:
        """Vacuum, sweep, and read every entry that must not expire. Due at least every few days, best once a day.

        Raises:
            StoreUnavailable: the map is away.
        """
        self._workers.vacuum()
        return run_maintenance(self._database, today=day_of(self._clock()), wall_now=self._wall_clock())

    def write_backup(self, folder: Path) -> None:
        """Copy keys, buckets and the ledger into a folder, as JSON.

        Raises:
            StoreUnavailable: the map is away.
        """
        write_backup(self._database, folder)

    def restore_backup(self, folder: Path) -> bool:
        """Take a copy over if the map holds nothing; returns whether it did.

        Raises:
            StoreUnavailable: the map is away.
        """
        return restore_backup(self._database, folder)

    # ---- submit and read ----

    def submit(self, new: NewJob) -> Submitted:
        def prepare(snapshot: Snapshot) -> tuple[Snapshot, Job | None, int]:
            """Refuse what can be refused before its request is written, and read what the transaction will need."""
            first = submission.find_by_idempotency_key(snapshot, new)
            if first is None:
                submission.check_submit(snapshot, new, now=self._clock())
            return snapshot, first, 0 if first is not None else submission.draw_id(snapshot)

        snapshot, first, drawn_id = self._database.ask(prepare)
        if first is not None:
            return Submitted(first, is_new=False, queue_position=reports.queue_position_of(snapshot, first))
        request = submission.keep_request(self._entries, new.request, wall_now=self._wall_clock())

        def add(transaction: Transaction) -> Submitted:
            now = self._clock()
            first = submission.find_by_idempotency_key(transaction, new)
            if first is not None:
                return Submitted(first, is_new=False, queue_position=reports.queue_position_of(transaction, first))
            rate = submission.check_submit(transaction, new, now=now)
            job_id = drawn_id if submission.is_free(transaction, drawn_id) else submission.draw_id(transaction)
            job = submission.add_job(transaction, new, request, job_id, now=now)
            return Submitted(job, is_new=True, queue_position=reports.queue_position_of(transaction, job), rate=rate)

        try:
            submitted = self._database.change(add, before=snapshot)
        except StoreUnavailable:  # the job may be on record after all: its request stays, and is swept if it is not
            raise
        except ImageTo3DError:
            self._database.remove(submission.chunks_of(request))
            raise
        if not submitted.is_new:
            self._database.remove(submission.chunks_of(request))
        return submitted

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        return self._database.ask(lambda snapshot: submission.find_job(snapshot, job_id, api_key_id))

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        if not job_ids:
            return []
        return self._database.ask(lambda snapshot: reports.read_jobs(snapshot, job_ids))

    def request_of(self, job_id: int) -> bytes:
        return self._database.ask(lambda snapshot: submission.read_request(snapshot, job_id))

    def list_jobs(
        self,
        *,
        api_key_id: str | None,
        state: JobState | None = None,
        track_id: str | int | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        wanted = reports.Wanted(api_key_id, state, None if track_id is None else str(track_id))
        return self._database.ask(
            lambda snapshot: reports.list_jobs(snapshot, wanted, before_seq=before_seq, limit=limit)
        )

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        def act(transaction: Transaction) -> Job:
            job = submission.find_job(transaction, job_id, api_key_id)
            document = find_document(transaction, job_id)
            if not job.state.is_final or document is None:
                raise InvalidRequest(f"The call {job_id} is {job.state}; cancel it before deleting it.")
            forget_job(transaction, document)
            return job

        return self._database.change(act)

    def queue_position(self, job: Job) -> int:
        return self._database.ask(lambda snapshot: reports.queue_position_of(snapshot, job), max_age_s=ESTIMATE_AGE_S)

    def timings(self) -> Timings:
        return self._database.ask(reports.read_timings, max_age_s=ESTIMATE_AGE_S)

    # ---- cancel ----

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        def act(transaction: Transaction) -> Job:
            job = submission.find_job(transaction, job_id, api_key_id)
            if job.state is JobState.QUEUED:
                return self._end(transaction, job, CANCELLED)
            if job.state is JobState.RUNNING:
                kept = transaction.head.open[job_id]
                kept.job = replace(kept.job, is_cancel_requested=True)
                return replace(job, is_cancel_requested=True)
            return job

        return self._database.change(act)

    def cancel_queued(self, *, api_key_id: str) -> int:
        def act(transaction: Transaction) -> int:
            jobs = [kept.job for kept in transaction.head.open.values()]
            queued = [job for job in jobs if (job.api_key_id, job.state) == (api_key_id, JobState.QUEUED)][
                :CANCELS_AT_ONCE
            ]
            for job in queued:
                self._end(transaction, job, CANCELLED)
            return len(queued)

        cancelled = 0
        while count := self._database.change(act):
            cancelled += count
        return cancelled

    # ---- leases ----

    def claim(self, worker_id: str, *, lease_s: float, job_id: int | None = None) -> Job | None:
        def act(transaction: Transaction) -> Job | None:
            return leases.claim(
                transaction,
                worker_id,
                now=self._clock(),
                lease_s=lease_s,
                job_id=job_id,
                end=lambda job, result: self._end(transaction, job, result),
            )

        return self._database.change(act)

    def renew(self, lease: Lease, *, lease_s: float) -> bool:
        kept = self._held(lease)
        beat, now = self._heartbeat_of(lease, kept), self._clock()
        if beat.lease_expires_at - now >= lease_s / 2:
            self._write_heartbeat(lease, kept, replace(beat, lease_expires_at=now + lease_s))
            return kept.job.is_cancel_requested

        def act(transaction: Transaction) -> bool:  # others may be about to take the job up: the head decides
            job = with_heartbeat(transaction, held(transaction.head, lease))
            leases.set_lease(transaction, replace(job, lease_expires_at=self._clock() + lease_s))
            return job.is_cancel_requested

        return self._database.change(act)

    def report(self, lease: Lease, progress: Progress) -> None:
        kept = self._held(lease)
        self._write_heartbeat(lease, kept, replace(self._heartbeat_of(lease, kept), progress=progress))

    def _held(self, lease: Lease) -> OpenJob:
        try:
            return self._database.ask(lambda snapshot: held(snapshot.head, lease))
        except LeaseLost:
            self._heartbeats.pop(lease, None)
            raise

    def _heartbeat_of(self, lease: Lease, kept: OpenJob) -> Heartbeat:
        """What this worker wrote last, or what the head says where it has not written yet."""
        lease_epoch, beat = self._heartbeats.get(lease, (-1, None))
        if beat is not None and lease_epoch == kept.lease_epoch:
            return beat
        found = self._entries.get(heartbeat_key(kept.job.id, kept.lease_epoch))
        return (
            Heartbeat(kept.job.lease_expires_at or 0.0, kept.job.progress)
            if found is None
            else HEARTBEAT.from_json(found)
        )

    def _write_heartbeat(self, lease: Lease, kept: OpenJob, beat: Heartbeat) -> None:
        self._entries.put(heartbeat_key(kept.job.id, kept.lease_epoch), HEARTBEAT.to_json(beat))
        self._heartbeats[lease] = (kept.lease_epoch, beat)

    def requeue(self, lease: Lease) -> Job:
        def act(transaction: Transaction) -> Job:
            job = with_heartbeat(transaction, held(transaction.head, lease))
            if job.is_cancel_requested:
                return self._end(transaction, job, CANCELLED)
            account = transaction.head.accounts[job.api_key_id]
            account.queued += 1
            account.running -= 1
            back = replace(job, state=JobState.QUEUED, attempts=job.attempts - 1, worker_id=None, lease_expires_at=None)
            return leases.set_lease(transaction, back)

        job = self._database.change(act)
        self._heartbeats.pop(lease, None)
        return job

    def expire_leases(self, worker_id: str) -> int:
        def act(transaction: Transaction) -> int:
            mine = [kept for kept in transaction.head.open.values() if kept.job.worker_id == worker_id]
            running = [kept for kept in mine if kept.job.state is JobState.RUNNING]
            for job in leases.with_heartbeats(transaction, running):
                leases.set_lease(transaction, replace(job, lease_expires_at=0.0))
            return len(running)

        self.deregister_worker(worker_id)
        return self._database.change(act)

    # ---- ends ----

    def complete(self, lease: Lease, result: JobResult) -> Job:
        def act(transaction: Transaction) -> Job:
            if lease.job_id not in transaction.head.open:
                document = find_document(transaction, lease.job_id)
                if document is not None and document.job.worker_id and document.job.lease == lease:
                    return document.job
            job = with_heartbeat(transaction, held(transaction.head, lease))
            return self._end(transaction, job, result)

        job = self._database.change(act)
        self._heartbeats.pop(lease, None)
        return job

    def _end(self, transaction: Transaction, job: Job, result: JobResult) -> Job:
        return complete_job(transaction, job, result, now=self._clock(), rules=self._rules)

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        def act(transaction: Transaction) -> Job:
            job = submission.find_job(transaction, job_id, None)
            document = find_document(transaction, job_id)
            if job.state is not result.state or document is None:
                raise InvalidRequest(f"The call {job_id} ended as {job.state}, not as {result.state}.")
            document.job = replace(job, result=result)
            put_job(transaction, document)
            return document.job

        return self._database.change(act)

    def expired(self, *, limit: int = 100) -> list[Job]:
        return self._database.ask(lambda snapshot: reports.expired_jobs(snapshot, now=self._clock(), limit=limit))

    def metrics(self) -> StoreMetrics:
        return self._database.ask(lambda snapshot: reports.read_metrics(snapshot, now=self._clock()))

    # ---- keys ----

    def add_key(self, key: ApiKey) -> ApiKey:
        return self._database.change(lambda transaction: api_keys.add_key(transaction.head, key))

    def find_key(self, sha256: str) -> ApiKey | None:
        return self._database.ask(lambda snapshot: api_keys.find_key(snapshot.head, sha256))

    def list_keys(self) -> list[ApiKey]:
        return self._database.ask(lambda snapshot: [account.key for account in snapshot.head.accounts.values()])

    def revoke_key(self, api_key_id: str) -> ApiKey:
        return self._database.change(
            lambda transaction: api_keys.revoke_key(transaction.head, api_key_id, now=self._clock())
        )

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        return self._database.change(lambda transaction: api_keys.limit_key(transaction.head, api_key_id, limits))

    def key_use(self, api_key_id: str) -> KeyUse:
        return self._database.ask(
            lambda snapshot: api_keys.use_of(snapshot.head.accounts.get(api_key_id), now=self._clock())
        )

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        text = base64.b64encode(encrypted).decode()
        self._database.change(lambda transaction: transaction.put(bucket_key(api_key_id), text))

    def s3_of(self, api_key_id: str) -> bytes | None:
        text = self._database.ask(lambda snapshot: snapshot.get(bucket_key(api_key_id)))
        return None if text is None else base64.b64decode(text)

    def reset_s3(self, api_key_id: str) -> bool:
        def act(transaction: Transaction) -> bool:
            was_there = transaction.get(bucket_key(api_key_id)) is not None
            if was_there:
                transaction.delete(bucket_key(api_key_id))
            return was_there

        return self._database.change(act)

    # ---- after-tasks ----

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        return self._database.change(
            lambda transaction: outbox.claim_task(transaction, kind, now=self._clock(), claim_s=claim_s)
        )

    def settle_task(
        self, task: OutboxTask, *, status: int | None, error: str, seconds: float, retry_in_s: float | None
    ) -> OutboxTask:
        attempt = outbox.Attempt(status, error, seconds, retry_in_s)
        return self._database.change(
            lambda transaction: outbox.settle_task(transaction, task, attempt, now=self._clock())
        )

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        document = self._database.ask(lambda snapshot: find_document(snapshot, job_id))
        return [] if document is None else document.tasks

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        found = self._database.ask(lambda snapshot: outbox.find_task(snapshot, task_id))
        return [] if found is None else [attempt for attempt in found[0].attempts if attempt.task_id == task_id]

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        def act(transaction: Transaction) -> OutboxTask:
            submission.find_job(transaction, job_id, api_key_id)
            return outbox.redeliver(transaction, job_id, now=self._clock(), window_s=self._rules.webhook_window_s)

        return self._database.change(act)

    # ---- ledger ----

    def usage_rows(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None, limit: int = 10_000
    ) -> list[UsageRow]:
        span = reports.Span(api_key_id, since, until)
        return self._database.ask(lambda snapshot: reports.read_usage_rows(snapshot, span))[:limit]

    def usage_days(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None
    ) -> list[UsageDay]:
        span = reports.Span(api_key_id, since, until)
        return sum_by_day(self._database.ask(lambda snapshot: reports.read_usage_rows(snapshot, span)))

    # ---- workers ----

    def heartbeat_worker(self, worker: WorkerRecord) -> None:
        now = self._clock()

        def act(board: dict[str, WorkerRecord]) -> None:
            for other in [*board.values()]:
                if abs(now - other.seen_at) > FORGET_WORKER_S:
                    del board[other.worker_id]
            board[worker.worker_id] = replace(worker, seen_at=now)

        self._workers.change(lambda draft: act(draft.value))

    def deregister_worker(self, worker_id: str) -> None:
        self._workers.change(lambda draft: draft.value.pop(worker_id, None))

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        now, board = self._clock(), self._workers.read(max_age_s=ESTIMATE_AGE_S).value
        return [worker for worker in board.values() if abs(now - worker.seen_at) <= seen_within_s]

    def request_restart(self) -> int:
        def act(transaction: Transaction) -> int:
            transaction.head.totals.restarts += 1
            return transaction.head.totals.restarts

        return self._database.change(act)

    def restarts_requested(self) -> int:
        return self._database.ask(lambda snapshot: snapshot.head.totals.restarts)
