"""A worker's loop over a store: claim a job, keep its lease, run the work, complete the job. Knows nothing of the work.

What may happen around the work, and what becomes of the job: the process dies (the lease expires, another worker claims
the job); the store is unavailable (writes are retried); the caller cancels (the work is told to stop); the service
stops (the work gets a grace period, then the job is requeued); the work hangs (its process ends); the work hands the
job over to something that runs elsewhere (no process holds it until another one takes it over).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from pipeline.errors import LeaseLost, StageError, StoreUnavailable
from pipeline.jobs.model import Job, JobResult, JobState, Progress, WorkerRecord
from pipeline.jobs.store import JobStore, WorkerRegistry
from pipeline.jobs.transfer import Transferred
from pipeline.jobs.transitions import PASSIVE_LEASE_S, is_passive
from pipeline.telemetry import span

MAX_HEARTBEAT_INTERVAL_S = 1.0
"""Pause between two heartbeats of a job whose store is on this machine or in its network."""
WORKER_HEARTBEAT_INTERVAL_S = 5.0
RESTART_CHECK_INTERVAL_S = 1.0
"""How often an idle worker looks for a restart request."""
COMPLETION_PAUSES_S = (0.1, 0.3, 1.0, 3.0, *([5.0] * 120))
"""Pauses between attempts to write the end of a job while the store is unavailable: ten minutes in all."""

log = structlog.get_logger()


class QueueStore(JobStore, WorkerRegistry, Protocol):
    """What a worker needs of a store."""


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker claims and runs jobs.

    Attributes:
        worker_id: unique over all workers ever started.
        engine: as shown in the list of workers; several names are separated by commas.
        engines: leave jobs that need another engine in the queue; None claims every job.
        lease_s: how long a job stays with a worker that sends no heartbeat.
        heartbeat_interval_s: longest pause between two heartbeats: also the delay of progress and cancellation.
        stop_grace_s: how long work may go on after the service was told to stop.
        timeout_s: longest time for one attempt at a job.
        on_timeout: called when an attempt takes longer, from the thread of the heartbeats; ends the process, since
            native code cannot be interrupted.
        is_able: asked before a claim; False leaves the jobs in the queue.
        poll_s: pause after no job was found.
        is_registered: keep a record of this worker in the list of workers. Not where jobs are dispatched one by one:
            the list is one entry of the shared map, for which the heartbeats of all running jobs would compete.
        writes_stages_at_once: write a new stage without waiting for the next heartbeat. Not where each write competes
            with those of all other jobs.
    """

    worker_id: str
    engine: str = ""
    engines: tuple[str, ...] | None = None
    lease_s: float = 30.0
    heartbeat_interval_s: float = MAX_HEARTBEAT_INTERVAL_S
    stop_grace_s: float = 20.0
    timeout_s: float = float("inf")
    on_timeout: Callable[[], None] = lambda: None
    is_able: Callable[[], bool] = lambda: True
    poll_s: float = 0.2
    is_registered: bool = True
    writes_stages_at_once: bool = True


