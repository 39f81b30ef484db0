"""How often a caller may use a route that makes this service send something: a count per name in a sliding minute.

In the memory of one web process: several processes allow as many times as much. Knows nothing of routes.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from pipeline.errors import RateLimited

WINDOW_S = 60.0
MAX_NAMES = 10_000
"""More names than this are forgotten, the oldest first: a bound on memory."""


class CallLimit:
    """At most so many calls per name in one minute. For one event loop.

    Args:
        limit: calls per minute.
        what: what is limited, as the subject of the message.
        clock: seconds since 1970.
    """

    def __init__(self, limit: int, *, what: str, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._what = what
        self._clock = clock
        self._calls: dict[object, deque[float]] = {}

    def count(self, name: object) -> None:
        """Count one call.

        Raises:
            RateLimited: the name has used up its calls; this one is not counted.
        """
        now = self._clock()
        calls = self._calls.pop(name, deque[float]())
        while calls and calls[0] <= now - WINDOW_S:
            calls.popleft()
        self._calls[name] = calls  # at the end: the names stay in the order of their last calls
        if len(self._calls) > MAX_NAMES:
            del self._calls[next(iter(self._calls))]
        if len(calls) >= self._limit:
            free_at = calls[0] + WINDOW_S
            raise RateLimited(
                f"Rate limit exceeded. {self._what} is allowed {self._limit} times per minute.",
                limit=self._limit,
                remaining=0,
                reset_at=free_at,
                retry_after_s=max(1, math.ceil(free_at - now)),
            )
        calls.append(now)
