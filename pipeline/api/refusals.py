"""Counts the requests that a web process refuses, and logs a sample of them. Knows no HTTP status and no caller."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping

import structlog

LOG_EVERY_S = 60.0
"""One line of the log per error code and this time, however many requests are refused: a flood must not fill a disk."""

log = structlog.get_logger()


class Refusals:
    """Refused requests of one process, by error code."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._logged: dict[str, tuple[float, int]] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """How many requests were refused so far, by error code."""
        with self._lock:
            return dict(self._counts)

    def add(self, code: str, *, method: str, route: str) -> None:
        """Count a refusal; the first of its code, and then one in `LOG_EVERY_S`, is logged.

        The sentence that the caller gets is not logged: it quotes the request, which may hold a secret.

        Args:
            route: the path's template; a path itself may hold an id or grant access to a file.
        """
        now_s = self._clock()
        with self._lock:
            self._counts[code] += 1
            count = self._counts[code]
            logged_s, logged_count = self._logged.get(code, (float("-inf"), 0))
            if now_s - logged_s < LOG_EVERY_S:
                return
            self._logged[code] = (now_s, count)
        unlogged = count - logged_count - 1
        log.info("request refused", error_code=code, method=method, route=route, unlogged=unlogged)