class LeaseKeeper:
    """Sends the heartbeats of a job while its work runs: reports progress, and learns of cancellation requests.

    Args:
        job: as its lease was granted.
        stop: set when the service stops.
        heartbeat_worker: called with every heartbeat.

    Attributes:
        progress: what was reported last.
    """

    def __init__(
        self,
        store: QueueStore,
        job: Job,
        options: WorkerOptions,
        *,
        stop: threading.Event,
        heartbeat_worker: Callable[[], None],
    ) -> None:
        self._store = store
        self._lease = lease = job.lease
        self._options = options
        self._stop = stop
        self._heartbeat_worker = heartbeat_worker
        self.progress: Progress = Progress()
        self._reported: Progress = self.progress
        self._has_ended = threading.Event()
        self._wake = threading.Event()
        self.is_cancel_requested = job.is_cancel_requested
        self.is_lease_lost = False
        self.is_grace_over = False
        self._thread = threading.Thread(target=self._keep, name=f"lease-{lease.job_id}", daemon=True)

    def report(self, stage: str, percent: int) -> None:
        """Set the progress, which the next heartbeat writes; a new stage is written at once, as the options say."""
        is_new_stage = stage != self.progress.stage
        self.progress = Progress(stage, percent)
        if is_new_stage and self._options.writes_stages_at_once:
            self._wake.set()

    def is_cancelled(self) -> bool:
        """Whether the work should stop, for any reason."""
        return self.is_cancel_requested or self.is_lease_lost or self.is_grace_over

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._has_ended.set()
        self._wake.set()
        self._thread.join()

    def _keep(self) -> None:
        """Send heartbeats until the work has ended or the lease is lost."""
        started_s = time.monotonic()
        stopping_since_s: float | None = None
        while not self._pause():
            now_s = time.monotonic()
            if now_s - started_s > self._options.timeout_s:
                log.error("job takes too long", job_id=self._lease.job_id, timeout_s=self._options.timeout_s)
                self._options.on_timeout()
            if self._stop.is_set():
                stopping_since_s = now_s if stopping_since_s is None else stopping_since_s
                self.is_grace_over = now_s - stopping_since_s >= self._options.stop_grace_s
            if not self._heartbeat():
                return

    def _pause(self) -> bool:
        """Wait for the next heartbeat or the next stage; True when the work has ended."""
        self._wake.wait(min(self._options.lease_s / 4, self._options.heartbeat_interval_s))
        self._wake.clear()
        return self._has_ended.is_set()

    def _heartbeat(self) -> bool:
        """Send one heartbeat; False when the lease is lost."""
        try:
            progress = self.progress
            changed = progress if progress != self._reported else None
            self.is_cancel_requested = self._store.renew(self._lease, lease_s=self._options.lease_s, progress=changed)
            self._reported = progress
            self._heartbeat_worker()
        except LeaseLost:
            self.is_lease_lost = True
            return False
        except StoreUnavailable as error:  # no other worker can claim the job either, so the work continues
            log.warning("heartbeat failed", job_id=self._lease.job_id, reason=str(error))
        except Exception:  # the lease, progress and cancellation depend on this thread
            log.exception("heartbeat failed", job_id=self._lease.job_id)
        return True


Work = Callable[[Job, LeaseKeeper], JobResult]


def _why(result: JobResult) -> dict[str, str]:
    """What an operator looks for first in the log of a failed job. The stage is the last one that ran."""
    return {
        "error_code": result.error_code,
        "reason": result.message,
        "stage": next(iter([*result.stage_seconds][-1:]), ""),
        "engine": result.engine,
    }


