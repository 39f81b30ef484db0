"""Makes the attempts that are due in an outbox, several at a time, so that one key's slow server delays no other key.

Knows nothing of what an attempt does: webhooks and late uploads use it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from pipeline.errors import Cancelled, NotFound, StoreUnavailable
from pipeline.jobs.model import AttemptResult, OutboxTask, TaskKind
from pipeline.jobs.store import Outbox

MAX_WAITING_PER_KEY = 100
SLOW_ATTEMPT_S = 5.0

log = structlog.get_logger()


class OutboxDispatcher:
    """Claims due tasks of one kind and makes their attempts in threads.

    Each key has a few threads at once, and only one while its last attempt was slow to fail. Further tasks wait in
    memory while their claims last; then they are dropped, and are due again when the claims end. A dispatcher that
    crashes loses nothing for the same reason; an attempt may then be made twice.

    Args:
        outbox: where tasks are claimed and settled.
        kind: which tasks.
        attempt: makes one attempt. `NotFound` says that the job is gone, `Cancelled` that the attempt does not count.
        threads: attempts at once.
        per_key: attempts at once for one key.
        claim_s: how long a claimed task is hidden from other dispatchers; longer than any attempt takes.
    """

    def __init__(
        self,
        outbox: Outbox,
        kind: TaskKind,
        *,
        attempt: Callable[[OutboxTask], AttemptResult],
        threads: int,
        per_key: int,
        claim_s: float,
    ) -> None:
        self._outbox = outbox
        self._kind: TaskKind = kind
        self._attempt_task = attempt
        self._threads = threads
        self._per_key = per_key
        self._claim_s = claim_s
        self._changed = threading.Condition()
        self._in_flight: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[_Claim]] = defaultdict(deque)
        self._slow_keys: set[str] = set()
        self._attempts = 0

    def run(self, stop: threading.Event, *, poll_s: float = 0.5) -> None:
        """Make attempts until `stop` is set; those in flight are finished.

        Args:
            poll_s: pause after nothing was due.
        """
        with self._pool() as pool:
            while not stop.is_set():
                with self._changed:
                    is_free = self._changed.wait_for(self._has_thread, timeout=poll_s)
                try:
                    if is_free and not self._start_one(pool):
                        stop.wait(poll_s)
                except StoreUnavailable as error:
                    log.warning(f"{self._kind}s wait: the store is unavailable", reason=str(error))
                    stop.wait(poll_s)
                except Exception:  # and continue: a dispatcher that stops would be noticed too late
                    log.exception(f"{self._kind} dispatch failed")
                    stop.wait(poll_s)
            with self._changed:
                self._waiting.clear()

    def send_due(self, *, for_s: float = float("inf")) -> int:
        """Make every attempt that is due now and wait for the ends; returns the number of attempts.

        Args:
            for_s: no attempt starts after so many seconds.
        """
        attempts_before, ends_at_s = self._attempts, time.monotonic() + for_s
        with self._pool() as pool:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_thread)
                if time.monotonic() >= ends_at_s:
                    with self._changed:
                        self._waiting.clear()
                elif self._start_one(pool):
                    continue
                with self._changed:
                    if not self._in_flight.total():
                        return self._attempts - attempts_before
                    self._changed.wait()

    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._threads, thread_name_prefix=self._kind)

    def _start_one(self, pool: ThreadPoolExecutor) -> bool:
        """Claim the next due task and start it, or let it wait in memory; False when nothing is due."""
        task = self._outbox.claim_task(self._kind, claim_s=self._claim_s)
        if task is None:
            return False
        claim = _Claim(task, ends_at_s=time.monotonic() + self._claim_s)
        with self._changed:
            if self._has_thread_for(task.api_key_id):
                self._launch(pool, claim)
            elif len(self._waiting[task.api_key_id]) < MAX_WAITING_PER_KEY:
                self._waiting[task.api_key_id].append(claim)
        return True

    def _has_thread(self) -> bool:
        return self._in_flight.total() < self._threads

    def _has_thread_for(self, api_key_id: str) -> bool:
        allowed = 1 if api_key_id in self._slow_keys else self._per_key
        return self._in_flight[api_key_id] < allowed and self._has_thread()

    def _launch(self, pool: ThreadPoolExecutor, claim: _Claim) -> None:
        self._in_flight[claim.task.api_key_id] += 1
        pool.submit(self._make_attempt, claim.task).add_done_callback(lambda done: self._after(pool, claim.task, done))

    def _after(self, pool: ThreadPoolExecutor, task: OutboxTask, done: Future[None]) -> None:
        """Free the thread and start the tasks that waited for it."""
        if (error := done.exception()) is not None:
            log.error(f"{self._kind} not settled", job_id=task.job_id, exc_info=error)
        with self._changed:
            self._in_flight[task.api_key_id] -= 1
            waiting = self._waiting[task.api_key_id]
            while waiting and self._has_thread_for(task.api_key_id):
                claim = waiting.popleft()
                if claim.ends_at_s - time.monotonic() > self._claim_s / 2:
                    self._launch(pool, claim)
            self._changed.notify_all()

    def _make_attempt(self, task: OutboxTask) -> None:
        """Make one attempt and record it."""
        try:
            result = self._attempt_task(task)
        except (NotFound, Cancelled):
            return  # the job was deleted, and its tasks with it; or the task is due again when its claim ends
        with self._changed:
            self._attempts += 1
            if result.error and result.seconds > SLOW_ATTEMPT_S:
                self._slow_keys.add(task.api_key_id)
            else:
                self._slow_keys.discard(task.api_key_id)
        _settle(self._outbox, task, result)


@dataclass(frozen=True)
class _Claim:
    """A claimed task and when its claim ends, on the monotonic clock."""

    task: OutboxTask
    ends_at_s: float


def _settle(outbox: Outbox, task: OutboxTask, result: AttemptResult) -> None:
    """Record an attempt, with retries: an unrecorded attempt is made again when the claim ends."""
    for pause_s in (0.2, 1.0, 3.0, None):
        try:
            outbox.settle_task(task, result)
        except StoreUnavailable:
            if pause_s is None:
                raise
            time.sleep(pause_s)
        except NotFound:
            return
        else:
            return
