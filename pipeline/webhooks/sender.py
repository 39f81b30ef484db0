"""Webhooks from the outbox to their receivers, until they answer or the retry window ends.

Knows nothing of what a webhook contains, nor of how a job ends: the outbox row is written with the job's final state.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import structlog

from pipeline.errors import ImageTo3DError
from pipeline.jobs.model import ApiKey, AttemptResult, OutboxTask
from pipeline.jobs.outbox_dispatcher import OutboxDispatcher
from pipeline.jobs.store import Outbox
from pipeline.net.deadline import deadline
from pipeline.net.egress import why_unreachable
from pipeline.net.retry_after import retry_after_s
from pipeline.webhooks.signing import WebhookSigner

GROWTH = 2.0
"""Factor between two pauses: 10 attempts in 2 hours pause 13 s, 25 s, 51 s ... 54 min."""
WINDOW_SHARE = 0.9
"""The pauses' share of the window; the rest is for receivers that are slow to fail."""
JITTER = 0.15
"""Pauses are shortened at random by up to this share, so that a receiver that was down does not get all at once."""
LONGEST_ASKED_PAUSE_S = 3600.0
"""The longest pause that a receiver gets by asking for it (`Retry-After`)."""
GONE = 410
"""With this status a receiver asks for no further attempt, as Standard Webhooks describes."""

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
    """The result of one attempt.

    Attributes:
        status: the receiver's HTTP status, None without an answer.
        error: "" after success.
        seconds: how long it took.
        retry_after_s: how long the receiver asks to wait, None where it does not say.
    """

    status: int | None
    error: str
    seconds: float
    retry_after_s: float | None = None


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
            **self._signer.headers(key, webhook_id=task.id, timestamp=self._clock(), body=body),
        }
        started_s = time.monotonic()
        status, error, asked_s = None, "", None
        with deadline(self._connect_timeout_s + self._answer_timeout_s):
            try:
                request = self._client.build_request(
                    "POST",
                    task.target,
                    content=body,
                    headers=headers,
                    timeout=httpx.Timeout(self._answer_timeout_s, connect=self._connect_timeout_s),
                )
                response = self._client.send(request, stream=True, follow_redirects=False)
                response.close()
                status = response.status_code
                error = "" if response.is_success else _describe_status(status)
                asked_s = retry_after_s(response.headers.get("retry-after", ""))
            except ImageTo3DError as blocked:
                error = str(blocked)
            except (httpx.HTTPError, httpx.InvalidURL) as failure:
                error = self._describe(failure)
        return WebhookAttempt(status, error, time.monotonic() - started_s, asked_s)

    def _describe(self, failure: Exception) -> str:
        """Why a receiver did not answer, in words and without its URL, which may contain a secret."""
        match failure:
            case httpx.ConnectTimeout() | httpx.PoolTimeout():
                return f"no connection within {self._connect_timeout_s:g} s"
            case httpx.TimeoutException():
                return f"no answer within {self._answer_timeout_s:g} s"
            case httpx.ConnectError():
                return f"no connection: {why_unreachable(failure)}"
            case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
                return "the address cannot be used"
            case _:
                return "the connection broke before there was an answer"


class WebhookDispatcher(OutboxDispatcher):
    """Sends the webhooks that are due in an outbox.

    Args:
        outbox: where tasks are claimed and settled.
        send: makes one attempt; never raises for anything that a receiver does.
        body_of: the body of a task's webhook, UTF-8 JSON; raises `NotFound` when its job is gone.
        schedule: the pauses between attempts.
        rng: for the jitter of the pauses.
        threads, per_key, claim_s: as for `OutboxDispatcher`.
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
        self._send = send
        self._body_of = body_of
        self._schedule = schedule or Schedule()
        self._rng = rng or random.Random()
        super().__init__(outbox, "webhook", attempt=self._attempt, threads=threads, per_key=per_key, claim_s=claim_s)

    def _attempt(self, task: OutboxTask) -> AttemptResult:
        """Make one attempt.

        Raises:
            NotFound: the job was deleted, and its tasks with it.
        """
        attempt = self._send(task, self._body_of(task))
        pause_s = None if attempt.status == GONE else self._schedule.pause_s(task.attempts + 1, self._rng)
        if pause_s is not None and attempt.retry_after_s is not None:
            left_s = task.give_up_at - task.next_attempt_at  # the end of this claim
            pause_s = max(pause_s, min(attempt.retry_after_s, LONGEST_ASKED_PAUSE_S, left_s))
        log.info(
            "webhook attempt",
            job_id=task.job_id,
            webhook_id=task.id,
            number=task.attempts + 1,
            status=attempt.status,
            error=attempt.error,
            seconds=round(attempt.seconds, 3),
        )
        return AttemptResult(attempt.status, attempt.error, attempt.seconds, pause_s)


def _describe_status(status: int) -> str:
    if status == GONE:
        return "answered 410: the receiver takes no webhooks any more"
    if 300 <= status < 400:
        return f"answered {status}; redirects are not followed"
    return f"answered {status}"
