"""The store over any key-value map with an atomic create. Knows nothing of HTTP or Modal.

All that decisions depend on is one value, the head, in a commit log (`pipeline.jobs.stores.kv.commit_log`), so every
method is one transaction and every limit is exact; documents hold the rest (`pipeline.jobs.stores.kv.transaction`). A
process that dies between any two operations leaves the head as it was before or after its commit, and at worst entries
that nothing refers to, which maintenance sweeps.

One head for all keys limits the rate: a commit takes three operations in sequence, simultaneous changes of one process
share a commit, and of several processes one at a time succeeds. Where that is too slow, use Postgres.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.errors import ImageTo3DError, InvalidRequest, LeaseLost, NotFound, StoreUnavailable
from pipeline.jobs import transitions
from pipeline.jobs.limits import NOT_USED, day_of, no_such_key
from pipeline.jobs.model import (
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
from pipeline.jobs.stores.kv import documents, leases, maintenance, reports, submission
from pipeline.jobs.stores.kv.backup import ReadBackup, backup_age_s, no_backup, restored_head, write_backup
from pipeline.jobs.stores.kv.commit_log import CommitLog
from pipeline.jobs.stores.kv.leases import HeartbeatWriter, held, with_heartbeat, with_heartbeats
from pipeline.jobs.stores.kv.map import KeyValues
from pipeline.jobs.stores.kv.state import WORKERS, Account, OpenJob, bucket_key
from pipeline.jobs.stores.kv.transaction import Database, Snapshot, Transaction
from pipeline.jobs.transitions import DEFAULT_RETENTION, Decision, Retention, usage_by_day, usage_group

ESTIMATE_AGE_S = 1.0
"""How old queue positions, timings and the list of workers may be: they feed estimates."""
CANCELS_AT_ONCE = 100
FORGET_WORKER_S = 3600.0
MAINTENANCE_INTERVAL_S = 86400.0
"""Entries of a Modal Dict expire after 7 days without a read or a write."""


class KvStore:
    """A `Store` in a key-value map.

    Args:
        entries: the map, for this store alone.
        clock: seconds since 1970.
        retention: how long records, webhook retries and late uploads last after a job has ended.
        wall_clock: seconds since 1970 for the age of commits and documents; machines' clocks agree within 30 s.
        backup: reads the backup that `maintain` has written, which is restored into a map without commits.
    """

    def __init__(
        self,
        entries: KeyValues,
        *,
        clock: Callable[[], float] = time.time,
        retention: Retention = DEFAULT_RETENTION,
        wall_clock: Callable[[], float] = time.time,
        backup: ReadBackup = no_backup,
    ) -> None:
        self._entries = entries
        self._clock = clock
        self._wall_clock = wall_clock
        self._retention = retention
        self._heartbeats = HeartbeatWriter(entries)
        self._database = Database(
            entries,
            initial=lambda: restored_head(backup, entries, wall_now=wall_clock()),
            may_exist=self._heartbeats.may_exist,
            wall_clock=wall_clock,
        )
        self._workers: CommitLog[dict[str, WorkerRecord]] = CommitLog(
            entries,
            "workers",
            encode=WORKERS.to_json,
            decode=WORKERS.from_json,
            empty=WORKERS.to_json({}),
            wall_clock=wall_clock,
        )

    def close(self) -> None:
        """Nothing to close."""

    # ---- maintenance ----

    def maintain(self, backup_dir: Path) -> None:
        if backup_age_s(backup_dir, wall_now=self._wall_clock()) >= MAINTENANCE_INTERVAL_S:
            self.run_maintenance()
            self.write_backup(backup_dir)

    def run_maintenance(self) -> None:
        """Vacuum, sweep, and read every entry that must not expire. Due at least every few days, best once a day."""
        self._workers.vacuum()
        self._workers.sweep()
        maintenance.run_maintenance(self._database, today=day_of(self._clock()), wall_now=self._wall_clock())

    def write_backup(self, folder: Path) -> None:
        """Back up keys, buckets and the ledger to a folder, as JSON."""
        write_backup(self._database, folder, wall_now=self._wall_clock())

    # ---- submit and read ----

    def submit(self, new: NewJob) -> Submitted:
        def prepare(snapshot: Snapshot) -> tuple[Snapshot, Job | None, int]:
            """Refuse what can be refused before the request is written, and read what the transaction needs."""
            first = submission.find_by_idempotency_key(snapshot, new)
            if first is None:
                submission.check_submit(snapshot, new, now=self._clock())
            return snapshot, first, 0 if first is not None else submission.draw_id(snapshot)

        snapshot, first, drawn_id = self._database.read(prepare)
        if first is not None:
            return Submitted(first, is_new=False, queue_position=reports.queue_position_of(snapshot, first))
        request = submission.write_request(self._entries, new.request, wall_now=self._wall_clock())

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
            submitted = self._database.commit(add, before=snapshot)
        except StoreUnavailable:  # the job may be on record after all: its request stays, and is swept if it is not
            raise
        except ImageTo3DError:
            self._database.remove(submission.chunks_of(request))
            raise
        if not submitted.is_new:
            self._database.remove(submission.chunks_of(request))
        return submitted

    def record(self, new: NewJob, result: JobResult) -> Job:
        def add(transaction: Transaction) -> Job:
            first = submission.find_by_idempotency_key(transaction, new)
            if first is not None:
                return first
            return documents.add_ended_job(
                transaction,
                new,
                result,
                submission.draw_id(transaction),
                now=self._clock(),
                retention=self._retention,
            )

        return self._database.commit(add)

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        return self._database.read(lambda snapshot: submission.visible_job(snapshot, job_id, api_key_id))

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        if not job_ids:
            return []
        return self._database.read(lambda snapshot: reports.read_jobs(snapshot, job_ids))

    def ended(self, job_ids: Sequence[int]) -> list[Job]:
        def read(snapshot: Snapshot) -> list[Job]:
            return reports.read_jobs(snapshot, [job_id for job_id in job_ids if job_id not in snapshot.head.open])

        return self._database.read(read) if job_ids else []

    def request_of(self, job_id: int) -> bytes:
        return self._database.read(lambda snapshot: submission.read_request(snapshot, job_id))

    def list_jobs(self, filters: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> list[Job]:
        return self._database.read(
            lambda snapshot: reports.list_jobs(snapshot, filters, before_seq=before_seq, limit=limit)
        )

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        def delete(transaction: Transaction) -> Job:
            job = submission.visible_job(transaction, job_id, api_key_id)
            transitions.check_deletable(job)
            document = documents.find_document(transaction, job_id)
            assert document is not None
            documents.forget_job(transaction, document)
            return job

        return self._database.commit(delete)

    def queue_position(self, job: Job) -> int:
        return self._database.read(lambda snapshot: reports.queue_position_of(snapshot, job), max_age_s=ESTIMATE_AGE_S)

    def timings(self) -> Timings:
        last = self._database.read(lambda snapshot: snapshot.head.successes, max_age_s=ESTIMATE_AGE_S)
        return transitions.mean_timings(success.stage_seconds for success in last)

    # ---- cancel ----

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        def cancel(transaction: Transaction) -> Job:
            job = submission.visible_job(transaction, job_id, api_key_id)
            return self._apply(transaction, job, transitions.cancel_requested(job))

        return self._database.commit(cancel)

    def cancel_queued(self, *, api_key_id: str) -> int:
        def cancel(transaction: Transaction) -> int:
            jobs = [open_job.job for open_job in transaction.head.open.values()]
            queued = [job for job in jobs if (job.api_key_id, job.state) == (api_key_id, JobState.QUEUED)]
            for job in queued[:CANCELS_AT_ONCE]:
                self._apply(transaction, job, transitions.cancel_requested(job))
            return len(queued[:CANCELS_AT_ONCE])

        cancelled = 0
        while count := self._database.commit(cancel):
            cancelled += count
        return cancelled

    def _apply(self, transaction: Transaction, job: Job, decision: Decision) -> Job:
        return documents.apply(transaction, job, decision, now=self._clock(), retention=self._retention)

    # ---- leases ----

    def claim(
        self, worker_id: str, *, lease_s: float, job_id: int | None = None, engines: Collection[str] | None = None
    ) -> Job | None:
        def claim(transaction: Transaction) -> tuple[Job, int] | None:
            job = leases.claim(
                transaction,
                worker_id,
                now=self._clock(),
                lease_s=lease_s,
                job_id=job_id,
                engines=engines,
                retention=self._retention,
            )
            return None if job is None else (job, transaction.head.open[job.id].lease_epoch)

        claimed = self._database.commit(claim)
        if claimed is None:
            return None
        job, lease_epoch = claimed
        self._heartbeats.begin(job.lease, lease_epoch)
        return job

    def renew(self, lease: Lease, *, lease_s: float, progress: Progress | None = None) -> bool:
        open_job = self._held(lease)
        heartbeat, now = self._heartbeats.last(lease, open_job), self._clock()
        if progress is not None:
            heartbeat = replace(heartbeat, progress=progress)
        expires_at = transitions.lease_end(now, lease_s)
        # A lease that ends before the head's, since the clock was set back, must be in the head: see `leases.claim`.
        extends = heartbeat.lease_expires_at - now >= lease_s / 2 and expires_at >= (open_job.job.lease_expires_at or 0)
        if documents.may_have_heartbeat(open_job.job) and extends:
            self._heartbeats.write(lease, open_job, replace(heartbeat, lease_expires_at=expires_at))
            return open_job.job.is_cancel_requested

        def renew(transaction: Transaction) -> bool:  # another worker may be about to claim the job: the head decides
            job = with_heartbeat(transaction, held(transaction.head, lease))
            renewed = transitions.renewed(job, now=self._clock(), lease_s=lease_s, progress=progress)
            documents.save(transaction, job, renewed)
            return job.is_cancel_requested

        return self._database.commit(renew)

    def report(self, lease: Lease, progress: Progress) -> None:
        open_job = self._held(lease)
        if documents.may_have_heartbeat(open_job.job):
            self._heartbeats.write(lease, open_job, replace(self._heartbeats.last(lease, open_job), progress=progress))
            return

        def report(transaction: Transaction) -> None:
            job = held(transaction.head, lease).job
            documents.save(transaction, job, replace(job, progress=progress))

        self._database.commit(report)

    def _held(self, lease: Lease) -> OpenJob:
        try:
            return self._database.read(lambda snapshot: held(snapshot.head, lease))
        except LeaseLost:
            self._heartbeats.forget(lease)
            raise

    def requeue(self, lease: Lease) -> Job:
        def requeue(transaction: Transaction) -> Job:
            job = with_heartbeat(transaction, held(transaction.head, lease))
            return self._apply(transaction, job, transitions.requeued(job))

        job = self._database.commit(requeue)
        self._heartbeats.forget(lease)
        return job

    def transfer(self, lease: Lease, *, worker_id: str, lease_s: float, progress: Progress | None = None) -> Job:
        def transfer(transaction: Transaction) -> tuple[Job, int]:
            found = held(transaction.head, lease)
            # A heartbeat holds the lease's end and the progress, which are both replaced.
            job = found.job if progress is not None else with_heartbeat(transaction, found)
            after = transitions.transferred(job, worker_id, now=self._clock(), lease_s=lease_s, progress=progress)
            return documents.save(transaction, job, after), found.lease_epoch

        job, lease_epoch = self._database.commit(transfer)
        self._heartbeats.forget(lease)
        if documents.may_have_heartbeat(job):
            self._heartbeats.begin(job.lease, lease_epoch)
        return job

    def expire_leases(self, worker_id: str) -> int:
        def expire(transaction: Transaction) -> int:
            mine = [open_job for open_job in transaction.head.open.values() if open_job.job.worker_id == worker_id]
            running = [open_job for open_job in mine if open_job.job.state is JobState.RUNNING]
            for job in with_heartbeats(transaction, running):
                documents.save(transaction, job, transitions.expired_now(job))
            return len(running)

        self.deregister_worker(worker_id)
        return self._database.commit(expire)

    # ---- completion ----

    def complete(self, lease: Lease, result: JobResult) -> Job:
        def complete(transaction: Transaction) -> Job:
            found = transaction.head.open.get(lease.job_id)
            if found is not None and result.state is JobState.SUCCESS:
                job = found.job  # of a heartbeat only the progress would count, which a success replaces
            else:
                job = submission.find_job(transaction, lease.job_id)
            if job is None:
                raise transitions.lease_lost(lease)
            return self._apply(transaction, job, transitions.completion(job, lease, result))

        job = self._database.commit(complete)
        self._heartbeats.forget(lease)
        return job

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        def replace_result(transaction: Transaction) -> Job:
            job = transitions.result_replaced(submission.visible_job(transaction, job_id, None), result)
            document = documents.find_document(transaction, job_id)
            assert document is not None
            document.job = job
            documents.put_job(transaction, document)
            return job

        return self._database.commit(replace_result)

    def expired(self, *, limit: int = 100) -> list[Job]:
        return self._database.read(lambda snapshot: reports.expired_jobs(snapshot, now=self._clock(), limit=limit))

    def expire_requests(self) -> int:
        now = self._clock()
        if not self._database.read(lambda snapshot: bool(snapshot.head.kept)):
            return 0
        return self._database.commit(
            lambda transaction: documents.delete_requests(transaction, now=now, retention=self._retention)
        )

    def metrics(self) -> StoreMetrics:
        return self._database.read(lambda snapshot: reports.read_metrics(snapshot, now=self._clock()))

    # ---- keys ----

    def add_key(self, key: ApiKey) -> ApiKey:
        def add(transaction: Transaction) -> ApiKey:
            accounts = transaction.head.accounts
            known = [account.key for account in accounts.values()]
            for other in known:
                if other.sha256 == key.sha256:
                    return other
            if any(other.name == key.name and other.revoked_at is None for other in known):
                raise InvalidRequest(f"There is a key named {key.name!r} already.")
            accounts[key.id] = Account(key)
            return key

        return self._database.commit(add)

    def find_key(self, sha256: str) -> ApiKey | None:
        return next((key for key in self.list_keys() if key.sha256 == sha256), None)

    def get_key(self, api_key_id: str, *, max_age_s: float = 0.0) -> ApiKey:
        account = self._database.read(lambda snapshot: snapshot.head.accounts.get(api_key_id), max_age_s=max_age_s)
        if account is None:
            raise no_such_key(api_key_id)
        return account.key

    def list_keys(self) -> list[ApiKey]:
        return self._database.read(lambda snapshot: [account.key for account in snapshot.head.accounts.values()])

    def revoke_key(self, api_key_id: str) -> ApiKey:
        return self._change_key(api_key_id, lambda key: replace(key, revoked_at=key.revoked_at or self._clock()))

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        return self._change_key(api_key_id, lambda key: replace(key, limits=limits))

    def rotate_secret(self, api_key_id: str) -> ApiKey:
        now = self._clock()
        return self._change_key(
            api_key_id, lambda key: replace(key, secret_number=key.secret_number + 1, secret_rotated_at=now)
        )

    def _change_key(self, api_key_id: str, changed: Callable[[ApiKey], ApiKey]) -> ApiKey:
        def change(transaction: Transaction) -> ApiKey:
            account = transaction.head.accounts.get(api_key_id)
            if account is None:
                raise no_such_key(api_key_id)
            account.key = changed(account.key)
            return account.key

        return self._database.commit(change)

    def key_use(self, api_key_id: str) -> KeyUse:
        account = self._database.read(lambda snapshot: snapshot.head.accounts.get(api_key_id))
        return NOT_USED if account is None else account.use(now=self._clock())

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        text = base64.b64encode(encrypted).decode()
        self._database.commit(lambda transaction: transaction.put(bucket_key(api_key_id), text))

    def s3_of(self, api_key_id: str) -> bytes | None:
        text = self._database.read(lambda snapshot: snapshot.get(bucket_key(api_key_id)))
        return None if text is None else base64.b64decode(text)

    def reset_s3(self, api_key_id: str) -> bool:
        def reset(transaction: Transaction) -> bool:
            is_saved = transaction.get(bucket_key(api_key_id)) is not None
            if is_saved:
                transaction.delete(bucket_key(api_key_id))
            return is_saved

        return self._database.commit(reset)

    # ---- outbox ----

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        return self._database.commit(
            lambda transaction: documents.claim_task(transaction, kind, now=self._clock(), claim_s=claim_s)
        )

    def settle_task(self, task: OutboxTask, result: AttemptResult) -> OutboxTask:
        def settle(transaction: Transaction) -> OutboxTask:
            found = documents.find_task(transaction, task.id)
            if found is None:
                raise NotFound(f"There is no task {task.id}.")
            document, known = found
            attempts_before = sum(attempt.task_id == task.id for attempt in document.attempts)
            settled, attempt = transitions.task_settled(
                known, result, attempts_before=attempts_before, now=self._clock()
            )
            document.attempts.append(attempt)
            documents.add_to_totals(transaction.head.totals, transitions.attempt_sums(settled, attempt))
            return documents.put_task(transaction, document, settled)

        return self._database.commit(settle)

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        document = self._database.read(lambda snapshot: documents.find_document(snapshot, job_id))
        return [] if document is None else document.tasks

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        found = self._database.read(lambda snapshot: documents.find_task(snapshot, task_id))
        return [] if found is None else [attempt for attempt in found[0].attempts if attempt.task_id == task_id]

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        def redeliver(transaction: Transaction) -> OutboxTask:
            submission.visible_job(transaction, job_id, api_key_id)
            document = documents.find_document(transaction, job_id)
            tasks = [] if document is None else document.tasks
            again = transitions.redelivered(tasks, job_id, now=self._clock(), retention=self._retention)
            assert document is not None
            return documents.put_task(transaction, document, again)

        return self._database.commit(redeliver)

    # ---- ledger ----

    def usage_rows(self, filters: LedgerFilter, *, limit: int = 10_000) -> list[UsageRow]:
        return self._database.read(lambda snapshot: reports.read_usage_rows(snapshot, filters))[:limit]

    def usage_days(self, filters: LedgerFilter) -> list[UsageDay]:
        rows = self._database.read(lambda snapshot: reports.read_usage_rows(snapshot, filters))
        return usage_by_day(map(usage_group, rows))

    # ---- workers ----

    def heartbeat_worker(self, worker: WorkerRecord) -> None:
        now = self._clock()

        def write(records: dict[str, WorkerRecord]) -> None:
            for other in [*records.values()]:
                if abs(now - other.seen_at) > FORGET_WORKER_S:
                    del records[other.worker_id]
            records[worker.worker_id] = replace(worker, seen_at=now)

        self._workers.commit(lambda draft: write(draft.value))

    def deregister_worker(self, worker_id: str) -> None:
        self._workers.commit(lambda draft: draft.value.pop(worker_id, None))

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        now, records = self._clock(), self._workers.read(max_age_s=ESTIMATE_AGE_S).value
        return [worker for worker in records.values() if abs(now - worker.seen_at) <= seen_within_s]

    def request_restart(self) -> int:
        def request(transaction: Transaction) -> int:
            transaction.head.totals.restarts += 1
            return transaction.head.totals.restarts

        return self._database.commit(request)

    def restarts_requested(self) -> int:
        return self._database.read(lambda snapshot: snapshot.head.totals.restarts, max_age_s=ESTIMATE_AGE_S)
