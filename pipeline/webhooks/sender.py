"""Webhooks from the outbox to their receivers, until they answer or the retry window ends.

Knows nothing of what a webhook contains, nor of how a job ends: the outbox row is written with the job's final state.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import structlog

from pipeline.errors import ImageTo3DError, NotFound, StoreUnavailable
from pipeline.jobs.model import ApiKey, AttemptResult, OutboxTask
from pipeline.jobs.store import Outbox
from pipeline.net.deadline import deadline
from pipeline.net.egress import why_unreachable
from pipeline.webhooks.signing import WebhookSigner

GROWTH = 2.0
"""Factor between two pauses: 10 attempts in 2 hours pause 13 s, 25 s, 51 s ... 54 min."""
WINDOW_SHARE = 0.9
"""The pauses' share of the window; the rest is for receivers that are slow to fail."""
JITTER = 0.15
"""Pauses are shortened at random by up to this share, so that a receiver that was down does not get all at once."""
MAX_WAITING_PER_KEY = 100
SLOW_ATTEMPT_S = 5.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Schedule:
    """How often a webhook is tried, and over how long."""

    attempts: int = 10
    window_s: float = 7200.0

    def pause_s(self, attempts_made: int, rng: random.Random) -> float | None:
        """Seconds to wait after so many failed attempts; None when it is time to give up."""
        if attempts_made >= self.attempts:
            return None
        shares = [GROWTH**number for number in range(self.attempts - 1)]
        longest_s = self.window_s * WINDOW_SHARE * shares[attempts_made - 1] / sum(shares)
        return longest_s * (1 - JITTER * rng.random())


@dataclass(frozen=True)
class WebhookAttempt:
    """The result of one attempt: the receiver's HTTP status if it answered, an error or "", and the seconds it took."""

    status: int | None
    error: str
    seconds: float


