"""The header `Retry-After`. Source: RFC 9110 section 10.2.3."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime


def retry_after_s(text: str) -> float | None:
    """The seconds that a `Retry-After` header asks to wait; None where it holds no number and no date."""
    text = text.strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
