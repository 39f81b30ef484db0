"""The store in SQLite or Postgres: one implementation in SQLAlchemy Core, one transaction per method.

Finds and locks rows, asks `pipeline.jobs.transitions`, and writes what it answers. Row locks are always taken in one
order, the job's row before its key's, with at most one job ending per transaction: this rules out deadlocks. A submit
locks only its key's row, which serializes the submits of a key, and inserts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from pipeline.errors import InvalidRequest, NotFound
from pipeline.jobs import transitions
from pipeline.jobs.limits import NOT_USED, check_submit, no_such_key
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
from pipeline.jobs.stores.sql import reports, statements
from pipeline.jobs.stores.sql.connection import Database
from pipeline.jobs.stores.sql.schema import (
    IS_PENDING,
    IS_QUEUED,
    IS_RUNNING,
    as_text,
    by_key,
    job_from_row,
    job_requests,
    jobs,
    key_buckets,
    key_from_row,
    keys,
    limit_columns,
    task_attempts,
    task_from_row,
    tasks,
    totals,
    workers,
)
from pipeline.jobs.transitions import DEFAULT_RETENTION, Decision, Retention

SECRET = "secret"
"""The name under which `totals` has the ids of the deployment's master keys, as labels."""
ID_DRAWS = 8
"""How often a submit draws an id before it gives up; with a million jobs on record one id in 2,000 is in use."""


