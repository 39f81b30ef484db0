"""The jobs that wait for a generation while no process works on them: their progress, their cancellation, their rescue.

No numpy, no torch: the web container and the one for webhooks import it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import structlog

from pipeline.errors import LeaseLost
from pipeline.jobs.model import Job, JobState, Progress
from pipeline.jobs.stages import percent_of
from pipeline.jobs.store import JobStore
from pipeline.jobs.transitions import PASSIVE_LEASE_S, waits_for_call
from pipeline.on_modal.control_channel import ControlChannel, SavedCall, best_effort
from pipeline.on_modal.dispatch import LOST_AFTER_S, Dispatcher, jobs_in
from pipeline.on_modal.remote_call import RemoteCall
from pipeline.on_modal.shared_dict import SharedDict

FIRST_SIGN_TIMEOUT_S = 960.0
"""How long a generation may wait while no container of its engine works. A deployed class whose containers crash at
their start is started without end: without this bound its generations would wait as long. Longer than a generation may
take, by more than `engine_server.SHOW_UP_INTERVAL_S`, since a container shows itself when it begins one."""

log = structlog.get_logger()


def ask_to_stop(channel: ControlChannel, find_call: Callable[[str], RemoteCall]) -> SavedCall:
    """Ask the container of a generation to stop between two steps; cancel a call that no container has begun.

    Returns:
        The record of the call.
    """
    best_effort(channel.request_cancel, None)
    saved = best_effort(channel.saved_call, SavedCall())
    if saved.call_id and best_effort(partial(channel.progress, None), 0.0) is None:
        best_effort(lambda: find_call(saved.call_id).cancel(), None)
    return saved


class WaitingJobs:
    """The jobs of a deployment that have a passive holder.

    Args:
        dispatch: dispatches a job whose next step can be made.
        find_call: finds a started call by its id.
        is_in_flight: whether a call waits or runs; may raise the error that it ended with.
        entries: the shared dictionary in which jobs have their channels.
        default: the engine of jobs that name none.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        dispatch: Dispatcher,
        *,
        find_call: Callable[[str], RemoteCall],
        is_in_flight: Callable[[str], bool],
        entries: SharedDict,
        default: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._dispatch = dispatch
        self._find_call = find_call
        self._is_in_flight = is_in_flight
        self._entries = entries
        self._default = default
        self._clock = clock

    def with_progress(self, job: Job) -> Job:
        """The job with the progress of its generation, where it waits for one."""
        if not waits_for_call(job):
            return job
        share = best_effort(partial(self._channel(job).progress, 0.0), 0.0)
        return replace(job, progress=Progress("generate", percent_of("generate", share)))

    def stop(self, job: Job) -> None:
        """Stop the generation of a job whose cancellation was requested, and let a process end the job.

        A worker that holds the job learns of the request by its next heartbeat.
        """
        if waits_for_call(job):
            ask_to_stop(self._channel(job), self._find_call)
            self._dispatch(job.id)

    def watch(self, store: JobStore) -> int:
        """Dispatch the jobs whose next step nothing else will make, and renew the leases of the others.

        Returns:
            How many were dispatched.
        """
        waiting = [job for job in jobs_in(store, JobState.RUNNING) if waits_for_call(job)]
        return sum(best_effort(partial(self._look_after, store, job), False) for job in waiting)

    def _look_after(self, store: JobStore, job: Job) -> bool:
        """Whether the job was dispatched."""
        now = self._clock()
        is_recent = now - ((job.lease_expires_at or 0.0) - PASSIVE_LEASE_S) < LOST_AFTER_S
        if is_recent and not job.is_cancel_requested:
            return False  # it was transferred or looked after a moment ago, and may be about to start its call
        if self._dispatch.is_dispatched(job.id):
            return False
        channel = self._channel(job)
        saved = channel.saved_call()
        if job.is_cancel_requested:
            ask_to_stop(channel, self._find_call)
        elif self._is_waited_for(saved) and not self._is_given_up(channel, saved, job.engine or self._default):
            self._renew(store, job, now=now)
            return False
        log.info("waiting job dispatched", job_id=job.id, remote_call=saved.call_id)
        self._dispatch(job.id)
        return True

    def _is_waited_for(self, saved: SavedCall) -> bool:
        """Whether the call waits or runs."""
        try:
            return bool(saved.call_id) and self._is_in_flight(saved.call_id)
        except Exception:
            log.warning("generation ended with an error", remote_call=saved.call_id, exc_info=True)
            return False

    def _is_given_up(self, channel: ControlChannel, saved: SavedCall, engine: str) -> bool:
        """Give a generation up for which no container comes, so that its job fails with that reason."""
        silent_s = min(self._clock() - saved.started_at, channel.seconds_since_alive(engine))
        if silent_s <= FIRST_SIGN_TIMEOUT_S:
            return False
        reason = f"no container of engine {engine} started within {FIRST_SIGN_TIMEOUT_S:g} s"
        log.error("generation given up", reason=reason, remote_call=saved.call_id)
        channel.save_call(replace(saved, failure=reason))
        best_effort(lambda: self._find_call(saved.call_id).cancel(), None)
        return True

    def _renew(self, store: JobStore, job: Job, *, now: float) -> None:
        """Renew a passive lease in its second half."""
        if (job.lease_expires_at or 0.0) - now > PASSIVE_LEASE_S / 2:
            return
        try:
            store.renew(job.lease, lease_s=PASSIVE_LEASE_S)
        except LeaseLost:  # a process has taken the job over meanwhile
            log.info("waiting job goes on", job_id=job.id)

    def _channel(self, job: Job) -> ControlChannel:
        return ControlChannel(self._entries, job.file_prefix)
