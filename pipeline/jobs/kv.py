"""The store over any key-value map with an atomic create. Knows nothing of HTTP or Modal.

One cell, the head, is changed in atomic steps (`pipeline.jobs.kv_cell`), so every method is one step and every limit
is exact; documents hang on it (`pipeline.jobs.kv_step`). A process that dies between any two operations leaves the head
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

from pipeline.errors import ImageTo3DError, InvalidRequest, LeaseLost, StoreUnavailable
from pipeline.jobs import kv_keys, kv_leases, kv_lists, kv_submits, kv_tasks
from pipeline.jobs.key_values import KeyValues
from pipeline.jobs.kv_cell import Cell
from pipeline.jobs.kv_endings import EndRules, end_job, find_document, forget_job, put_job
from pipeline.jobs.kv_leases import as_it_stands, held
from pipeline.jobs.kv_state import BEAT, WORKERS, Beat, OpenJob, beat_key, bucket_key
from pipeline.jobs.kv_step import Database, Step, View
from pipeline.jobs.kv_upkeep import Upkeep, keep_up, read_copy, write_copy
from pipeline.jobs.limits import CANCELLED, day_of
from pipeline.jobs.record import (
    AfterTask,
    ApiKey,
    Ending,
    Job,
    JobState,
    KeyLimits,
    KeyUse,
    Lease,
    NewJob,
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
from pipeline.jobs.usage import sum_by_day

ESTIMATE_AGE_S = 1.0
"""Queue positions, timings and the board of workers may be what they were so long ago: they feed estimates."""
CANCELS_AT_ONCE = 100
FORGET_WORKER_S = 3600.0


class KvStore:
    """A `Store` in a key-value map that it has for itself.

    Args:
        clock: seconds since 1970.
        record_lifetime_s: how long an ended job stays on record.
        webhook_window_s: how long a webhook is tried.
        wall_clock: seconds since 1970 for the age of what was written; the machines' clocks agree within 30 s.
    """

    def __init__(
        self,
        entries: KeyValues,
        *,
        clock: Callable[[], float] = time.time,
        record_lifetime_s: float = 7 * 86400.0,
        webhook_window_s: float = 7200.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._entries = entries
        self._clock = clock
        self._wall_clock = wall_clock
        self._rules = EndRules(record_lifetime_s, webhook_window_s)
        self._database = Database(entries, wall_clock=wall_clock)
        self._workers: Cell[dict[str, WorkerRecord]] = Cell(
            entries,
            "workers",
            encode=WORKERS.dump_json,
            decode=WORKERS.validate_json,
            empty=WORKERS.dump_json({}),
            wall_clock=wall_clock,
        )
        self._beats: dict[Lease, tuple[int, Beat]] = {}

    def close(self) -> None:
        """Nothing to let go of."""

    # ---- upkeep ----

    def maintain(self) -> Upkeep:
        """What must be done at least every few days, best once a day: tidy, sweep, and read what is not to expire.

        Raises:
            StoreUnavailable: the map is away.
        """
        self._workers.tidy()
        return keep_up(self._database, today=day_of(self._clock()), wall_now=self._wall_clock())

    def write_copy(self, folder: Path) -> None:
        """Copy keys, buckets and the ledger into a folder, as JSON.

        Raises:
            StoreUnavailable: the map is away.
        """
        write_copy(self._database, folder)

    def read_copy(self, folder: Path) -> bool:
        """Take a copy over if the map holds nothing; returns whether it did.

        Raises:
            StoreUnavailable: the map is away.
        """
        return read_copy(self._database, folder)

    # ---- submit and read ----

    def submit(self, new: NewJob) -> Submitted:
        def prepare(view: View) -> tuple[View, Job | None, int]:
            """Refuse what can be refused before its request is written, and read what the step will need."""
            first = kv_submits.first_with(view, new)
            if first is None:
                kv_submits.check_submit(view, new, now=self._clock())
            return view, first, 0 if first is not None else kv_submits.draw_id(view)

        view, first, drawn_id = self._database.ask(prepare)
        if first is not None:
            return Submitted(first, is_new=False, queue_position=kv_lists.queue_position_of(view, first))
        request = kv_submits.keep_request(self._entries, new.request, wall_now=self._wall_clock())

        def add(step: Step) -> Submitted:
            now = self._clock()
            first = kv_submits.first_with(step, new)
            if first is not None:
                return Submitted(first, is_new=False, queue_position=kv_lists.queue_position_of(step, first))
            rate = kv_submits.check_submit(step, new, now=now)
            job_id = drawn_id if kv_submits.is_free(step, drawn_id) else kv_submits.draw_id(step)
            job = kv_submits.add_job(step, new, request, job_id, now=now)
            return Submitted(job, is_new=True, queue_position=kv_lists.queue_position_of(step, job), rate=rate)

        try:
            submitted = self._database.change(add, before=view)
        except StoreUnavailable:  # the job may be on record after all: its request stays, and is swept if it is not
            raise
        except ImageTo3DError:
            self._database.remove(kv_submits.chunks_of(request))
            raise
        if not submitted.is_new:
            self._database.remove(kv_submits.chunks_of(request))
        return submitted

    def get(self, job_id: int, *, key_id: str | None) -> Job:
        return self._database.ask(lambda view: kv_submits.find_job(view, job_id, key_id))

    def get_many(self, job_ids: Sequence[int]) -> list[Job]:
        if not job_ids:
            return []
        return self._database.ask(lambda view: kv_lists.read_jobs(view, job_ids))

    def request_of(self, job_id: int) -> bytes:
        return self._database.ask(lambda view: kv_submits.read_request(view, job_id))

    def list_jobs(
        self,
        *,
        key_id: str | None,
        state: JobState | None = None,
        track_id: str | int | None = None,
        before_seq: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        wanted = kv_lists.Wanted(key_id, state, None if track_id is None else str(track_id))
        return self._database.ask(lambda view: kv_lists.list_jobs(view, wanted, before_seq=before_seq, limit=limit))

    def delete(self, job_id: int, *, key_id: str | None) -> Job:
        def act(step: Step) -> Job:
            job = kv_submits.find_job(step, job_id, key_id)
            document = find_document(step, job_id)
            if not job.state.is_final or document is None:
                raise InvalidRequest(f"The call {job_id} is {job.state}; cancel it before deleting it.")
            forget_job(step, document)
            return job

        return self._database.change(act)

    def queue_position(self, job: Job) -> int:
        return self._database.ask(lambda view: kv_lists.queue_position_of(view, job), max_age_s=ESTIMATE_AGE_S)

    def timings(self) -> Timings:
        return self._database.ask(kv_lists.read_timings, max_age_s=ESTIMATE_AGE_S)

    # ---- cancel ----

    def request_cancel(self, job_id: int, *, key_id: str | None) -> Job:
        def act(step: Step) -> Job:
            job = kv_submits.find_job(step, job_id, key_id)
            if job.state is JobState.QUEUED:
                return self._end(step, job, CANCELLED)
            if job.state is JobState.RUNNING:
                kept = step.head.open[job_id]
                kept.job = replace(kept.job, is_cancel_requested=True)
                return replace(job, is_cancel_requested=True)
            return job

        return self._database.change(act)

    def cancel_queued(self, *, key_id: str) -> int:
        def act(step: Step) -> int:
            jobs = [kept.job for kept in step.head.open.values()]
            queued = [job for job in jobs if (job.key_id, job.state) == (key_id, JobState.QUEUED)][:CANCELS_AT_ONCE]
            for job in queued:
                self._end(step, job, CANCELLED)
            return len(queued)

        cancelled = 0
        while count := self._database.change(act):
            cancelled += count
        return cancelled

    # ---- leases ----

    def take(self, worker_id: str, *, lease_s: float, job_id: int | None = None) -> Job | None:
        def act(step: Step) -> Job | None:
            return kv_leases.take(
                step,
                worker_id,
                now=self._clock(),
                lease_s=lease_s,
                job_id=job_id,
                end=lambda job, ending: self._end(step, job, ending),
            )

        return self._database.change(act)

    def renew(self, lease: Lease, *, lease_s: float) -> bool:
        kept = self._held(lease)
        beat, now = self._beat_of(lease, kept), self._clock()
        if beat.lease_expires_at - now >= lease_s / 2:
            self._write_beat(lease, kept, replace(beat, lease_expires_at=now + lease_s))
            return kept.job.is_cancel_requested

        def act(step: Step) -> bool:  # others may be about to take the job up: the head decides
            job = as_it_stands(step, held(step.head, lease))
            kv_leases.set_lease(step, replace(job, lease_expires_at=self._clock() + lease_s))
            return job.is_cancel_requested

        return self._database.change(act)

    def report(self, lease: Lease, progress: Progress) -> None:
        kept = self._held(lease)
        self._write_beat(lease, kept, replace(self._beat_of(lease, kept), progress=progress))

    def _held(self, lease: Lease) -> OpenJob:
        try:
            return self._database.ask(lambda view: held(view.head, lease))
        except LeaseLost:
            self._beats.pop(lease, None)
            raise

    def _beat_of(self, lease: Lease, kept: OpenJob) -> Beat:
        """What this worker wrote last, or what the head says where it has not written yet."""
        term, beat = self._beats.get(lease, (-1, None))
        if beat is not None and term == kept.term:
            return beat
        found = self._entries.get(beat_key(kept.job.id, kept.term))
        return Beat(kept.job.lease_expires_at or 0.0, kept.job.progress) if found is None else BEAT.validate_json(found)

    def _write_beat(self, lease: Lease, kept: OpenJob, beat: Beat) -> None:
        self._entries.put(beat_key(kept.job.id, kept.term), BEAT.dump_json(beat))
        self._beats[lease] = (kept.term, beat)

    def hand_back(self, lease: Lease) -> Job:
        def act(step: Step) -> Job:
            job = as_it_stands(step, held(step.head, lease))
            if job.is_cancel_requested:
                return self._end(step, job, CANCELLED)
            account = step.head.accounts[job.key_id]
            account.queued += 1
            account.running -= 1
            back = replace(job, state=JobState.QUEUED, attempts=job.attempts - 1, worker_id=None, lease_expires_at=None)
            return kv_leases.set_lease(step, back)

        job = self._database.change(act)
        self._beats.pop(lease, None)
        return job

    def release_worker(self, worker_id: str) -> int:
        def act(step: Step) -> int:
            mine = [kept for kept in step.head.open.values() if kept.job.worker_id == worker_id]
            running = [kept for kept in mine if kept.job.state is JobState.RUNNING]
            for job in kv_leases.as_they_stand(step, running):
                kv_leases.set_lease(step, replace(job, lease_expires_at=0.0))
            return len(running)

        self.say_goodbye(worker_id)
        return self._database.change(act)

    # ---- ends ----

    def finish(self, lease: Lease, ending: Ending, *, upload_for_s: float | None = None) -> Job:
        def act(step: Step) -> Job:
            if lease.job_id not in step.head.open:
                document = find_document(step, lease.job_id)
                if document is not None and document.job.worker_id and document.job.lease == lease:
                    return document.job
            job = as_it_stands(step, held(step.head, lease))
            return self._end(step, job, ending, upload_for_s=upload_for_s)

        job = self._database.change(act)
        self._beats.pop(lease, None)
        return job

    def _end(self, step: Step, job: Job, ending: Ending, *, upload_for_s: float | None = None) -> Job:
        return end_job(step, job, ending, now=self._clock(), rules=self._rules, upload_for_s=upload_for_s)

    def replace_ending(self, job_id: int, ending: Ending) -> Job:
        def act(step: Step) -> Job:
            job = kv_submits.find_job(step, job_id, None)
            document = find_document(step, job_id)
            if job.state is not ending.state or document is None:
                raise InvalidRequest(f"The call {job_id} ended as {job.state}, not as {ending.state}.")
            document.job = replace(job, ending=ending)
            put_job(step, document)
            return document.job

        return self._database.change(act)

    def expired(self, *, limit: int = 100) -> list[Job]:
        return self._database.ask(lambda view: kv_lists.expired_jobs(view, now=self._clock(), limit=limit))

    def metrics(self) -> StoreMetrics:
        return self._database.ask(lambda view: kv_lists.read_metrics(view, now=self._clock()))

    # ---- keys ----

    def add_key(self, key: ApiKey) -> ApiKey:
        return self._database.change(lambda step: kv_keys.add_key(step.head, key))

    def find_key(self, sha256: str) -> ApiKey | None:
        return self._database.ask(lambda view: kv_keys.find_key(view.head, sha256))

    def list_keys(self) -> list[ApiKey]:
        return self._database.ask(lambda view: [account.key for account in view.head.accounts.values()])

    def revoke_key(self, key_id: str) -> ApiKey:
        return self._database.change(lambda step: kv_keys.revoke_key(step.head, key_id, now=self._clock()))

    def limit_key(self, key_id: str, limits: KeyLimits) -> ApiKey:
        return self._database.change(lambda step: kv_keys.limit_key(step.head, key_id, limits))

    def key_use(self, key_id: str) -> KeyUse:
        return self._database.ask(lambda view: kv_keys.use_of(view.head.accounts.get(key_id), now=self._clock()))

    def save_s3(self, key_id: str, encrypted: bytes) -> None:
        text = base64.b64encode(encrypted).decode()
        self._database.change(lambda step: step.put(bucket_key(key_id), text))

    def s3_of(self, key_id: str) -> bytes | None:
        text = self._database.ask(lambda view: view.get(bucket_key(key_id)))
        return None if text is None else base64.b64decode(text)

    def reset_s3(self, key_id: str) -> bool:
        def act(step: Step) -> bool:
            was_there = step.get(bucket_key(key_id)) is not None
            if was_there:
                step.delete(bucket_key(key_id))
            return was_there

        return self._database.change(act)

    # ---- after-tasks ----

    def claim_task(self, kind: TaskKind, *, claim_s: float) -> AfterTask | None:
        return self._database.change(lambda step: kv_tasks.claim_task(step, kind, now=self._clock(), claim_s=claim_s))

    def settle_task(
        self, task: AfterTask, *, status: int | None, error: str, seconds: float, retry_in_s: float | None
    ) -> AfterTask:
        attempt = kv_tasks.Attempt(status, error, seconds, retry_in_s)
        return self._database.change(lambda step: kv_tasks.settle_task(step, task, attempt, now=self._clock()))

    def tasks_of(self, job_id: int) -> list[AfterTask]:
        document = self._database.ask(lambda view: find_document(view, job_id))
        return [] if document is None else document.tasks

    def attempts_of(self, task_id: str) -> list[TaskAttempt]:
        found = self._database.ask(lambda view: kv_tasks.find_task(view, task_id))
        return [] if found is None else [attempt for attempt in found[0].attempts if attempt.task_id == task_id]

    def redeliver(self, job_id: int, *, key_id: str | None) -> AfterTask:
        def act(step: Step) -> AfterTask:
            kv_submits.find_job(step, job_id, key_id)
            return kv_tasks.redeliver(step, job_id, now=self._clock(), window_s=self._rules.webhook_window_s)

        return self._database.change(act)

    # ---- ledger ----

    def usage_rows(
        self, *, key_id: str | None, since: float | None = None, until: float | None = None, limit: int = 10_000
    ) -> list[UsageRow]:
        span = kv_lists.Span(key_id, since, until)
        return self._database.ask(lambda view: kv_lists.read_usage_rows(view, span))[:limit]

    def usage_days(
        self, *, key_id: str | None, since: float | None = None, until: float | None = None
    ) -> list[UsageDay]:
        span = kv_lists.Span(key_id, since, until)
        return sum_by_day(self._database.ask(lambda view: kv_lists.read_usage_rows(view, span)))

    # ---- workers ----

    def say_alive(self, worker: WorkerRecord) -> None:
        now = self._clock()

        def act(board: dict[str, WorkerRecord]) -> None:
            for other in [*board.values()]:
                if abs(now - other.seen_at) > FORGET_WORKER_S:
                    del board[other.worker_id]
            board[worker.worker_id] = replace(worker, seen_at=now)

        self._workers.change(lambda draft: act(draft.value))

    def say_goodbye(self, worker_id: str) -> None:
        self._workers.change(lambda draft: draft.value.pop(worker_id, None))

    def workers(self, *, seen_within_s: float = 30.0) -> list[WorkerRecord]:
        now, board = self._clock(), self._workers.read(max_age_s=ESTIMATE_AGE_S).value
        return [worker for worker in board.values() if abs(now - worker.seen_at) <= seen_within_s]

    def ask_restart(self) -> int:
        def act(step: Step) -> int:
            step.head.totals.restarts += 1
            return step.head.totals.restarts

        return self._database.change(act)

    def restarts_asked(self) -> int:
        return self._database.ask(lambda view: view.head.totals.restarts)
