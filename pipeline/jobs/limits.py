"""What a key's limits refuse at a submit, and the calendar that limits, quotas and the ledger count by.

Pure functions of what the store read and of the time. Knows no store.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from pipeline.errors import NotFound, QuotaSpent, RateLimited, Unauthorized
from pipeline.jobs.model import ApiKey, KeyUse, RateWindow

MINUTE_S = 60
QUEUE_FULL_RETRY_S = 30
NOT_USED = KeyUse(queued=0, running=0, this_minute=0, this_month=0)


def no_such_key(api_key_id: str) -> NotFound:
    """The error about a key that does not exist."""
    return NotFound(f"There is no key with the id {api_key_id}.")


def minute_of(now: float) -> int:
    """The current minute, counted since 1970."""
    return math.floor(now / MINUTE_S)


def month_of(now: float) -> str:
    """The current month (UTC), `2026-01`."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m}"


def day_of(now: float) -> str:
    """The current day (UTC), `2026-01-31`."""
    return f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d}"


def month_after(now: float) -> float:
    """When the next month (UTC) begins."""
    today = datetime.fromtimestamp(now, UTC)
    year, month = (today.year + 1, 1) if today.month == 12 else (today.year, today.month + 1)
    return datetime(year, month, 1, tzinfo=UTC).timestamp()


def submits_this_minute(minute: int, calls: int, *, now: float) -> int:
    """The submits of the current minute, from a key's counter: `calls` in `minute`, which may be over."""
    return calls if minute == minute_of(now) else 0


def check_submit(key: ApiKey | None, use: KeyUse, *, now: float, is_export: bool = False) -> RateWindow | None:
    """Refuse a submit that its key does not allow.

    Args:
        key: None where there is no such key.
        use: what is in use before this submit.
        is_export: the job generates nothing, so the month's quota does not apply.

    Returns:
        The key's minute after this submit, None where it has no such limit.

    Raises:
        Unauthorized: there is no such key, or it was revoked.
        RateLimited: the queue or the minute is full.
        QuotaSpent: the month's quota is used up.
    """
    if key is None or key.revoked_at is not None:
        raise Unauthorized("Invalid API key")
    limits = key.limits
    if limits.per_month is not None and not is_export and use.this_month >= limits.per_month:
        reset_at = month_after(now)
        raise QuotaSpent(
            f"The quota of {limits.per_month} jobs per month is used up; it resets on {day_of(reset_at)} (UTC).",
            limit=limits.per_month,
            remaining=0,
            reset_at=reset_at,
            retry_after_s=max(1, math.ceil(reset_at - now)),
        )
    if limits.queued is not None and use.queued >= limits.queued:
        raise RateLimited(
            f"Rate limit exceeded. {use.queued} jobs are queued; this key may have {limits.queued}.",
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
            f"Rate limit exceeded. This key may submit {limits.per_minute} jobs per minute.",
            limit=limits.per_minute,
            remaining=0,
            reset_at=reset_at,
            retry_after_s=max(1, math.ceil(reset_at - now)),
        )
    return RateWindow(limits.per_minute, limits.per_minute - use.this_minute - 1, reset_at)
