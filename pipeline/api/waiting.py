"""Waiting for jobs to end, and following them: many waiting requests share one query. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Generator
from contextlib import contextmanager

import structlog
from starlette.concurrency import run_in_threadpool

from pipeline.errors import ImageTo3DError
from pipeline.jobs.model import Job
from pipeline.jobs.store import JobStore

LOOKS_PER_S = 50.0
"""Of all followers of one key's jobs together: a look takes three queries, and a caller may follow thousands of jobs.
Those of other keys are updated no less often for it."""

log = structlog.get_logger()


class CompletionWaiter:
    """Returns jobs when they have ended. Polls the store with one query for all that wait, and only while one waits.

    Args:
        poll_s: pause between two queries.
    """

    def __init__(self, store: JobStore, *, poll_s: float) -> None:
        self._store = store
        self._poll_s = poll_s
        self._waiting: defaultdict[int, list[asyncio.Future[Job]]] = defaultdict(list)
        self._task: asyncio.Task[None] | None = None

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job once it has ended, or as it was when the time is up."""
        if job.state.is_final or seconds <= 0:
            return job
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._waiting[job.id].append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return job
        finally:
            waiting = self._waiting.get(job.id, [])
            if future in waiting:
                waiting.remove(future)
            if not waiting:
                self._waiting.pop(job.id, None)

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._poll_s)
            try:
                jobs = await run_in_threadpool(self._store.ended, list(self._waiting))
            except ImageTo3DError:  # the store does not answer; poll again
                continue
            except Exception:  # every waiting request depends on this task
                log.exception("waiting jobs not read")
                continue
            for job in jobs:
                for future in self._waiting.pop(job.id, []):
                    if not future.done():
                        future.set_result(job)


class Followers:
    """The pauses between the looks of those that follow a job's progress.

    Args:
        pause_s: between two looks of one of them, where few follow.
    """

    def __init__(self, completions: CompletionWaiter, *, pause_s: float) -> None:
        self._completions = completions
        self._pause_s = pause_s
        self._by_key = Counter[str]()

    @contextmanager
    def joined(self, api_key_id: str) -> Generator[None]:
        """Count as a follower of one of a key's jobs for the block."""
        self._by_key[api_key_id] += 1
        try:
            yield
        finally:
            self._by_key[api_key_id] -= 1
            self._by_key += Counter[str]()  # drops the keys that nobody follows

    def pause_s(self, api_key_id: str) -> float:
        """Between two looks of each: the more follow a key's jobs, the longer, so that they look at most `LOOKS_PER_S`
        times together."""
        return max(self._pause_s, self._by_key[api_key_id] / LOOKS_PER_S)

    async def pause(self, job: Job) -> None:
        """Wait until it is time for the next look; a longer pause ends with the job."""
        pause_s = self.pause_s(job.api_key_id)
        if pause_s > self._pause_s:
            await self._completions.wait(job, pause_s)
        else:
            await asyncio.sleep(self._pause_s)
