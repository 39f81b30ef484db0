"""Handing jobs over one by one, where no worker polls the queue. Knows nothing of who takes them.

A hand-over may be lost at any point: before it is made, after it is made and before it is noted, or with the process
that it started. None of this loses a job: what waits without a hand-over under way is handed over again, and whoever
comes second finds the job taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import structlog

from pipeline.jobs.model import Job, JobState
from pipeline.jobs.store import JobStore
from pipeline.on_modal.shared_dict import SharedDict

LOST_AFTER_S = 30.0
"""How long a job may wait before anybody asks what became of its hand-over."""
PAGE = 200

log = structlog.get_logger()


class Dispatcher:
    """Hands jobs over and remembers to whom.

    Args:
        spawn: hands a job over, returns the hand-over's name.
        is_in_flight: whether a hand-over of this name waits or runs; may raise what it ended in.
        notes: where names are kept while their jobs have not ended.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        spawn: Callable[[int], str],
        *,
        is_in_flight: Callable[[str], bool],
        notes: SharedDict,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spawn = spawn
        self._is_under_way = is_in_flight
        self._notes = notes
        self._clock = clock

    def __call__(self, job_id: int) -> None:
        """Hand a job over. A failure is no error of the job's: `dispatch_waiting` makes up for it."""
        try:
            self._notes.put(_note_of(job_id), self._spawn(job_id))
        except Exception:
            log.exception("job not handed over", job_id=job_id)

    def made_progress(self, job: Job) -> bool:
        """Whether the death of a job's process is no sign against the job: it came further than the one before."""
        before = self._notes.get(f"died/{job.id}")
        self._notes.put(f"died/{job.id}", job.progress.stage)
        return job.progress.stage != before

    def forget(self, job_id: int) -> None:
        """Drop what was noted of a job that has ended."""
        self._notes.pop(_note_of(job_id), None)
        self._notes.pop(f"died/{job_id}", None)

    def dispatch_waiting(
        self,
        store: JobStore,
        *,
        api_key_id: str | None = None,
        lost_after_s: float = LOST_AFTER_S,
        limit: int | None = None,
    ) -> int:
        """Hand over again what waits, or whose lease has run out, with no hand-over under way; the oldest first.

        Args:
            api_key_id: only this key's jobs.
            limit: at most so many.

        Returns:
            How many.
        """
        now = self._clock()
        waiting = [
            job
            for state in (JobState.RUNNING, JobState.QUEUED)
            for job in _jobs_in(store, state, api_key_id=api_key_id)
            if now - _waits_since(job) > lost_after_s
        ]
        dispatched = 0
        for job in sorted(waiting, key=lambda job: job.seq):
            name = self._notes.get(_note_of(job.id))
            if name is not None and self._goes_on(name):
                continue
            log.info("job handed over again", job_id=job.id, state=str(job.state))
            self(job.id)
            dispatched += 1
            if dispatched == limit:
                break
        return dispatched

    def _goes_on(self, name: str) -> bool:
        """Whether a hand-over waits or runs; asked about one that ended in an error, a platform raises that error."""
        try:
            return self._is_under_way(name)
        except Exception:
            log.warning("hand-over ended in an error", hand_over=name, exc_info=True)
            return False


def _note_of(job_id: int) -> str:
    return f"dispatch/{job_id}"


def _waits_since(job: Job) -> float:
    return job.created_at if job.lease_expires_at is None else job.lease_expires_at


def _jobs_in(store: JobStore, state: JobState, *, api_key_id: str | None) -> Iterator[Job]:
    before_seq: int | None = None
    while page := store.list_jobs(api_key_id=api_key_id, state=state, before_seq=before_seq, limit=PAGE):
        yield from page
        before_seq = page[-1].seq
        if len(page) < PAGE:
            return
