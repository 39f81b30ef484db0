"""The store in SQLite or Postgres: one implementation in SQLAlchemy Core, one transaction per method.

Row locks are always taken in one order, the job's row before its key's, and one job's end per transaction, so that
transactions never wait for each other crosswise. A submit is the exception that holds nothing else: it locks its key's
row, which makes the key's submits stand in line, and inserts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from pipeline.errors import InvalidRequest, NotFound, Unauthorized
from pipeline.jobs.limits import CANCELLED, GIVEN_UP, MAX_PAUSE_S, MAX_SKEW_S, check_limits, minute_of, month_of
from pipeline.jobs.model import (
    MAX_ATTEMPTS,
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
from pipeline.jobs.stores.sql.completion import add_to_totals, complete_job
from pipeline.jobs.stores.sql.connection import Database
from pipeline.jobs.stores.sql.leases import (
    change_job,
    get_job,
    held_job,
    is_held,
    lease_lost,
    lock_first,
    lock_job,
    queue_position_of,
    stale_leases,
    take_first_time,
    waiting_jobs,
)
from pipeline.jobs.stores.sql.reports import read_metrics, read_timings, read_usage_days, read_usage_rows
from pipeline.jobs.stores.sql.schema import (
    IS_PENDING,
    IS_QUEUED,
    IS_RUNNING,
    as_text,
    job_from_row,
    job_requests,
    jobs,
    key_buckets,
    key_from_row,
    keys,
    result_as_text,
    task_attempts,
    task_from_row,
    tasks,
    totals,
    workers,
)
from pipeline.jobs.stores.sql.submission import find_by_idempotency_key, insert_job, key_use_of, limit_columns

ID_DRAWS = 8
"""How often a submit draws an id before it gives up; with a million jobs on record one draw in 2,000 is taken."""

_COUNT_CALL = sa.text(
    "INSERT INTO key_months (key_id, month, accepted, calls) VALUES (:api_key_id, :month, 1, 1)"
    " ON CONFLICT (key_id, month) DO UPDATE SET accepted = key_months.accepted + 1, calls = key_months.calls + 1"
)


class SqlStore:
    """A `Store` in a database; the schema is brought up to date on opening.

    Args:
        url: as SQLAlchemy reads it.
        clock: seconds since 1970.
        record_lifetime_s: how long an ended job stays on record.
        webhook_window_s: how long a webhook is tried.
        upload_window_s: how long an upload that a bucket refused is retried; the temporary copy expires then.

    Raises:
        StoreUnavailable: the database is away, or of a newer version.
    """

    def __init__(
        self,
        url: str,
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
        self._database = Database(url)
        self._database.migrate()

    def close(self) -> None:
        self._database.close()

    def maintain(self, backup_dir: Path) -> None:
        """Nothing to do: rows do not expire, and backups of the database are the operator's."""

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
        key = connection.execute(sa.select(keys).where(keys.c.id == new.api_key_id).with_for_update()).one_or_none()
        first = find_by_idempotency_key(connection, new)
        if first is not None:
            return Submitted(first, is_new=False, queue_position=queue_position_of(connection, first))
        if key is None or key.revoked_at is not None:
            raise Unauthorized("Invalid API key")
        limits, use = key_from_row(key).limits, key_use_of(connection, key, now)
        rate = check_limits(limits, use, now=now)
        connection.execute(
            keys.update()
            .where(keys.c.id == key.id)
            .values(queued=keys.c.queued + 1, minute=minute_of(now), minute_calls=use.this_minute + 1)
        )
        connection.execute(_COUNT_CALL, {"api_key_id": key.id, "month": month_of(now)})
        job = insert_job(connection, new, now)
        waiting = connection.execute(sa.select(sa.func.sum(keys.c.queued))).scalar_one()
        return Submitted(job, is_new=True, queue_position=int(waiting), rate=rate)

    def get(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._database.read() as connection:
            return get_job(connection, job_id, api_key_id)

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        if not job_ids:
            return []
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs).where(jobs.c.id.in_(set(job_ids))))
            return [job_from_row(row) for row in rows]

    def request_of(self, job_id: int) -> bytes:
        with self._database.read() as connection:
            query = sa.select(job_requests.c.body).where(job_requests.c.job_id == job_id)
            body = connection.execute(query).scalar_one_or_none()
        if body is None:
            raise NotFound(f"There is no request of a call with the id {job_id}.")
        return body

    def list_jobs(
        self,
        *,
        api_key_id: str | None,
        state: JobState | None = None,
        track_id: str | int | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        query = sa.select(jobs).order_by(jobs.c.seq.desc()).limit(limit)
        if api_key_id is not None:
            query = query.where(jobs.c.api_key_id == api_key_id)
        if state is not None:
            query = query.where(jobs.c.state == str(state))
        if track_id is not None:
            # In lists a number and its digits are one mark: callers filter by what stands in a query string.
            query = query.where(jobs.c.track_id.in_({as_text(str(track_id)), str(track_id)}))
        if before_seq is not None:
            query = query.where(jobs.c.seq < before_seq)
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query)]

    def delete(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._database.write() as connection:
            job = get_job(connection, job_id, api_key_id, for_update=True)
            if not job.state.is_final:
                raise InvalidRequest(f"The call {job_id} is {job.state}; cancel it before deleting it.")
            ids = sa.select(tasks.c.id).where(tasks.c.job_id == job_id)
            connection.execute(task_attempts.delete().where(task_attempts.c.task_id.in_(ids)))
            connection.execute(tasks.delete().where(tasks.c.job_id == job_id))
            connection.execute(jobs.delete().where(jobs.c.seq == job.seq))
            return job

    def queue_position(self, job: Job) -> int:
        with self._database.read() as connection:
            return queue_position_of(connection, job)

    def timings(self) -> Timings:
        with self._database.read() as connection:
            return read_timings(connection)

    # ---- cancel ----

    def request_cancel(self, job_id: int, *, api_key_id: str | None) -> Job:
        with self._database.write() as connection:
            job = get_job(connection, job_id, api_key_id, for_update=True)
            if job.state is JobState.QUEUED:
                return self._end(connection, job, CANCELLED)
            if job.state is JobState.RUNNING:
                return change_job(connection, job, is_cancel_requested=True)
            return job

    def cancel_queued(self, *, api_key_id: str) -> int:
        cancelled = 0
        while True:  # one end per transaction, so that a long queue never locks the others out
            with self._database.write() as connection:
                job = lock_first(connection, sa.select(jobs).where(IS_QUEUED, jobs.c.api_key_id == api_key_id))
                if job is None:
                    return cancelled
                self._end(connection, job, CANCELLED)
                cancelled += 1

    # ---- leases ----

    def claim(self, worker_id: str, *, lease_s: float, job_id: int | None = None) -> Job | None:
        full_keys: set[str] = set()
        while True:
            now = self._clock()
            with self._database.read() as connection:  # an idle worker asks often and must not take the write lock
                stale, waiting = stale_leases(now, lease_s, job_id), waiting_jobs(full_keys, job_id)
                is_stale = connection.execute(stale.limit(1)).first() is not None
                if not is_stale and connection.execute(waiting.limit(1)).first() is None:
                    return None
            # A first taking that a power cut undoes leaves the job in the queue. A stale job may end here, for good.
            with self._database.write(is_durable=is_stale) as connection:
                job = lock_first(connection, stale) if is_stale else None
                if job is not None:
                    taken = self._take_up_again(connection, job, worker_id, now, lease_s)
                else:
                    job = lock_first(connection, waiting)
                    if job is None:
                        return None  # others have it
                    taken = take_first_time(connection, job, worker_id, now, lease_s)
                    if taken is None:
                        full_keys.add(job.api_key_id)
            if taken is not None:
                return taken

    def _take_up_again(
        self, connection: sa.Connection, job: Job, worker_id: str, now: float, lease_s: float
    ) -> Job | None:
        """What becomes of a running job whose lease is over; None where it does not run on now."""
        if (job.lease_expires_at or 0.0) > now:  # written before the clock stepped back: let it run out from here
            change_job(connection, job, lease_expires_at=now + lease_s)
            return None
        if job.is_cancel_requested or job.attempts >= MAX_ATTEMPTS:
            self._end(connection, job, CANCELLED if job.is_cancel_requested else GIVEN_UP)
            return None
        return change_job(
            connection, job, worker_id=worker_id, attempts=job.attempts + 1, lease_expires_at=now + lease_s
        )

    def renew(self, lease: Lease, *, lease_s: float) -> bool:
        renewal = jobs.update().where(is_held(lease)).values(lease_expires_at=self._clock() + lease_s)
        with self._database.write(is_durable=False) as connection:
            flag = connection.execute(renewal.returning(jobs.c.is_cancel_requested)).scalar_one_or_none()
        if flag is None:
            raise lease_lost(lease)
        return bool(flag)

    def report(self, lease: Lease, progress: Progress) -> None:
        report = jobs.update().where(is_held(lease)).values(stage=progress.stage, percent=progress.percent)
        with self._database.write(is_durable=False) as connection:
            if connection.execute(report).rowcount != 1:
                raise lease_lost(lease)

    def requeue(self, lease: Lease) -> Job:
        with self._database.write() as connection:
            job = held_job(connection, lease)
            if job.is_cancel_requested:
                return self._end(connection, job, CANCELLED)
            counters = {"queued": keys.c.queued + 1, "running": keys.c.running - 1}
            connection.execute(keys.update().where(keys.c.id == job.api_key_id).values(counters))
            return change_job(
                connection,
                job,
                state=JobState.QUEUED,
                attempts=job.attempts - 1,
                worker_id=None,
                lease_expires_at=None,
            )

    def expire_leases(self, worker_id: str) -> int:
        with self._database.write() as connection:
            connection.execute(workers.delete().where(workers.c.worker_id == worker_id))
            release = jobs.update().where(IS_RUNNING, jobs.c.worker_id == worker_id).values(lease_expires_at=0.0)
            return connection.execute(release).rowcount

    # ---- ends ----

    def complete(self, lease: Lease, result: JobResult) -> Job:
        with self._database.write() as connection:
            job = lock_job(connection, lease.job_id)
            if job is None or job.worker_id is None or job.lease != lease or job.state is JobState.QUEUED:
                raise lease_lost(lease)
            if job.state.is_final:
                return job
            return self._end(connection, job, result)

    def _end(self, connection: sa.Connection, job: Job, result: JobResult) -> Job:
        assert may_follow(job.state, result.state), f"{job.state} -> {result.state}"
        complete_job(
            connection,
            job,
            result,
            now=self._clock(),
            record_lifetime_s=self._record_lifetime_s,
            webhook_window_s=self._webhook_window_s,
            upload_window_s=self._upload_window_s,
        )
        return get_job(connection, job.id, None)

    def replace_result(self, job_id: int, result: JobResult) -> Job:
        with self._database.write() as connection:
            job = get_job(connection, job_id, None, for_update=True)
            if job.state is not result.state:
                raise InvalidRequest(f"The call {job_id} ended as {job.state}, not as {result.state}.")
            connection.execute(jobs.update().where(jobs.c.seq == job.seq).values(result=result_as_text(result)))
            return replace(job, result=result)

    def expired(self, *, limit: int = 100) -> list[Job]:
        unsettled = sa.select(tasks.c.job_id).where(IS_PENDING)
        query = (
            sa.select(jobs)
            .where(jobs.c.expires_at <= self._clock(), jobs.c.id.not_in(unsettled))
            .order_by(jobs.c.seq)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [job_from_row(row) for row in connection.execute(query)]

    def metrics(self) -> StoreMetrics:
        with self._database.read() as connection:
            return read_metrics(connection, now=self._clock())

    # ---- keys ----

    def add_key(self, key: ApiKey) -> ApiKey:
        fields = {name: value for name, value in asdict(key).items() if name != "limits"}
        row = fields | limit_columns(key.limits) | {"queued": 0, "running": 0, "minute": 0, "minute_calls": 0}
        try:
            with self._database.write() as connection:
                known = connection.execute(sa.select(keys).where(keys.c.sha256 == key.sha256)).one_or_none()
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
            row = connection.execute(sa.select(keys).where(keys.c.sha256 == sha256)).one_or_none()
            return None if row is None else key_from_row(row)

    def list_keys(self) -> list[ApiKey]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(keys).order_by(keys.c.created_at, keys.c.id))
            return [key_from_row(row) for row in rows]

    def revoke_key(self, api_key_id: str) -> ApiKey:
        return self._change_key(api_key_id, revoked_at=sa.func.coalesce(keys.c.revoked_at, self._clock()))

    def limit_key(self, api_key_id: str, limits: KeyLimits) -> ApiKey:
        return self._change_key(api_key_id, **limit_columns(limits))

    def _change_key(self, api_key_id: str, **columns: Any) -> ApiKey:
        with self._database.write() as connection:
            change = keys.update().where(keys.c.id == api_key_id).values(columns).returning(*keys.c)
            row = connection.execute(change).one_or_none()
            if row is None:
                raise NotFound(f"There is no key with the id {api_key_id}.")
            return key_from_row(row)

    def key_use(self, api_key_id: str) -> KeyUse:
        with self._database.read() as connection:
            key = connection.execute(sa.select(keys).where(keys.c.id == api_key_id)).one_or_none()
            return KeyUse(0, 0, 0, 0) if key is None else key_use_of(connection, key, self._clock())

    def save_s3(self, api_key_id: str, encrypted: bytes) -> None:
        upsert = sa.text(
            "INSERT INTO key_buckets (key_id, encrypted) VALUES (:api_key_id, :encrypted)"
            " ON CONFLICT (key_id) DO UPDATE SET encrypted = excluded.encrypted"
        )
        with self._database.write() as connection:
            connection.execute(upsert, {"api_key_id": api_key_id, "encrypted": encrypted})

    def s3_of(self, api_key_id: str) -> bytes | None:
        with self._database.read() as connection:
            query = sa.select(key_buckets.c.encrypted).where(key_buckets.c.api_key_id == api_key_id)
            return connection.execute(query).scalar_one_or_none()

    def reset_s3(self, api_key_id: str) -> bool:
        with self._database.write() as connection:
            return connection.execute(key_buckets.delete().where(key_buckets.c.api_key_id == api_key_id)).rowcount == 1

    # ---- after-tasks ----

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> OutboxTask | None:
        now = self._clock()
        is_ahead = (tasks.c.next_attempt_at > now + MAX_PAUSE_S) | (tasks.c.scheduled_at > now + MAX_SKEW_S)
        due = (
            sa.select(tasks.c.id)
            .where(IS_PENDING, tasks.c.kind == kind, (tasks.c.next_attempt_at <= now) | is_ahead)
            .order_by(tasks.c.next_attempt_at)
            .limit(1)
        )
        with self._database.read() as connection:
            if connection.execute(due).first() is None:
                return None
        with self._database.write(is_durable=False) as connection:
            task_id = connection.execute(due.with_for_update(skip_locked=True)).scalar_one_or_none()
            until = {"next_attempt_at": now + min(claim_s, MAX_PAUSE_S), "scheduled_at": now}
            claim = tasks.update().where(tasks.c.id == task_id).values(until)
            row = connection.execute(claim.returning(*tasks.c)).one_or_none()
            return None if row is None else task_from_row(row)

    def settle_task(
        self, task: OutboxTask, *, status: int | None, error: str, seconds: float, retry_in_s: float | None
    ) -> OutboxTask:
        now = self._clock()
        with self._database.write() as connection:
            row = connection.execute(sa.select(tasks).where(tasks.c.id == task.id).with_for_update()).one_or_none()
            if row is None:
                raise NotFound(f"There is no task {task.id}.")
            changes: dict[str, Any] = {"attempts": row.attempts + 1, "last_status": status, "last_error": error}
            if not error:
                changes |= {"state": "done", "done_at": now}
            elif retry_in_s is None or now + retry_in_s > row.give_up_at:
                changes |= {"state": "given_up", "done_at": now}
            else:
                due = {"next_attempt_at": now + min(retry_in_s, MAX_PAUSE_S), "scheduled_at": now}
                changes |= {"state": "pending", **due}
            change = tasks.update().where(tasks.c.id == task.id).values(changes).returning(*tasks.c)
            settled = task_from_row(connection.execute(change).one())
            tries = sa.select(sa.func.count()).where(task_attempts.c.task_id == task.id)
            attempt = TaskAttempt(task.id, connection.execute(tries).scalar_one() + 1, now, status, error, seconds)
            connection.execute(task_attempts.insert().values(asdict(attempt)))
            add_to_totals(connection, [("task_attempts", f"{task.kind} {'error' if error else 'ok'}", 1.0)])
            return settled

    def tasks_of(self, job_id: int) -> list[OutboxTask]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(tasks).where(tasks.c.job_id == job_id).order_by(tasks.c.kind.desc()))
            return [task_from_row(row) for row in rows]

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        query = sa.select(task_attempts).where(task_attempts.c.task_id == task_id).order_by(task_attempts.c.number)
        with self._database.read() as connection:
            return [TaskAttempt(**row._mapping) for row in connection.execute(query)]

    def redeliver(self, job_id: int, *, api_key_id: str | None) -> OutboxTask:
        now = self._clock()
        with self._database.write() as connection:
            get_job(connection, job_id, api_key_id)
            again = (
                tasks.update()
                .where(tasks.c.job_id == job_id, tasks.c.kind == "webhook")
                .values(
                    state="pending",
                    attempts=0,
                    next_attempt_at=now,
                    scheduled_at=now,
                    give_up_at=now + self._webhook_window_s,
                    done_at=None,
                )
            )
            row = connection.execute(again.returning(*tasks.c)).one_or_none()
            if row is None:
                raise InvalidRequest(f"The call {job_id} has not ended, or has no webhook.")
            return task_from_row(row)

    # ---- ledger ----

    def usage_rows(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None, limit: int = 10_000
    ) -> list[UsageRow]:
        with self._database.read() as connection:
            return read_usage_rows(connection, api_key_id=api_key_id, since=since, until=until, limit=limit)

    def usage_days(
        self, *, api_key_id: str | None, since: float | None = None, until: float | None = None
    ) -> list[UsageDay]:
        with self._database.read() as connection:
            return read_usage_days(connection, api_key_id=api_key_id, since=since, until=until)

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

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        now = self._clock()
        lately = workers.c.seen_at.between(now - seen_within_s, now + seen_within_s)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(workers).where(lately).order_by(workers.c.worker_id))
            return [WorkerRecord(**row._mapping) for row in rows]

    def request_restart(self) -> int:
        with self._database.write() as connection:
            add_to_totals(connection, [("restarts", "", 1.0)])
            return _restarts(connection)

    def restarts_requested(self) -> int:
        with self._database.read() as connection:
            return _restarts(connection)


def _restarts(connection: sa.Connection) -> int:
    count = connection.execute(sa.select(totals.c.value).where(totals.c.name == "restarts")).scalar_one_or_none()
    return int(count or 0)