class WebhookSender:
    """Sends webhooks over HTTP, one attempt per call.

    Args:
        client: guarded against addresses that this deployment does not connect to.
        signer: signs with the secret of the task's key.
        key_of: the record of the key with an id.
        connect_timeout_s: for the connection.
        answer_timeout_s: for the answer's head, from when the body is sent.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        client: httpx.Client,
        *,
        signer: WebhookSigner,
        key_of: Callable[[str], ApiKey],
        connect_timeout_s: float = 10.0,
        answer_timeout_s: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._signer = signer
        self._key_of = key_of
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._clock = clock

    def __call__(self, task: OutboxTask, body: bytes) -> WebhookAttempt:
        """POST the body once. Any 2xx is success; redirects are not followed; only the response's head is read.

        Raises:
            StoreUnavailable: the key cannot be read; nothing was sent.
        """
        key = self._key_of(task.api_key_id)
        headers = {
            "connection": "close",
            "content-type": "application/json",
            "user-agent": "image-to-3d",
            **self._signer.headers(key, webhook_id=task.id, timestamp=self._clock(), body=body),
        }
        started_s = time.monotonic()
        status, error = None, ""
        with deadline(self._connect_timeout_s + self._answer_timeout_s) as limit:
            try:
                request = self._client.build_request(
                    "POST",
                    task.target,
                    content=body,
                    headers=headers,
                    timeout=httpx.Timeout(self._answer_timeout_s, connect=self._connect_timeout_s),
                    extensions=limit.extensions,
                )
                response = self._client.send(request, stream=True, follow_redirects=False)
                response.close()
                status = response.status_code
                error = "" if response.is_success else _describe_status(status)
            except ImageTo3DError as blocked:
                error = str(blocked)
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error = self._describe(failure, is_late=limit.has_passed)
        return WebhookAttempt(status, error, time.monotonic() - started_s)

    def _describe(self, failure: Exception, *, is_late: bool) -> str:
        """Why a receiver did not answer, in words and without its URL, which may contain a secret."""
        match failure:
            case httpx.ConnectTimeout() | httpx.PoolTimeout():
                return f"no connection within {self._connect_timeout_s:g} s"
            case httpx.TimeoutException():
                return f"no answer within {self._answer_timeout_s:g} s"
            case _ if is_late:
                return f"no answer within {self._answer_timeout_s:g} s"
            case httpx.ConnectError():
                return f"no connection: {why_unreachable(failure)}"
            case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
                return "the address cannot be used"
            case _:
                return "the connection broke before there was an answer"


class WebhookDispatcher:
    """Sends what is due in an outbox, several at a time, so that a receiver that hangs delays no other key's webhooks.

    Each key has a few senders at once, and only one while its receiver was slow to fail last. Further tasks wait in
    memory while their claims last; then they are dropped, and are due again when the claims end. A dispatcher that
    crashes loses nothing for the same reason; a receiver may then get a webhook twice, under one id.

    Args:
        outbox: where tasks are claimed and settled.
        send: makes one attempt; never raises for anything that a receiver does.
        body_of: the body of a task's webhook, UTF-8 JSON; raises `NotFound` when its job is gone.
        schedule: the pauses between attempts.
        rng: for the jitter of the pauses.
        threads: senders at once.
        per_key: senders at once for one key.
        claim_s: how long a claimed task is hidden from other dispatchers; longer than any attempt takes.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        send: Callable[[OutboxTask, bytes], WebhookAttempt],
        body_of: Callable[[OutboxTask], bytes],
        schedule: Schedule | None = None,
        rng: random.Random | None = None,
        threads: int = 32,
        per_key: int = 4,
        claim_s: float = 90.0,
    ) -> None:
        self._outbox = outbox
        self._send = send
        self._body_of = body_of
        self._schedule = schedule or Schedule()
        self._rng = rng or random.Random()
        self._threads = threads
        self._per_key = per_key
        self._claim_s = claim_s
        self._changed = threading.Condition()
        self._in_flight: Counter[str] = Counter()
        self._waiting: defaultdict[str, deque[_Claim]] = defaultdict(deque)
        self._slow_keys: set[str] = set()
        self._sent = 0

    def run(self, stop: threading.Event, *, poll_s: float = 0.5) -> None:
        """Send until `stop` is set; attempts in flight are finished.

        Args:
            poll_s: pause after nothing was due.
        """
        with ThreadPoolExecutor(self._threads, thread_name_prefix="webhook") as pool:
            while not stop.is_set():
                with self._changed:
                    is_free = self._changed.wait_for(self._has_sender, timeout=poll_s)
                try:
                    if is_free and not self._start_one(pool):
                        stop.wait(poll_s)
                except StoreUnavailable as error:
                    log.warning("webhooks wait: the store is unavailable", reason=str(error))
                    stop.wait(poll_s)
                except Exception:
                    log.exception(
                        "webhook dispatch failed"
                    )  # and continue: a dispatcher that stops would be noticed too late
                    stop.wait(poll_s)
            with self._changed:
                self._waiting.clear()

    def send_due(self) -> int:
        """Send everything that is due now and wait for the responses; returns the number of attempts."""
        sent_before = self._sent
        with ThreadPoolExecutor(self._threads, thread_name_prefix="webhook") as pool:
            while True:
                with self._changed:
                    self._changed.wait_for(self._has_sender)
                if not self._start_one(pool):
                    with self._changed:
                        if not self._in_flight.total():
                            return self._sent - sent_before
                        self._changed.wait()

    def _start_one(self, pool: ThreadPoolExecutor) -> bool:
        """Claim the next due task and start it, or let it wait in memory; False when nothing is due."""
        task = self._outbox.claim_task("webhook", claim_s=self._claim_s)
        if task is None:
            return False
        claim = _Claim(task, ends_at_s=time.monotonic() + self._claim_s)
        with self._changed:
            if self._has_sender_for(task.api_key_id):
                self._launch(pool, claim)
            elif len(self._waiting[task.api_key_id]) < MAX_WAITING_PER_KEY:
                self._waiting[task.api_key_id].append(claim)
        return True

    def _has_sender(self) -> bool:
        return self._in_flight.total() < self._threads

    def _has_sender_for(self, api_key_id: str) -> bool:
        allowed = 1 if api_key_id in self._slow_keys else self._per_key
        return self._in_flight[api_key_id] < allowed and self._has_sender()

    def _launch(self, pool: ThreadPoolExecutor, claim: _Claim) -> None:
        self._in_flight[claim.task.api_key_id] += 1
        pool.submit(self._deliver, claim.task).add_done_callback(lambda done: self._after(pool, claim.task, done))

    def _after(self, pool: ThreadPoolExecutor, task: OutboxTask, done: Future[None]) -> None:
        """Free the sender and start the tasks that waited for it."""
        if (error := done.exception()) is not None:
            log.error("webhook not settled", job_id=task.job_id, exc_info=error)
        with self._changed:
            self._in_flight[task.api_key_id] -= 1
            waiting = self._waiting[task.api_key_id]
            while waiting and self._has_sender_for(task.api_key_id):
                claim = waiting.popleft()
                if claim.ends_at_s - time.monotonic() > self._claim_s / 2:
                    self._launch(pool, claim)
            self._changed.notify_all()

    def _deliver(self, task: OutboxTask) -> None:
        """Make one attempt and record it."""
        try:
            body = self._body_of(task)
        except NotFound:
            return  # the job was deleted, and its tasks with it
        attempt = self._send(task, body)
        with self._changed:
            self._sent += 1
            pause_s = self._schedule.pause_s(task.attempts + 1, self._rng)
            if attempt.error and attempt.seconds > SLOW_ATTEMPT_S:
                self._slow_keys.add(task.api_key_id)
            else:
                self._slow_keys.discard(task.api_key_id)
        log.info(
            "webhook attempt",
            job_id=task.job_id,
            webhook_id=task.id,
            number=task.attempts + 1,
            status=attempt.status,
            error=attempt.error,
            seconds=round(attempt.seconds, 3),
        )
        _settle(self._outbox, task, AttemptResult(attempt.status, attempt.error, attempt.seconds, pause_s))


@dataclass(frozen=True)
class _Claim:
    """A claimed task and when its claim ends, on the monotonic clock."""

    task: OutboxTask
    ends_at_s: float


def _settle(outbox: Outbox, task: OutboxTask, result: AttemptResult) -> None:
    """Record an attempt, with retries: an unrecorded attempt is sent again when the claim ends."""
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


def _describe_status(status: int) -> str:
    if 300 <= status < 400:
        return f"answered {status}; redirects are not followed"
    return f"answered {status}"
