"""The rules that every store applies: what a key's limits refuse, and how a job ends that no worker ends.

Pure functions of what the store read and of its clock. Knows no store.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from pipeline.errors import QuotaSpent, RateLimited
from pipeline.jobs.model import MAX_ATTEMPTS, JobResult, JobState, KeyLimits, KeyUse, RateWindow

MINUTE_S = 60
QUEUE_FULL_RETRY_S = 30
MAX_PAUSE_S = 7200.0
"""No after-task is ever due later than this: a due time further off was written before the clock stepped back."""
MAX_SKEW_S = 60.0
"""Clocks of one deployment differ by less: a due time written further ahead is from before the clock stepped back."""
TIMED_CALLS = 20
"""Over how many calls the estimate of a wait is averaged."""


def is_due(next_attempt_at: float, *, scheduled_at: float, now: float) -> bool:
    """Whether an after-task's time has come, or cannot be told because the clock has stepped back since.

    Args:
        scheduled_at: when `next_attempt_at` was written.
    """
    return not now < next_attempt_at <= now + MAX_PAUSE_S or scheduled_at > now + MAX_SKEW_S


def minute_of(now: float) -> int:
    """The running minute, counted since 1970."""
    return math.floor(now / MINUTE_S)


def month_of(now: float) -> str:
    """The running month (UTC), `2026-01`."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m}"


def day_of(now: float) -> str:
    """The running day (UTC), `2026-01-31`."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}"


def month_after(now: float) -> float:
    """When the next month (UTC) begins."""
    today = datetime.fromtimestamp(now, UTC)
    year, month = (today.year + 1, 1) if today.month == 12 else (today.year, today.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


def check_limits(limits: KeyLimits, use: KeyUse, *, now: float) -> RateWindow | None:
    """Refuse a submit that a key's limits do not allow.

    Args:
        use: what is in use before this submit.

    Returns:
        The key's minute after this submit, None where it has no such limit.

    Raises:
        RateLimited: the queue or the minute is full.
        QuotaSpent: the month is.
    """
    if limits.per_month is not None and use.this_month >= limits.per_month:
        reset_at = month_after(now)
        raise QuotaSpent(
            f"The quota of {limits.per_month} calls per month is spent; it resets on {day_of(reset_at)} (UTC).",
            limit=limits.per_month,
            remaining=0,
            reset_at=reset_at,
            retry_after_s=max(1, math.ceil(reset_at - now)),
        )
    if limits.queued is not None and use.queued >= limits.queued:
        raise RateLimited(
            f"Rate limit exceeded. {use.queued} calls are waiting, and this key may have {limits.queued}.",
            limit=limits.queued,
            remaining=0,
            reset_at=now + QUEUE_FULL_RETRY_S,
            retry_after_s=QUEUE_FULL_RETRY_S,
        )
    if limits.per_minute is None:
        return None
    reset_at = float((minute_of(now) + 1) * MINUTE_S)
    if use.this_minute >= limits.per_minute:
        raise RateLimited(
            f"Rate limit exceeded. This key may submit {limits.per_minute} calls per minute.",
            limit=limits.per_minute,
            remaining=0,
            reset_at=reset_at,
            retry_after_s=max(1, math.ceil(reset_at - now)),
        )
    return RateWindow(limits.per_minute, limits.per_minute - use.this_minute - 1, reset_at)


CANCELLED = JobResult(JobState.CANCELLED, message="The call was cancelled.", error_code="cancelled")
"""How a job ends that was cancelled while no worker had it."""

GIVEN_UP = JobResult(
    JobState.FAILED,
    message=f"The call was interrupted {MAX_ATTEMPTS} times and given up.",
    error_code="interrupted",
    retryable=True,
)
"""How a job ends whose workers died too often."""