class QueueWorker:
    """Claims one job at a time and runs it.

    Args:
        work: runs a job. Any exception fails the job, except `StoreUnavailable`, which requeues it, and `Transferred`.
        on_end: called with each job that this worker has completed, when its end is on record.
    """

    def __init__(
        self, store: QueueStore, work: Work, options: WorkerOptions, *, on_end: Callable[[Job], None] = lambda job: None
    ) -> None:
        self._store = store
        self._work = work
        self._options = options
        self._worker_id = options.worker_id
        self._on_end = on_end
        self._was_able = True
        self._heartbeat_at_s = self._restart_checked_at_s = float("-inf")
        self._restarts_at_start: int | None = None

    def run(self, stop: threading.Event) -> None:
        """Run jobs until `stop` is set or a restart is requested."""
        while not stop.is_set():
            try:
                self._heartbeat_worker()
                if self._is_restart_requested():
                    log.info("restarting as requested", worker_id=self._worker_id)
                    break
                did_work = self._may_claim() and self.run_one(stop) is not None
            except StoreUnavailable as error:
                log.warning("worker waits for the store", worker_id=self._worker_id, reason=str(error))
                did_work = False
            if not did_work:
                stop.wait(self._options.poll_s)
        try:
            self._store.deregister_worker(self._worker_id)
        except StoreUnavailable:
            log.warning("worker not deregistered", worker_id=self._worker_id)

    def run_one(self, stop: threading.Event, *, job_id: int | None = None) -> Job | None:
        """Claim one job and complete it, or requeue it when told to stop.

        Returns:
            The job as this worker's last write left it, None where there was none.

        Raises:
            StoreUnavailable: the store was unavailable before a job was claimed.
        """
        options = self._options
        job = self._store.claim(self._worker_id, lease_s=options.lease_s, job_id=job_id, engines=options.engines)
        return None if job is None else self._run(job, stop)

    def _run(self, job: Job, stop: threading.Event) -> Job:
        """Complete a job that this worker has claimed or taken over, requeue it, or hand it over.

        Returns:
            The job as the last write left it: as it was claimed, where nothing was written afterwards.
        """
        traced = {"job.id": job.id, "job.attempt": job.attempts}
        with (
            structlog.contextvars.bound_contextvars(job_id=job.id, key_id=job.api_key_id, attempt=job.attempts),
            span("call", traced, kind="consumer", parent=job.meta.traceparent) as note,
        ):
            log.info("job started")
            started_s = time.monotonic()
            heartbeat_worker = partial(self._heartbeat_worker, job.id)
            with LeaseKeeper(self._store, job, self._options, stop=stop, heartbeat_worker=heartbeat_worker) as keeper:
                result = self._try(job, keeper)
                left, outcome = (job, "") if isinstance(result, Transferred) else self._conclude(job, keeper, result)
            if isinstance(result, Transferred):  # no heartbeat may follow: the lease is another one's from here on
                left, outcome = self._transfer(job, keeper, result, stop)
                note({"job.outcome": outcome})
                log.info("job goes on elsewhere", outcome=outcome, seconds=round(time.monotonic() - started_s, 3))
                return left
            note({"job.outcome": outcome, "job.engine": result.engine})
            seconds = round(time.monotonic() - started_s, 3)
            if outcome == JobState.FAILED:
                log.warning("job failed", seconds=seconds, **_why(result))
            else:
                log.info("job finished", outcome=outcome, engine=result.engine, seconds=seconds)
            return left

    def run_dispatched(
        self, job_id: int, stop: threading.Event, *, made_progress: Callable[[Job], bool] = lambda job: False
    ) -> Job | None:
        """Run one job, also where an earlier process that it was dispatched to is dead or silent.

        This worker's id names the dispatch: a job that an earlier process holds under it is claimed at once. A lease
        under another id is waited for once; a worker that renews it meanwhile keeps the job. From a passive holder the
        job is taken over at once, in the same attempt; of two that try, one gets it.

        Args:
            made_progress: called with a job whose process died under this id; True makes that attempt not count.

        Returns:
            The job as this worker's last write left it, None where it had ended, must wait, or is another worker's.

        Raises:
            StoreUnavailable: the store was unavailable before the job was claimed.
        """
        job = self.run_one(stop, job_id=job_id)
        found = None if job is not None else self._running(job_id)
        if found is None or is_passive(found.worker_id):
            return job
        if found.worker_id != self._worker_id:
            log.info("waiting for another worker's lease", job_id=job_id)
            stop.wait(self._options.lease_s)
            after = self._running(job_id)
            if after is None or after.lease_expires_at != found.lease_expires_at:
                return None
        elif made_progress(found):
            with suppress(LeaseLost):
                self._store.requeue(found.lease)
        else:
            self._store.expire_leases(self._worker_id)
        return self.run_one(stop, job_id=job_id)

    def _running(self, job_id: int) -> Job | None:
        """The job, if a worker or a passive holder has it."""
        return next((job for job in self._store.get_many([job_id]) if job.state is JobState.RUNNING), None)

    def _try(self, job: Job, keeper: LeaseKeeper) -> JobResult | Transferred:
        try:
            return self._work(job, keeper)
        except Transferred as transferred:
            return transferred
        except StoreUnavailable as error:  # not the job's fault: it is requeued
            log.warning("work interrupted", reason=str(error))
            return JobResult(JobState.CANCELLED)
        except Exception as error:  # a job whose work cannot even start must still end
            log.exception("work failed outside its stages")
            message = f"The job failed for an internal reason ({type(error).__name__})."
            return JobResult(
                JobState.FAILED, message=message, error_code=StageError.code, retryable=StageError.retryable
            )

    def _conclude(self, job: Job, keeper: LeaseKeeper, result: JobResult) -> tuple[Job, str]:
        """Complete or requeue the job; returns the job as it is then, and the outcome in a word."""
        if result.state is JobState.CANCELLED and not keeper.is_cancel_requested:  # interrupted
            written = self._written(keeper, lambda: self._store.requeue(job.lease))
            return (job, written) if isinstance(written, str) else (written, str(written.state))
        written = self._written(keeper, lambda: self._store.complete(job.lease, result))
        if isinstance(written, str):
            return job, written
        self._on_end(written)
        return written, str(written.state)

    def _transfer(
        self, job: Job, keeper: LeaseKeeper, transferred: Transferred, stop: threading.Event
    ) -> tuple[Job, str]:
        """Give the job to its passive holder, then start what that waits for; returns what `_conclude` does.

        Whoever looks after passive holders finds a job of which nothing was started, so a failed start is only logged.
        """
        waiting = self._written(
            keeper,
            lambda: self._store.transfer(
                job.lease, worker_id=transferred.worker_id, lease_s=PASSIVE_LEASE_S, progress=keeper.progress
            ),
        )
        if isinstance(waiting, str):
            return job, waiting
        if waiting.is_cancel_requested:  # whoever asked may have found this worker as the holder
            return self.run_one(stop, job_id=job.id) or waiting, "cancelled"
        try:
            transferred.start()
        except Exception:
            log.exception("nothing started for a job that was transferred", job_id=job.id)
        return waiting, "transferred"

    def _written(self, keeper: LeaseKeeper, write: Callable[[], Job]) -> Job | str:
        """The job as this worker's last write left it, repeated while the store is unavailable; or why there is none.

        Returns:
            The job; "lost" where the lease is; "unwritten" where the store never answered: then the lease expires, and
            the next attempt resumes from the last checkpoint.
        """
        for pause_s in COMPLETION_PAUSES_S:
            if keeper.is_lease_lost:
                return "lost"
            try:
                return write()
            except LeaseLost:
                return "lost"
            except StoreUnavailable as error:
                log.warning("outcome not written yet", reason=str(error))
                time.sleep(pause_s)
        return "unwritten"

    def _may_claim(self) -> bool:
        """Whether to look for a job; a change is logged."""
        is_able, was_able = self._options.is_able(), self._was_able
        if is_able != was_able:
            log.warning("jobs are claimed again" if is_able else "no jobs are claimed", worker_id=self._worker_id)
        self._was_able = is_able
        return is_able

    def _heartbeat_worker(self, job_id: int | None = None) -> None:
        """Refresh this worker's record, at most every few seconds."""
        now_s = time.monotonic()
        if self._options.is_registered and now_s - self._heartbeat_at_s >= WORKER_HEARTBEAT_INTERVAL_S:
            self._heartbeat_at_s = now_s
            engine, is_ready = self._options.engine, self._options.is_able()
            self._store.heartbeat_worker(WorkerRecord(self._worker_id, engine, 0.0, is_ready=is_ready, job_id=job_id))

    def _is_restart_requested(self) -> bool:
        """Whether a restart was requested since this worker first asked."""
        now_s = time.monotonic()
        if now_s - self._restart_checked_at_s < RESTART_CHECK_INTERVAL_S:
            return False
        self._restart_checked_at_s = now_s
        requested = self._store.restarts_requested()
        if self._restarts_at_start is None:
            self._restarts_at_start = requested
        return requested > self._restarts_at_start