class SqlStore:
    """A `Store` in a database; the schema is migrated on opening.

    Args:
        url: as SQLAlchemy reads it.
        clock: seconds since 1970.
        retention: how long records, webhook retries and late uploads last after a job has ended.
        pool_size, pool_overflow: as for `Database`.

    Raises:
        StoreUnavailable: the database is unavailable, or of a newer version.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] = time.time,
        retention: Retention = DEFAULT_RETENTION,
        pool_size: int = 8,
        pool_overflow: int = 8,
    ) -> None:
        self._clock = clock
        self._retention = retention
        self._database = Database(url, pool_size=pool_size, pool_overflow=pool_overflow)
        self._database.migrate()

    def close(self) -> None:
        self._database.close()

    def maintain(self, backup_dir: Path) -> None:
        """Nothing to do: rows do not expire, and backups of the database are the operator's."""

    def knows_secret(self, ids: Sequence[str], *, adopt: bool = False) -> bool:
        """Whether one of these ids of master keys is on record; with the first of them the store has none yet.

        The first id, that of the current key, is recorded with one that is known already, so that keys can be rotated.

        Args:
            adopt: record it in any case.
        """
        known_ids = sa.select(totals.c.label).where(totals.c.name == SECRET)
        with self._database.write() as connection:
            self._database.take_turns(connection)
            known = {*connection.execute(known_ids).scalars()}
            is_known = adopt or not known or not known.isdisjoint(ids)
            if is_known and ids[0] not in known:
                statements.add_to_totals(connection, [(SECRET, ids[0], 1.0)])
            return is_known

    # ---- submit and read ----

    def submit(self, new: NewJob) -> Submitted:
        for _ in range(ID_DRAWS - 1):
            try:
                return self._database.write_together(lambda connection: self._submit(connection, new))
            except exc.IntegrityError:  # another submit drew the same id at the same moment
                continue
        return self._database.write_together(lambda connection: self._submit(connection, new))

    def _submit(self, connection: sa.Connection, new: NewJob) -> Submitted:
        now = self._clock()
        key = connection.execute(statements.LOCK_KEY, {"of_key": new.api_key_id}).one_or_none()
        first = statements.find_by_idempotency_key(connection, new)
        if first is not None:
            return Submitted(first, is_new=False, queue_position=statements.queue_position_of(connection, first))
        use = NOT_USED if key is None else statements.key_use_of(connection, key, now)
        rate = check_submit(
            None if key is None else key_from_row(key), use, now=now, is_export=new.meta.export_of is not None
        )
        job = statements.insert_job(connection, new, use, now)
        waiting = connection.execute(statements.QUEUED_IN_ALL).scalar_one()
        return Submitted(job, is_new=True, queue_position=int(waiting), rate=rate)

    def record(self, new: NewJob, result: JobResult) -> Job:
        with self._database.write() as connection:
            connection.execute(statements.LOCK_KEY, {"of_key": new.api_key_id})
            first = statements.find_by_idempotency_key(connection, new)
            if first is not None:
                return first
            return statements.insert_ended_job(connection, new, result, now=self._clock(), retention=self._retention)

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._database.read() as connection:
            return transitions.visible(statements.find_job(connection, job_id), job_id, api_key_id=api_key_id)

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        if not job_ids:
            return []
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(set(job_ids))))
            return [job_from_row(row) for row in rows]

    def ended(self, job_ids: Sequence[int]) -> list[Job]:
        final = [state.value for state in JobState if state.is_final]
        with self._database.read() as connection:
            query = sa.select(jobs).where(jobs.c.id.in_(set(job_ids)), jobs.c.state.in_(final))
            return [job_from_row(row) for row in connection.execute(query)] if job_ids else []

    def request_of(self, job_id: int) -> bytes:
        with self._database.read() as connection:
            query = sa.select(job_requests.c.body).where(job_requests.c.job_id == job_id)
            body = connection.execute(query).scalar_one_or_none()
        if body is None:
            raise NotFound(f"There is no request of a job with the id {job_id}.")
        return body

    def list_jobs(self, filters: JobFilter, *, before_seq: int | None = None, limit: int = 50) -> list[Job]:
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if filters.api_key_id is not None:
            query = query.where(jobs.c.api_key_id == filters.api_key_id)
        if filters.state is not None:
            query = query.where(jobs.c.state == str(filters.state))
        if filters.track_id is not None:
            # A number and its digits match each other: callers filter by the text of a query string.
            query = query.where(jobs.c.track_id.in_({as_text(str(filters.track_id)), str(filters.track_id)}))
        if before_seq is not None:
            query = query.where(jobs.c.seq < before_seq)
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query)]

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._database.write() as connection:
            job = self._lock_visible(connection, job_id, api_key_id)
            transitions.check_deletable(job)
            task_ids = sa.select(tasks.c.id).where(tasks.c.job_id == job_id)
            connection.execute(task_attempts.delete().where(task_attempts.c.task_id.in_(task_ids)))
            connection.execute(tasks.delete().where(tasks.c.job_id == job_id))
            connection.execute(job_requests.delete().where(job_requests.c.job_id == job_id))
            connection.execute(jobs.delete().where(jobs.c.seq == job.seq))
            return job

    def _lock_visible(self, connection: sa.Connection, job_id: int, api_key_id: str | None) -> Job:
        return transitions.visible(
            statements.find_job(connection, job_id, for_update=True), job_id, api_key_id=api_key_id
        )

    def _apply(self, connection: sa.Connection, job: Job, decision: Decision) -> Job:
        return statements.apply(connection, job, decision, now=self._clock(), retention=self._retention)

    def queue_position(self, job: Job) -> int:
        with self._database.read() as connection:
            return statements.queue_position_of(connection, job)

    def timings(self) -> Timings:
        with self._database.read() as connection:
            return reports.read_timings(connection)

    # ---- cancel ----

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._database.write() as connection:
            job = self._lock_visible(connection, job_id, api_key_id)
            return self._apply(connection, job, transitions.cancel_requested(job))

    def cancel_queued(self, *, api_key_id: str) -> int:
        cancelled = 0
        while True:  # one job per transaction, so that a long queue never blocks the other writers
            with self._database.write() as connection:
                job = statements.lock_first(
                    connection, sa.select(jobs).where(IS_QUEUED, jobs.c.api_key_id == api_key_id)
                )
                if job is None:
                    return cancelled
                self._apply(connection, job, transitions.cancel_requested(job))
                cancelled += 1

    # ---- leases ----

    def claim(
        self, worker_id: str, *, lease_s: float, job_id: int | None = None, engines: Collection[str] | None = None
    ) -> Job | None:
        if job_id is not None and (taken := self._take_over(job_id, worker_id, lease_s=lease_s)) is not None:
            return taken
        full_keys: set[str] = set()
        while True:
            now = self._clock()
            due, queued = (
                statements.jobs_with_due_leases(now, lease_s, job_id),
                statements.queued_jobs(full_keys, job_id, engines),
            )
            with self._database.read() as connection:  # an idle worker asks often and must not take the write lock
                is_due = connection.execute(due.limit(1)).first() is not None
                if not is_due and connection.execute(queued.limit(1)).first() is None:
                    return None
            # A claim from the queue may be lost in a power cut: the job is queued again. A job whose lease expired may
            # end here, which must last.
            with self._database.write(is_durable=is_due) as connection:
                job = statements.lock_first(connection, due) if is_due else None
                if job is not None:
                    decision = transitions.lease_checked(job, worker_id, now=now, lease_s=lease_s, engines=engines)
                    after = self._apply(connection, job, decision)
                    if transitions.is_claim(job, decision):
                        return after
                    continue
                job = statements.lock_first(connection, queued)
                if job is None:
                    return None  # other workers claimed them meanwhile
                key = connection.execute(statements.LOCK_KEY, {"of_key": job.api_key_id}).one()
                if transitions.may_run_more(key_from_row(key).limits, running=key.running):
                    after = transitions.claimed(job, worker_id, now=now, lease_s=lease_s)
                    return statements.save(connection, job, after)
                full_keys.add(job.api_key_id)

    def _take_over(self, job_id: int, worker_id: str, *, lease_s: float) -> Job | None:
        """The job under a lease of this worker, where its holder is passive."""
        with self._database.write() as connection:
            job = statements.find_job(connection, job_id, for_update=True)
            if job is None or not transitions.waits_for_call(job):
                return None
            after = transitions.transferred(job, worker_id, now=self._clock(), lease_s=lease_s)
            return statements.save(connection, job, after)

    def renew(self, lease: Lease, *, lease_s: float, progress: Progress | None = None) -> bool:
        changed: dict[str, Any] = {"lease_expires_at": transitions.lease_end(self._clock(), lease_s)}
        if progress is not None:
            changed |= {"stage": progress.stage, "percent": progress.percent}
        renewal = jobs.update().where(transitions.is_held(jobs.c, lease)).values(changed)
        with self._database.write(is_durable=False) as connection:
            flag = connection.execute(renewal.returning(jobs.c.is_cancel_requested)).scalar_one_or_none()
        if flag is None:
            raise transitions.lease_lost(lease)
        return bool(flag)

    def report(self, lease: Lease, progress: Progress) -> None:
        report = (
            jobs.update()
            .where(transitions.is_held(jobs.c, lease))
            .values(stage=progress.stage, percent=progress.percent)
        )
        with self._database.write(is_durable=False) as connection:
            if connection.execute(report).rowcount != 1:
                raise transitions.lease_lost(lease)

    def requeue(self, lease: Lease) -> Job:
        with self._database.write() as connection:
            job = transitions.held(statements.find_job(connection, lease.job_id, for_update=True), lease)
            return self._apply(connection, job, transitions.requeued(job))

    def transfer(self, lease: Lease, *, worker_id: str, lease_s: float, progress: Progress | None = None) -> Job:
        with self._database.write() as connection:
            job = transitions.held(statements.find_job(connection, lease.job_id, for_update=True), lease)
            after = transitions.transferred(job, worker_id, now=self._clock(), lease_s=lease_s, progress=progress)
            return statements.save(connection, job, after)

    def expire_leases(self, worker_id: str) -> int:
        running = sa.select(jobs).where(IS_RUNNING, jobs.c.worker_id == worker_id).order_by(jobs.c.seq)
        with self._database.write() as connection:
            connection.execute(workers.delete().where(workers.c.worker_id == worker_id))
            found = [job_from_row(row) for row in connection.execute(running.with_for_update())]
            for job in found:
                statements.save(connection, job, transitions.expired_now(job))
            return len(found)

    # ---- completion ----

    def complete(self, lease: Lease, result: JobResult) -> Job:
        with self._database.write() as connection:
            job = statements.find_job(connection, lease.job_id, for_update=True)
            if job is None:
                raise transitions.lease_lost(lease)
            return self._apply(connection, job, transitions.completion(job, lease, result))

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        with self._database.write() as connection:
            job = self._lock_visible(connection, job_id, None)
            return statements.save(connection, job, transitions.result_replaced(job, result))

    def expired(self, *, limit: int = 100) -> list[Job]:
        unsettled = sa.select(tasks.c.job_id).where(IS_PENDING)
        query = (
            sa.select(jobs)
            .where(transitions.is_expired(jobs.c.expires_at, now=self._clock()), jobs.c.id.not_in(unsettled))
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query)]

    def expire_requests(self) -> int:
        with self._database.write() as connection:
            return statements.delete_requests(connection, now=self._clock(), retention=self._retention)

    def metrics(self) -> StoreMetrics:
        with self._database.read() as connection:
            return reports.read_metrics(connection, now=self._clock())

    # ---- keys ----

    def add_key(self, key: ApiKey) -> ApiKey:
        fields = {name: value for name, value in asdict(key).items() if name != "limits"}
        row = fields | limit_columns(key.limits) | {"queued": 0, "running": 0, "minute": 0, "minute_calls": 0}
        try:
            with self._database.write() as connection:
                known = connection.execute(statements.KEY_BY_HASH, {"hash": key.sha256}).one_or_none()
                if known is not None:
                    return key_from_row(known)
                connection.execute(keys.insert().values(row))
                return key
        except exc.IntegrityError as error:
            known = self.find_key(key.sha256)  # another process added it at the same moment
            if known is not None:
                return known
            raise InvalidRequest(f"There is a key named {key.name!r} already.") from error

    def find_key(self, sha256: str) -> ApiKey | None:
        with self._database.read() as connection:
            row = connection.execute(statements.KEY_BY_HASH, {"hash": sha256}).one_or_none()
            return None if row is None else key_from_row(row)

    def get_key(self, api_key_id: str, *, max_age_s: float = 0.0) -> ApiKey:
        with self._database.read() as connection:
            row = connection.execute(statements.KEY_BY_ID, {"of_key": api_key_id}).one_or_none()
            if row is None:
                raise no_such_key(api_key_id)
            return key_from_row(row)

    def list_keys(self) -> list[ApiKey]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id))
            return [key_from_row(row) for row in rows]

    def revoke_key(self, api_key_id: str) -> ApiKey:
        return self._change_key(api_key_id, revoked_at=sa.func.coalesce(keys.c.revoked_at, self._clock()))

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        return self._change_key(api_key_id, **limit_columns(limits))

    def rotate_secret(self, api_key_id: str) -> ApiKey:
        return self._change_key(
            api_key_id, secret_number=keys.c.secret_number + 1, secret_rotated_at=sa.literal(self._clock())
        )

    def _change_key(self, api_key_id: str, **columns: Any) -> ApiKey:
        with self._database.write() as connection:
            change = keys.update().where(keys.c.id == api_key_id).values(columns).returning(*keys.c)
            row = connection.execute(change).one_or_none()
            if row is None:
                raise no_such_key(api_key_id)
            return key_from_row(row)

    def key_use(self, api_key_id: str) -> KeyUse:
        with self._database.read() as connection:
            key = connection.execute(statements.KEY_BY_ID, {"of_key": api_key_id}).one_or_none()
            return NOT_USED if key is None else statements.key_use_of(connection, key, self._clock())

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        upsert = sa.text(
            "INSERT INTO key_buckets (key_id, encrypted) VALUES (:api_key_id, :encrypted)"
            " ON CONFLICT (key_id) DO UPDATE SET encrypted = excluded.encrypted"
        )
        with self._database.write() as connection:
            connection.execute(upsert, {"api_key_id": api_key_id, "encrypted": encrypted})

    def s3_of(self, api_key_id: str) -> bytes | None:
        with self._database.read() as connection:
            return connection.execute(statements.BUCKET_OF_KEY, {"of_key": api_key_id}).scalar_one_or_none()

    def reset_s3(self, api_key_id: str) -> bool:
        with self._database.write() as connection:
            return connection.execute(key_buckets.delete().where(key_buckets.c.api_key_id == api_key_id)).rowcount == 1

    # ---- outbox ----

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        now = self._clock()
        due = statements.due_tasks(kind, now)
        with self._database.read() as connection:
            if connection.execute(due).first() is None:
                return None
        with self._database.write(is_durable=False) as connection:
            row = connection.execute(due.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None  # other senders claimed them meanwhile
            return statements.save_task(
                connection, transitions.task_claimed(task_from_row(row), now=now, claim_s=claim_s)
            )

    def settle_task(self, task: OutboxTask, result: AttemptResult) -> OutboxTask:
        with self._database.write() as connection:
            row = connection.execute(sa.select(tasks).where(tasks.c.id == task.id).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"There is no task {task.id}.")
            attempts = sa.select(sa.func.count()).where(task_attempts.c.task_id == task.id)
            attempts_before = connection.execute(attempts).scalar_one()
            settled, attempt = transitions.task_settled(
                task_from_row(row), result, attempts_before=attempts_before, now=self._clock()
            )
            connection.execute(task_attempts.insert().values(asdict(attempt)))
            statements.add_to_totals(connection, transitions.attempt_sums(settled, attempt))
            return statements.save_task(connection, settled)

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(tasks).where(tasks.c.job_id == job_id).order_by(tasks.c.kind.desc()))
            return [task_from_row(row) for row in rows]

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        query = sa.select(task_attempts).where(task_attempts.c.task_id == task_id).order_by(task_attempts.c.number)
        with self._database.read() as connection:
            return [TaskAttempt(**by_key(row, task_attempts)) for row in connection.execute(query)]

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        with self._database.write() as connection:
            transitions.visible(statements.find_job(connection, job_id), job_id, api_key_id=api_key_id)
            rows = connection.execute(sa.select(tasks).where(tasks.c.job_id == job_id).with_for_update())
            found = [task_from_row(row) for row in rows]
            again = transitions.redelivered(found, job_id, now=self._clock(), retention=self._retention)
            return statements.save_task(connection, again)

    # ---- ledger ----

    def usage_rows(self, filters: LedgerFilter, *, limit: int = 10_000) -> list[UsageRow]:
        with self._database.read() as connection:
            return reports.read_usage_rows(connection, filters, limit=limit)

    def usage_days(self, filters: LedgerFilter) -> list[UsageDay]:
        with self._database.read() as connection:
            return reports.read_usage_days(connection, filters)

    # ---- workers ----

    def heartbeat_worker(self, worker: WorkerRecord) -> None:
        upsert = sa.text(
            "INSERT INTO workers (worker_id, engine, seen_at, is_ready, job_id)"
            " VALUES (:worker_id, :engine, :seen_at, :is_ready, :job_id)"
            " ON CONFLICT (worker_id) DO UPDATE SET engine = excluded.engine, seen_at = excluded.seen_at,"
            " is_ready = excluded.is_ready, job_id = excluded.job_id"
        )
        with self._database.write(is_durable=False) as connection:
            connection.execute(upsert, asdict(replace(worker, seen_at=self._clock())))

    def deregister_worker(self, worker_id: str) -> None:
        with self._database.write() as connection:
            connection.execute(workers.delete().where(workers.c.worker_id == worker_id))

    def database_time(self) -> float:
        """The time of the database's machine, seconds since 1970."""
        expression = "strftime('%s', 'now')" if self._database.is_sqlite else "extract(epoch from clock_timestamp())"
        with self._database.read() as connection:
            return float(connection.execute(sa.text(f"SELECT {expression}")).scalar_one())

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        now = self._clock()
        recently = workers.c.seen_at.between(now - seen_within_s, now + seen_within_s)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).where(recently).order_by(workers.c.worker_id))
            return [WorkerRecord(**by_key(row, workers)) for row in rows]

    def request_restart(self) -> int:
        with self._database.write() as connection:
            statements.add_to_totals(connection, [("restarts", "", 1.0)])
            return _restarts(connection)

    def restarts_requested(self) -> int:
        with self._database.read() as connection:
            return _restarts(connection)


def _restarts(connection: sa.Connection) -> int:
    count = connection.execute(sa.select(totals.c.value).where(totals.c.name == "restarts")).scalar_one_or_none()
    return int(count or 0)
