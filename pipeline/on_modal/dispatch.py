"""Dispatches jobs one by one, for deployments where no worker polls the queue. Knows nothing of what runs them.

A dispatch may be lost at any point: before it is made, after it is made and before it is recorded, or with the process
that it started. None of this loses a job: a waiting job without a dispatch in flight is dispatched again, and a second
process finds that the job is claimed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import structlog

from pipeline.jobs.model import Job, JobFilter, JobState
from pipeline.jobs.store import JobStore
from pipeline.on_modal.shared_dict import SharedDict

LOST_AFTER_S = 30.0
"""How long a job may wait before its dispatch is checked."""
PAGE = 200

log = structlog.get_logger()


class Dispatcher:
    """Dispatches jobs and remembers the id of each dispatch.

    Args:
        spawn: dispatches a job, with the call that has announced its answer or ""; returns the id of the dispatch.
        is_in_flight: whether a dispatch waits or runs; may raise the error that it ended with.
        entries: where ids are kept until their jobs have ended.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        spawn: Callable[[int, str], str],
        *,
        is_in_flight: Callable[[str], bool],
        entries: SharedDict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spawn = spawn
        self._is_in_flight = is_in_flight
        self._entries = entries
        self._clock = clock

    def __call__(self, job_id: int, call_id: str = "") -> None:
        """Dispatch a job. A failure is only logged: `dispatch_waiting` and `watch` dispatch the job later.

        Args:
            call_id: the call of the job's generation, where it announces its answer.
        """
        try:
            self._entries.put(_entry_of(job_id), self._spawn(job_id, call_id))
        except Exception:
            log.exception("job not dispatched", job_id=job_id)

    def made_progress(self, job: Job) -> bool:
        """Whether the attempt that died got further than the one before; then it is not counted against the job."""
        before = self._entries.get(f"died/{job.id}")
        self._entries.put(f"died/{job.id}", job.progress.stage)
        return job.progress.stage != before

    def forget(self, job_id: int) -> None:
        """Delete the entry of a job that has ended. What `made_progress` noted of a few expires by itself, as idle
        entries of a Modal Dict do.
        """
        self._entries.pop(_entry_of(job_id), None)

    def dispatch_waiting(
        self,
        store: JobStore,
        *,
        api_key_id: str | None = None,
        lost_after_s: float = LOST_AFTER_S,
        limit: int | None = None,
    ) -> int:
        """Dispatch jobs again that wait, or whose lease has expired, without a dispatch in flight; oldest first.

        Args:
            api_key_id: only this key's jobs.
            limit: the maximum number.

        Returns:
            How many were dispatched.
        """
        now = self._clock()
        waiting = [
            job
            for state in (JobState.RUNNING, JobState.QUEUED)
            for job in jobs_in(store, state, api_key_id=api_key_id)
            if now - _waiting_since(job) > lost_after_s
        ]
        dispatched = 0
        for job in sorted(waiting, key=lambda job: job.seq):
            if self.is_dispatched(job.id):
                continue
            log.info("job dispatched again", job_id=job.id, state=str(job.state))
            self(job.id)
            dispatched += 1
            if dispatched == limit:
                break
        return dispatched

    def is_dispatched(self, job_id: int) -> bool:
        """Whether a dispatch of the job waits or runs; Modal raises the error of one that ended with an error."""
        dispatch_id = self._entries.get(_entry_of(job_id))
        try:
            return dispatch_id is not None and self._is_in_flight(dispatch_id)
        except Exception:
            log.warning("dispatch ended with an error", dispatch=dispatch_id, exc_info=True)
            return False


def _entry_of(job_id: int) -> str:
    return f"dispatch/{job_id}"


def _waiting_since(job: Job) -> float:
    return job.created_at if job.lease_expires_at is None else job.lease_expires_at


def jobs_in(store: JobStore, state: JobState, *, api_key_id: str | None = None) -> Iterator[Job]:
    """The jobs in a state, page by page."""
    before_seq: int | None = None
    while page := store.list_jobs(JobFilter(api_key_id, state=state), before_seq=before_seq, limit=PAGE):
        yield from page
        before_seq = page[-1].seq
        if len(page) < PAGE:
            return
